"""The main loops as packages of one op: inputs, results row by row, float64 references with their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ops.one_op import BF16, F64, Built, norm_inputs
from tilecc.emit.single import SingleOp
from tilecc.runtime.bare import BareResult
from tilecc.runtime.fragments import from_activations, from_fragments, to_activations

EPS = 1e-5


@dataclass(frozen=True)
class Inputs:
    """All rows of a step: x bf16 [rows, cols], and the router's logits f32 [rows, experts] of an op over
    experts."""

    x: NDArray[Any]
    logits: NDArray[Any] | None = None

    def regions(self, op: SingleOp, norm: F64) -> dict[str, NDArray[Any]]:
        if op.kind == "project":
            return {"hidden": to_activations(self.x, op.max_rows)}
        regions = norm_inputs(self.x, op.cols, norm, op.max_rows)
        if self.logits is not None:
            pitched = np.zeros((op.max_rows, -(-op.experts // 32) * 32), np.float32)
            pitched[: len(self.logits), : op.experts] = self.logits
            regions["router_logits"] = pitched
        return regions

    def rows(self, which: NDArray[Any]) -> Inputs:
        """Some of the rows, in the given order."""
        return Inputs(self.x[which], self.logits[which] if self.logits is not None else None)

    def row(self, source: int, to: int, others: Inputs) -> Inputs:
        """Row `source` of these at place `to` among rows of `others`."""
        x = others.x.copy()
        x[to] = self.x[source]
        if self.logits is None or others.logits is None:
            return Inputs(x)
        logits = others.logits.copy()
        logits[to] = self.logits[source]
        return Inputs(x, logits)


def random_inputs(op: SingleOp, seed: int) -> Inputs:
    """Normal numbers; each row chooses its experts for itself."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((op.max_rows, op.cols)).astype(BF16)
    if op.kind != "experts":
        return Inputs(x)
    return Inputs(x, rng.standard_normal((op.max_rows, op.experts)).astype(np.float32))


def outcome(built: Built, op: SingleOp, result: BareResult) -> NDArray[Any]:
    """What the op leaves of each row, [rows, ...]: sums of every K split, logits, or the hidden vector."""
    rows = op.max_rows
    if op.kind in ("project", "experts"):
        name, cols = ("Project", op.rows) if op.kind == "project" else ("ExpertsDown", op.cols)
        splits = built.constant(name, "tile_splits")
        padded = -(-cols // 128) * 128
        flat = result.regions["partials"].view(np.float32)[: splits * padded * rows].reshape(splits, -1)
        return from_fragments(flat, cols, rows).transpose(1, 0, 2)
    if op.kind == "gate_up":
        return from_activations(result.regions["hidden"].view(BF16), op.rows // 2, rows)
    if op.kind == "head":
        assert result.logits is not None
        return result.logits[-1]
    return result.regions["router_logits"].view(np.float32).reshape(rows, -1)[:, : op.rows]


# ----------------------------------------------------------------------------------------------- references


@dataclass(frozen=True)
class Reference:
    """Values float64 and, elementwise, how far the kernel may be from them."""

    want: F64
    bound: F64

    def check(self, got: NDArray[Any], least: float = 1e-3) -> float:
        """Raise if out of bounds; returns the largest error over its bound."""
        error = np.abs(got.astype(np.float64) - self.want)
        largest = np.abs(self.want).max()
        assert np.isfinite(error).all() and largest > least  # never on zeros
        worst = float((error / self.bound).max())
        assert worst <= 1.0, f"{worst:.2f} of the bound, {error.max() / largest:.2e} of the largest value"
        return worst


@dataclass(frozen=True)
class Activations:
    """What reaches the products, float64 [rows, K], and how far each element may be from it.

    Behind a norm the kernel's 1 / rms, which multiplies the sums, differs from ours by a few units of 2^-24.
    """

    y: F64
    slack: F64


def activations(op: SingleOp, x: NDArray[Any], norm: F64) -> Activations:
    wide = x.astype(np.float64)
    if op.kind == "project":
        return Activations(wide, np.zeros_like(wide))
    y = (wide * norm).astype(np.float32).astype(BF16).astype(np.float64)
    y /= np.sqrt((wide**2).mean(axis=1, keepdims=True) + op.eps)
    return Activations(y, 2.0**-21 * np.abs(y))


def product(a: Activations, w: F64) -> Reference:
    """a w^T as the loops make it: exact products (8 by 8 bits or fewer, a float32 weight in three parts),
    summed in float32.

    A sum of n terms meets n roundings of at most 2^-24 of the partial sum, of either sign: they add up like a
    random walk. Six standard deviations, for the largest partial sum: of whole k16 steps in order of columns,
    and of any of the terms of one step.
    """
    cols = a.y.shape[1]
    padded = -(-cols // 16) * 16
    y, v = (np.pad(m, ((0, 0), (0, padded - cols))) for m in (a.y, w))
    y, v = y.reshape(len(y), -1, 16).transpose(1, 0, 2), v.reshape(len(w), -1, 16).transpose(1, 2, 0)
    partial = np.abs(np.cumsum(y @ v, axis=0)).max(axis=0) + (np.abs(y) @ np.abs(v)).max(axis=0)
    return Reference(a.y @ w.T, 6 * np.sqrt(cols + 32) * 2.0**-24 * partial + a.slack @ np.abs(w).T)


def swiglu(gate: Reference, up: Reference) -> Reference:
    """silu(gate) * up, rounded to bf16. The slope of silu is at most 1.1; e^x and 1 / x err by some 2^-22."""
    silu = gate.want / (1 + np.exp(-np.clip(gate.want, -700, None)))
    want = silu * up.want
    noise = 1.1 * gate.bound * (np.abs(up.want) + up.bound) + np.abs(silu) * up.bound
    noise += 2.0**-20 * np.abs(want)
    return Reference(want, noise + 2.0**-8 * (np.abs(want) + noise) + 2.0**-126)


def reference(built: Built, op: SingleOp, x: NDArray[Any]) -> Reference:
    """Of every kind but experts; project and its splits added up."""
    a, name = activations(op, x, built.norm), f"layers.{op.layers - 1}.w"
    if op.kind == "gate_up":
        return swiglu(*(product(a, built.weights[f"{name}.{half}.weight"]) for half in ("gate", "up")))
    return product(a, built.weights[f"{name}.weight"])


def check_experts(built: Built, op: SingleOp, inputs: Inputs, result: BareResult) -> tuple[float, float]:
    """Both loops over experts: the hidden vectors against float64, the sums against float64 of what the first
    loop left. Returns both errors over their bounds."""
    assert inputs.logits is not None
    splits, width, rows = built.constant("ExpertsDown", "tile_splits"), op.rows // 2, op.max_rows
    chosen = result.regions["routes"].view(np.uint32).reshape(-1, rows, op.k)[op.layers - 1]
    active = sorted({int(e) for e in chosen.flat})
    flat = result.regions["expert_hidden"].view(BF16).reshape(-1, -(-width // 128) * 128 * rows)
    hidden = from_activations(flat, width, rows)
    a, name = activations(op, inputs.x, built.norm), f"layers.{op.layers - 1}"
    want, bound, worst = np.zeros((rows, op.cols)), np.zeros((rows, op.cols)), 0.0
    sigma = 1 / (1 + np.exp(-inputs.logits.astype(np.float64)))
    for slot, e in enumerate(active):
        routed = (chosen == e).any(axis=1)
        halves = (product(a, built.weights[f"{name}.up.{e}.{half}.weight"]) for half in ("gate", "up"))
        h = swiglu(*halves)
        assert not hidden[slot][~routed].astype(np.float32).any()  # exactly nothing of other rows
        mine = Reference(h.want[routed], h.bound[routed])
        worst = max(worst, mine.check(hidden[slot][routed]))
        y = hidden[slot].astype(np.float64)
        term = product(Activations(y, np.zeros_like(y)), built.weights[f"{name}.down.{e}.weight"])
        weight = np.zeros(rows)
        for row in np.flatnonzero(routed):
            weight[row] = sigma[row, e] / sigma[row, chosen[row]].sum()
        want += weight[:, None] * term.want
        # A routing weight errs by some 2^-21; the terms are added in float32.
        bound += weight[:, None] * (term.bound + 2.0**-19 * np.abs(term.want))
    return worst, Reference(want, bound).check(result.partials(splits, op.cols))
