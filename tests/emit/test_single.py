"""Packages of one op: every kind and format computes its product, with all detectors of the emulator on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ops.one_op import BF16, F64, Built, build, norm_inputs, normalised
from tilecc.diag import InternalError, TileccError
from tilecc.emit.single import SingleOp, one_op_package
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.fragments import from_activations, from_fragments, to_activations, to_fragments

ROWS, COLS = 48, 256

# Products are exact in float32 (8-bit times 8-bit mantissas); sums of COLS float32 terms, in any order, err
# by less than COLS * 2^-24 of the sum of magnitudes. The norm's rounding may flip one bf16 ulp of an input.
SUMS = COLS * 2.0**-24
FLIPS = 2.0**-8


def close(got: np.ndarray, x: F64, w: F64, extra: float = 0.0) -> None:
    want, bound = x @ w.T, (np.abs(x) @ np.abs(w).T) * SUMS
    largest = np.abs(x).max() * np.abs(w).max() * extra
    assert np.abs(want).max() > 1 and (np.abs(got - want) <= bound + largest).all()


def inputs(built: Built, cols: int = COLS) -> np.ndarray:
    return built.rng.standard_normal((8, cols)).astype(BF16)


def test_fragment_order_is_that_of_the_device_header() -> None:
    k, n = np.meshgrid(np.arange(160), np.arange(8))
    at = ((k >> 4) * 32 + n * 4 + ((k & 7) >> 1)) * 4 + ((k & 15) >> 3) * 2 + (k & 1)  # frag_bytes / 2
    x = (1000 * n + k).astype(np.int32)
    flat = to_fragments(x)
    assert (flat[at] == x).all() and flat.size == 8 * 256
    assert (from_fragments(flat, 160) == x).all()
    assert (from_fragments(np.stack([flat, -flat]), 160)[1] == -x).all()


@pytest.mark.parametrize("format", ["bf16", "f32", "fp8_block", "mxfp4"])
def test_a_projection_of_each_format(tmp_path: Path, format: str) -> None:
    built = build(tmp_path / "p", SingleOp("project", format, ROWS, COLS, layers=2))
    x = inputs(built)
    result = built.emulator(detect=DETECT_ALL).run({"hidden": to_activations(x)}, steps=2)
    got = result.partials(built.constant("Project", "tile_splits"), ROWS)
    close(got, x.astype(np.float64), built.weights["layers.1.w.weight"])
    other = x.astype(np.float64) @ built.weights["layers.0.w.weight"].T
    assert np.abs(got - other).max() > 1  # each layer has weights of its own


def test_head_and_router_write_logits(tmp_path: Path) -> None:
    for kind in ("head", "router"):
        built = build(tmp_path / kind, SingleOp(kind, "bf16", ROWS, COLS))
        x = inputs(built)
        y = normalised(x, built.norm)
        result = built.emulator(detect=DETECT_ALL).run(
            norm_inputs(x, COLS, built.norm), logits=kind == "head"
        )
        if kind == "head":
            assert result.logits is not None
            got = result.logits[0]
        else:
            got = result.regions["router_logits"].view(np.float32).reshape(8, -1)[:, :ROWS]
        close(got, y, built.weights["layers.0.w.weight"], FLIPS)


def silu_mul(gate: F64, up: F64) -> F64:
    return gate / (1 + np.exp(-gate)) * up


def test_gate_up_leaves_the_hidden_vector(tmp_path: Path) -> None:
    built = build(tmp_path / "p", SingleOp("gate_up", "mxfp4", ROWS, COLS))
    x = inputs(built)
    y = normalised(x, built.norm)
    result = built.emulator(detect=DETECT_ALL).run(norm_inputs(x, COLS, built.norm))
    got = from_activations(result.regions["hidden"].view(BF16), ROWS // 2).astype(np.float64)
    gate, up = (y @ built.weights[f"layers.0.w.{n}.weight"].T for n in ("gate", "up"))
    want = silu_mul(gate, up)
    # One bf16 rounding of the result, and one ulp of an input may flip.
    assert np.abs(got - want).max() <= np.abs(want).max() * 2.0**-7 and np.abs(want).max() > 100


def test_experts_route_and_sum(tmp_path: Path) -> None:
    experts, k = 5, 2
    built = build(tmp_path / "p", SingleOp("experts", "mxfp4", 64, COLS, experts=experts, k=k))
    x = inputs(built)
    logits = built.rng.standard_normal((8, 32)).astype(np.float32)
    kernel = built.emulator(detect=DETECT_ALL)
    result = kernel.run({**norm_inputs(x, COLS, built.norm), "router_logits": logits}, steps=2)
    chosen = result.regions["routes"].view(np.uint32).reshape(1, 8, k)[0]
    y = normalised(x, built.norm)
    want = np.zeros((8, COLS))
    for row in range(8):
        sigma = 1 / (1 + np.exp(-logits[row, chosen[row]].astype(np.float64)))
        for e, weight in zip(chosen[row], sigma / sigma.sum(), strict=True):
            gate, up = (y[row] @ built.weights[f"layers.0.up.{e}.{n}.weight"].T for n in ("gate", "up"))
            hidden = silu_mul(gate, up).astype(np.float32).astype(BF16).astype(np.float64)
            want[row] += weight * (hidden @ built.weights[f"layers.0.down.{e}.weight"].T)
    got = result.partials(built.constant("ExpertsDown", "tile_splits"), COLS)
    assert np.abs(got - want).max() <= np.abs(want).max() * 2.0**-7 and np.abs(want).max() > 100


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="kind 'conv'"):
        one_op_package(tmp_path / "p", SingleOp("conv", "bf16", ROWS, COLS))
    with pytest.raises(TileccError, match="TC0222"):
        one_op_package(tmp_path / "p", SingleOp("project", "mxfp4", ROWS, 40))
    built = build(tmp_path / "p", SingleOp("project", "bf16", 16, 128))
    with pytest.raises(ValueError, match="do not fit region hidden"):
        built.emulator(grid=1).run({"hidden": np.zeros(8 * 256, BF16)})
