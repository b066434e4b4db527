"""Run a model file eagerly as the reference: teacher-forced logits, with the routing recorded or imposed.

bf16 rounding can flip an expert whose score nearly ties with another; a comparison then needs the reference
to use the experts that the other side used. ``force`` does that for single (layer, position) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilecc.weights.checkpoint import Checkpoint

Force = Mapping[tuple[int, int], Sequence[int]]
"""(layer, position) -> the expert ids to use there instead of the router's own choice."""


@dataclass
class ReferenceRun:
    """Result of :func:`reference_run` over P positions.

    ``logits`` f32 [P, V]. Per MoE layer: ``experts`` i64 [P, k] as used (forced or chosen, by score
    descending), ``own_experts`` i64 [P, k] as the router chose, ``scores`` f32 [P, E] = sigmoid(logit) +
    correction bias, the numbers that the choice compares.
    """

    logits: NDArray[np.float32]
    experts: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    own_experts: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    scores: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def selection_margin(self, layer: int) -> NDArray[np.float32]:
        """Score of the last chosen minus score of the first rejected expert [P]; inf when every expert is
        chosen."""
        ordered = -np.sort(-self.scores[layer], axis=-1)
        k = self.experts[layer].shape[-1]
        if k == ordered.shape[-1]:
            return np.full(ordered.shape[0], np.inf, np.float32)
        margin: NDArray[np.float32] = ordered[:, k - 1] - ordered[:, k]
        return margin


class _Routing:
    """The ``choose`` hook of a run: applies ``force`` and records every layer's choice."""

    def __init__(self, force: Force) -> None:
        self.force, self.start = force, 0
        self.used: dict[int, list[Tensor]] = {}
        self.own: dict[int, list[Tensor]] = {}
        self.scores: dict[int, list[Tensor]] = {}

    def __call__(self, layer: int, logits: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
        used = ids.clone()
        for row in range(ids.shape[0]):
            wanted = self.force.get((layer, self.start + row))
            if wanted is not None:
                if len(set(wanted)) != ids.shape[1]:
                    raise ValueError(
                        f"layer {layer} position {self.start + row}: {ids.shape[1]} experts, got {wanted}"
                    )
                used[row] = torch.tensor(list(wanted))
        self.own.setdefault(layer, []).append(ids)
        self.used.setdefault(layer, []).append(used)
        self.scores.setdefault(layer, []).append(torch.sigmoid(logits) + bias)
        return used


def load_reference(model: ModuleType | nn.Module, checkpoint: Checkpoint | Path | str | None) -> Any:
    """The eager module with weights: ``model`` is a model file's module (sizes from the checkpoint's
    config.json) or an ``nn.Module`` (used as it is; loaded when a checkpoint is given)."""
    if isinstance(model, nn.Module):
        return model if checkpoint is None else model.load(checkpoint)  # type: ignore[operator]
    if checkpoint is None:
        raise ValueError("a model file needs a checkpoint")
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    return model.decode_step(opened.config).load(opened)


@torch.no_grad()
def reference_run(
    model: ModuleType | nn.Module,
    checkpoint: Checkpoint | Path | str | None,
    ids: Sequence[int],
    rounding: str = "bf16",
    force: Force | None = None,
    rows: int = 8,
    kv: str = "bf16",
) -> ReferenceRun:
    """Feed ``ids`` (P tokens at positions 0..P-1 of one sequence) in steps of ``rows`` rows through the
    cached decode step.

    ``rounding`` is "bf16" (rounded where the kernel hands over bf16) or "f32"; ``kv`` the format of the
    cache, "bf16" or "fp8", which holds with both. Returns logits and routing.
    """
    step = load_reference(model, checkpoint)
    routing = _Routing(force or {})
    before = step.rounding, step.choose, getattr(step, "kv_format", "bf16")
    step.rounding, step.choose, step.kv_format = rounding, routing, kv
    try:
        caches = step.caches("cpu", 1, max(1, len(ids)))
        parts = []
        for start in range(0, len(ids), rows):
            routing.start = start
            tokens = torch.tensor(list(ids[start : start + rows]), dtype=torch.int64)
            positions = torch.arange(start, start + len(tokens))
            logits, _ = step(tokens, positions, torch.zeros_like(tokens), *caches)
            parts.append(logits)
    finally:
        step.rounding, step.choose, step.kv_format = before
    return ReferenceRun(
        torch.cat(parts).numpy(),
        {layer: torch.cat(v).numpy() for layer, v in routing.used.items()},
        {layer: torch.cat(v).numpy() for layer, v in routing.own.items()},
        {layer: torch.cat(v).numpy() for layer, v in routing.scores.items()},
    )


def reference_logits(
    model: ModuleType | nn.Module,
    checkpoint: Checkpoint | Path | str | None,
    ids: Sequence[int],
    rounding: str = "bf16",
    force: Force | None = None,
) -> NDArray[np.float32]:
    """Teacher-forced logits f32 [P, V]; see :func:`reference_run`."""
    return reference_run(model, checkpoint, ids, rounding, force).logits


@torch.no_grad()
def reference_generate(
    model: ModuleType | nn.Module,
    checkpoint: Checkpoint | Path | str | None,
    ids: Sequence[int],
    max_tokens: int,
    rounding: str = "bf16",
    stop: Sequence[int] = (),
) -> list[int]:
    """Greedy continuation of ``ids``: at most ``max_tokens`` new ids, ending after the first one in
    ``stop``."""
    step = load_reference(model, checkpoint)
    before, step.rounding = step.rounding, rounding
    caches = step.caches("cpu", 1, len(ids) + max_tokens)
    pending, position = list(ids), 0
    made: list[int] = []
    try:
        while len(made) < max_tokens:
            tokens = torch.tensor(pending, dtype=torch.int64)
            positions = torch.arange(position, position + len(pending))
            _, following = step(tokens, positions, torch.zeros_like(tokens), *caches)
            position += len(pending)
            pending = [int(following[-1])]
            made += pending
            if made[-1] in stop:
                break
    finally:
        step.rounding = before
    return made
