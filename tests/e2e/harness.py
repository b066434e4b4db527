"""Emitted kernel against the eager model: logits and routing, comparison with both references."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tilecc.models.reference import reference_run
from tilecc.runtime.engine import Engine, chunks_of

Floats = NDArray[np.float32]

BF16_BOUND = 3e-3
"""Largest difference / largest logit against the model rounded at the kernel's own points, or twice
`order_noise` where that is more. What is left is the order of float32 sums: one sum on the other side of a
bf16 rounding boundary moves its element by 2^-8, and the layers after it carry that on."""

F32_BOUND = 2.5e-2
"""The same against the model that rounds nowhere: what bf16 activations cost."""


@dataclass
class Answer:
    """Logits f32 [P, V] of one text, and per MoE layer the experts [P, k] that the kernel used."""

    logits: Floats
    experts: dict[int, NDArray[np.uint32]]


def answer(engine: Engine, ids: list[int], seq: int = 0) -> Answer:
    """Teacher-forced logits, one step per launch so that each step's routing can be read."""
    k = int(engine.manifest.config["num_experts_per_tok"])
    parts: list[Floats] = []
    routes: list[NDArray[np.uint32]] = []
    for rows in chunks_of(ids, 8, seq):
        _, logits = engine.run_steps([rows])
        assert logits is not None
        parts.append(logits[0])
        if any(r.name == "routes" for r in engine.manifest.workspace):
            routes.append(engine.session.region("routes").reshape(-1, 8, k)[:, : len(rows)])
    layers = range(routes[0].shape[0]) if routes else ()
    moe = engine.manifest.config["moe_layer_freq"]
    experts = {layer: np.concatenate([r[layer] for r in routes]) for layer in layers if moe[layer]}
    return Answer(np.concatenate(parts), experts)


@dataclass
class Comparison:
    """Errors of the positions, relative to the largest logit: [P] as computed, and with the kernel's
    experts imposed. `flips`: (layer, position) where the kernel chose other experts, and by how much their
    scores differ."""

    plain: Floats
    forced: Floats
    flips: dict[tuple[int, int], float]
    reference: Floats
    forced_reference: Floats

    def text(self, name: str) -> str:
        """One line for the test log."""
        listed = ", ".join(
            f"layer {layer} position {p} ({gap:.1e})" for (layer, p), gap in self.flips.items()
        )
        worst = f"max error / max logit {self.forced.max():.2e} (median {np.median(self.forced):.2e})"
        return f"{name}: {worst}, near-tied experts that flipped (gap of their scores): {listed or 'none'}"


def order_noise(model: ModuleType, checkpoint: Path, ids: list[int], got: Answer, kv: str = "bf16") -> float:
    """What the order of float32 sums alone costs, as `Comparison.forced` counts it: the reference against
    itself with every projection summed in float64, rounded to bf16 at the same points, with the same
    experts."""
    force = imposed(got)
    single = reference_run(model, checkpoint, ids, "bf16", force, len(ids), kv).logits
    linear = torch.nn.functional.linear

    def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear(x.double(), weight.double()).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", exact)
        double = reference_run(model, checkpoint, ids, "bf16", force, len(ids), kv).logits
    assert not np.array_equal(single, double)  # the patch reached the model
    return float(np.abs(single - double).max() / np.abs(single).max())


def imposed(got: Answer) -> dict[tuple[int, int], Any]:
    """The kernel's experts in the form that `reference_run` takes."""
    return {
        (layer, p): [int(e) for e in chosen]
        for layer, rows in got.experts.items()
        for p, chosen in enumerate(rows)
    }


def compare(
    model: ModuleType, checkpoint: Path, ids: list[int], got: Answer, rounding: str, kv: str = "bf16"
) -> Comparison:
    """Compare with the reference by itself, and with the reference made to use the kernel's experts."""
    force = imposed(got)
    plain = reference_run(model, checkpoint, ids, rounding, rows=len(ids), kv=kv)
    forced = reference_run(model, checkpoint, ids, rounding, force, len(ids), kv)
    # In the run that shares all earlier choices: how far the kernel's choice is from the reference's own.
    flips: dict[tuple[int, int], float] = {}
    for (layer, p), chosen in force.items():
        own = set(forced.own_experts[layer][p].tolist())
        if own != set(chosen):
            scores = forced.scores[layer][p]
            flips[layer, p] = float(
                max(scores[list(own - set(chosen))]) - min(scores[list(set(chosen) - own)])
            )

    def error(reference: Floats) -> Floats:
        return np.abs(got.logits - reference).max(axis=1) / np.abs(reference).max()

    return Comparison(error(plain.logits), error(forced.logits), flips, plain.logits, forced.logits)
