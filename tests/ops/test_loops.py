"""The main loops at the shapes of MiMo-V2.5-Pro and at random legal ones: numerics against float64, sums of
integers as equality, and bits that depend on nothing but the row. All detectors of the emulator are on.

The true shapes are cut to one group of m16 tiles: all columns, and the loop constants that the passes choose
for the whole matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.ops.loops import Inputs, check_experts, outcome, random_inputs, reference
from tests.ops.one_op import BF16, SCHEDULES, Built, assert_clean, build, packed
from tilecc.emit.single import SingleOp, one_op_tiles
from tilecc.passes.context import PassContext
from tilecc.runtime.bare import BareResult
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.target import find_target
from tilecc.weights.formats import mxfp4_dequantize, mxfp4_pack
from tilecc.weights.synthetic import FP8, Synthetic

Make = Callable[..., Built]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`build` that compiles each op once."""
    done: dict[Any, Built] = {}

    def made(op: SingleOp, like: SingleOp | None = None) -> Built:
        if (op, like) not in done:
            done[op, like] = build(tmp_path_factory.mktemp("loop") / "p", op, like=like)
        return done[op, like]

    return made


def run(built: Built, op: SingleOp, inputs: Inputs, rows: int | None = None, **options: Any) -> BareResult:
    kernel = built.emulator(**{"detect": DETECT_ALL, **options})
    result = kernel.run(inputs.regions(op, built.norm), rows=rows, logits=op.kind == "head")
    assert_clean(kernel)
    return result


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint16 if x.dtype.itemsize == 2 else np.uint32)


def whole(kind: str, format: str, rows: int, cols: int) -> SingleOp:
    """Without the eps of its norm, so that rows of +-1 have an rms of exactly 1."""
    return SingleOp(kind, format, rows, cols, eps=0.0)


# Of one of eight ranks, and of the model unsharded where its columns differ: (rows that are run, whole op).
PRO: dict[str, tuple[int, SingleOp]] = {
    "qkv": (32, whole("head", "fp8_block", 3392, 6144)),
    "o_proj": (64, whole("project", "bf16", 6144, 2048)),
    "o_proj, unsharded": (64, whole("project", "bf16", 6144, 16384)),
    "dense gate and up": (32, whole("gate_up", "fp8_block", 4096, 6144)),
    "dense down": (64, whole("project", "fp8_block", 6144, 2048)),
    "dense down, unsharded": (64, whole("project", "fp8_block", 6144, 16384)),
    "lm_head": (32, whole("head", "bf16", 19072, 6144)),
    "router": (16, whole("router", "f32", 384, 6144)),
}


def named(ops: Iterable[str], nightly: Iterable[str] = ()) -> Any:
    """Parameters of a test; the nightly ones differ from others in nothing but a size or a format."""
    marks = {name: [pytest.mark.nightly] if name in nightly else [] for name in ops}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in marks.items()])


PRO_LOOPS = named(PRO, nightly=("o_proj, unsharded", "dense down, unsharded"))


@PRO_LOOPS
def test_numerics_at_the_shapes_of_mimo(make: Make, name: str) -> None:
    rows, like = PRO[name]
    op = dataclasses.replace(like, rows=rows)
    built = make(op, like)
    inputs = random_inputs(op, seed=1)
    worst = check(built, op, inputs, run(built, op, inputs))
    print(f"{name}: {worst:.2f} of the bound")


def check(built: Built, op: SingleOp, inputs: Inputs, result: BareResult) -> float:
    if op.kind == "experts":
        return max(check_experts(built, op, inputs, result))
    got = outcome(built, op, result)
    if op.kind == "project":
        got = result.partials(got.shape[1], op.rows)
    return reference(built, op, inputs.x).check(got)


# The gate and up matrix of an expert has 256 rows of either on one of eight ranks, all 2048 on one; they are
# the columns of the down matrix. Either loop is run with all its columns and few rows of the other.
EXPERT_UP = SingleOp("experts", "mxfp4", 128, 6144, experts=8, k=2)
EXPERT_DOWN = SingleOp("experts", "mxfp4", 512, 64, experts=24, k=8)
EXPERT_DOWN_WHOLE = SingleOp("experts", "mxfp4", 4096, 64, experts=12, k=8)
EXPERTS = {
    "gate and up": (EXPERT_UP, SingleOp("experts", "mxfp4", 512, 6144, experts=384, k=8)),
    "down": (EXPERT_DOWN, SingleOp("experts", "mxfp4", 512, 6144, experts=384, k=8)),
    "down, unsharded": (EXPERT_DOWN_WHOLE, SingleOp("experts", "mxfp4", 4096, 6144, experts=384, k=8)),
}


@named(EXPERTS, nightly=("down, unsharded",))
def test_numerics_of_the_experts(make: Make, name: str) -> None:
    op, like = EXPERTS[name]
    built = make(op, like)
    kind = "experts_up" if name == "gate and up" else "experts_down"
    every = one_op_tiles(like, PassContext(find_target(like.target), 16, 8)).ops
    (tiles,) = (o.tiles for o in every if o.kind == kind)
    (mine,) = (c.constants for c in built.package.program.classes if c.kind == kind)
    for constant in ("group", "chunk", "slots", "splits"):  # the loop is that of the whole op
        assert mine[f"tile_{constant}"] == tiles[constant]
    inputs = random_inputs(op, seed=2)
    print(f"{name}: {check(built, op, inputs, run(built, op, inputs)):.2f} of the bound")


# ----------------------------------------------------------------------------------------- sums of integers


def whole_numbers(built: Built, op: SingleOp, rng: np.random.Generator) -> Built:
    """The same kernel with weights so small and so coarse that every sum is exact in any order: multiples of
    1/2 whose sums stay below 2^23. A gate's weights have the signs of `row_signs`, so the gate is large."""
    norm = rng.integers(1, 4, built.norm.size).astype(np.float64)
    tensors: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    for name, old in built.weights.items():
        if op.format == "mxfp4":
            codes = rng.integers(0, 16, old.shape).astype(np.uint8)
            if "gate" in name:
                codes = codes & 7 | np.where(row_signs(op) < 0, 8, 0).astype(np.uint8)
            scales = rng.integers(127, 129, (old.shape[0], old.shape[1] // 32)).astype(np.uint8)
            tensors[name] = mxfp4_pack(codes)
            tensors[name.removesuffix(".weight") + ".weight_scale"] = scales
            weights[name] = mxfp4_dequantize(tensors[name], scales).astype(np.float64)
            continue
        most = {"bf16": 8, "f32": 256, "fp8_block": 15}[op.format]
        w = rng.integers(-most, most + 1, old.shape).astype(np.float64)
        if "gate" in name:
            w = np.abs(w) * row_signs(op)
        if op.format == "fp8_block":
            w = w.astype(np.float32).astype(FP8).astype(np.float64)
            shape = (-(-old.shape[0] // 128), -(-old.shape[1] // 128))
            scales = 2.0 ** rng.integers(-1, 2, shape)
            tensors[name], tensors[name + "_scale_inv"] = w.astype(FP8), scales.astype(np.float32)
            w = w * scales.repeat(128, 0).repeat(128, 1)[: old.shape[0], : old.shape[1]]
        else:
            tensors[name] = w.astype(BF16 if op.format == "bf16" else np.float32)
        weights[name] = w
    source = Synthetic(rng)
    source.tensors = tensors
    return dataclasses.replace(built, image=packed(built.package, source), weights=weights, norm=norm)


def row_signs(op: SingleOp) -> np.ndarray:
    """+-1 of each column."""
    return np.where(np.arange(op.cols) % 7 % 3 == 1, -1.0, 1.0)


@PRO_LOOPS
def test_sums_of_integers_are_exact(make: Make, name: str) -> None:
    """Each weight counts once, with its own activation, scale and norm weight: equality at the true columns.

    Rows of +-1 have an rms of 1, so the norm leaves the integers of its weights. A gate far above zero is its
    own silu: one product, one rounding.
    """
    rows, like = PRO[name]
    op, rng = dataclasses.replace(like, rows=rows), np.random.default_rng(3)
    built = whole_numbers(make(op, like), op, rng)
    if op.kind == "project":
        x = rng.integers(-8, 9, (8, op.cols)).astype(BF16)
        y = x.astype(np.float64)
    else:
        x = (row_signs(op) * np.where(rng.random((8, op.cols)) < 0.25, -1.0, 1.0)).astype(BF16)
        y = x.astype(np.float64) * built.norm
    result = run(built, op, Inputs(x))
    got = outcome(built, op, result)
    if op.kind == "project":
        got = result.partials(got.shape[1], op.rows)
    if op.kind == "gate_up":
        gate, up = (y @ built.weights[f"layers.0.w.{half}.weight"].T for half in ("gate", "up"))
        assert gate.min() > 100 and np.abs(up).max() > 100
        want = (gate.astype(np.float32) * up.astype(np.float32)).astype(BF16)
        assert (bits(got) == bits(want)).all()
        return
    want = y @ built.weights["layers.0.w.weight"].T
    assert np.abs(want).max() > 100 and (want.astype(np.float32) == want).all()
    assert (got == want).all()


# ------------------------------------------------------------------------------------- nothing but the row

SMALL = {
    "project-bf16": SingleOp("project", "bf16", 144, 1300),
    "project-f32": SingleOp("project", "f32", 48, 640),
    "project-fp8": SingleOp("project", "fp8_block", 144, 1300),
    "project-mxfp4": SingleOp("project", "mxfp4", 144, 1312),
    "head-bf16": SingleOp("head", "bf16", 203, 656),
    "head-fp8": SingleOp("head", "fp8_block", 203, 656),
    "router-f32": SingleOp("router", "f32", 40, 656),
    "gate_up-bf16": SingleOp("gate_up", "bf16", 200, 656),
    "gate_up-fp8": SingleOp("gate_up", "fp8_block", 200, 656),
    "gate_up-mxfp4": SingleOp("gate_up", "mxfp4", 200, 672),
    "experts-bf16": SingleOp("experts", "bf16", 200, 272, experts=9, k=3),
    "experts-mxfp4": SingleOp("experts", "mxfp4", 192, 672, experts=9, k=3),
    "experts-fp8": SingleOp("experts", "fp8_block", 200, 272, experts=9, k=3),
}
EVERY_LOOP = named(SMALL, nightly=("project-f32", "head-fp8", "gate_up-bf16", "experts-fp8", "experts-bf16"))


@EVERY_LOOP
def test_numerics_of_small_shapes(make: Make, name: str) -> None:
    op = SMALL[name]
    built, inputs = make(op), random_inputs(op, seed=4)
    check(built, op, inputs, run(built, op, inputs))


@EVERY_LOOP
def test_a_row_depends_on_nothing_but_itself(make: Make, name: str) -> None:
    """Its bits are the same alone, in every column, beside any rows, NaN or not, on any number of CTAs."""
    op = SMALL[name]
    built = make(op)
    mine, others = random_inputs(op, seed=5), random_inputs(op, seed=6)
    together = bits(outcome(built, op, run(built, op, mine)))
    assert len({row.tobytes() for row in together}) == 8
    others.x[1] = np.nan
    others.x[4] = np.inf
    for at in range(8):
        row = 5 * at % 8
        alone = run(built, op, mine.row(row, 0, others), rows=1, grid=2)
        assert (bits(outcome(built, op, alone))[0] == together[row]).all(), f"row {row} alone"
        beside = run(built, op, mine.row(row, at, others), rows=max(at + 1, 8 - at), grid=1 + at % 4)
        assert (bits(outcome(built, op, beside))[at] == together[row]).all(), f"row {row} at {at}"
    for grid in (1, 2, 3, 5):
        assert (bits(outcome(built, op, run(built, op, mine, grid=grid))) == together).all(), f"G = {grid}"


@EVERY_LOOP
def test_adversarial_schedules(make: Make, name: str) -> None:
    op = SMALL[name]
    built, inputs = make(op), random_inputs(op, seed=7)
    want = bits(outcome(built, op, run(built, op, inputs)))
    for schedule, landing, seed, grid in SCHEDULES:
        got = run(built, op, inputs, grid=grid, schedule=schedule, landing=landing, seed=seed)
        assert (bits(outcome(built, op, got)) == want).all(), (schedule, landing, seed, grid)


# ----------------------------------------------------------------------------------------------- more rows


BY_DAY = {"gate_up-fp8": 16, "experts-mxfp4": 64, "head-bf16": 64}
MORE_ROWS = [
    pytest.param(name, rows, marks=[] if BY_DAY.get(name) == rows else [pytest.mark.nightly])
    for name in SMALL
    for rows in (16, 32, 64)
]


@pytest.mark.parametrize(("name", "rows"), MORE_ROWS)
def test_steps_of_more_rows_give_the_same_bits(make: Make, name: str, rows: int) -> None:
    """Kernels for up to 16, 32 and 64 rows: float64, and each row as the kernel for eight makes it."""
    eight = SMALL[name]
    op = dataclasses.replace(eight, max_rows=rows)
    built, inputs = make(op), random_inputs(op, seed=8)
    result = run(built, op, inputs)
    check(built, op, inputs, result)
    got, order = bits(outcome(built, op, result)), np.random.default_rng(9).permutation(rows)
    for first in range(0, rows, 24):
        few = order[first : first + 8]
        same = bits(outcome(make(eight), eight, run(make(eight), eight, inputs.rows(few))))
        assert (same[: len(few)] == got[few]).all(), f"rows {few}"
    # Fewer rows than the kernel takes, in other columns, on another grid and another schedule.
    few = order[: rows - 5]
    fewer = run(built, op, inputs.rows(few), len(few), grid=5, schedule="pct", landing="last", seed=3)
    assert (bits(outcome(built, op, fewer))[: rows - 5] == got[few]).all()


# ------------------------------------------------------------------------------------- random legal shapes


@st.composite
def legal_ops(draw: st.DrawFn) -> SingleOp:
    """Any kind and format; rows that fill no tile, columns that fill no block; up to three layers."""
    kind = draw(st.sampled_from(("project", "gate_up", "router", "head", "experts")))
    format = draw(st.sampled_from(("bf16", "f32", "fp8_block", "mxfp4")))
    columns = st.integers(1, 60).map(lambda n: 32 * n if format == "mxfp4" else 16 * n)
    layers = draw(st.integers(1, 3)) if kind != "head" else 1
    if kind == "project":
        return SingleOp(kind, format, 16 * draw(st.integers(1, 16)), draw(columns), layers)
    if kind in ("router", "head"):
        return SingleOp(kind, format, draw(st.integers(2, 300)), draw(columns), layers)
    if kind == "gate_up":
        return SingleOp(kind, format, 2 * draw(st.integers(1, 150)), draw(columns), layers)
    width, hidden = draw(columns), 16 * draw(st.integers(1, 20))
    experts = draw(st.integers(1, 12))
    hidden = -(-hidden // 32) * 32 if format == "mxfp4" else hidden
    return SingleOp(kind, format, 2 * width, hidden, layers, experts, draw(st.integers(1, min(8, experts))))


def random_shape(directory: Path, op: SingleOp, rows: int, grid: int, seed: int) -> None:
    built, inputs = build(directory / "p", op, seed), random_inputs(op, seed)
    schedule, landing, _, _ = SCHEDULES[seed % len(SCHEDULES)]
    result = run(built, op, inputs, grid=grid, schedule=schedule, landing=landing, seed=seed)
    check(built, op, inputs, result)
    fewer = run(built, op, inputs, rows=rows)
    assert (bits(outcome(built, op, fewer))[:rows] == bits(outcome(built, op, result))[:rows]).all()


SHAPES = {
    "op": legal_ops(), "rows": st.integers(1, 8), "grid": st.integers(1, 7), "seed": st.integers(0, 999)
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "deadline": None, "derandomize": True, "database": None, "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip


@settings(max_examples=3, **OPTIONS)
@given(**SHAPES)
def test_random_shapes(
    tmp_path_factory: pytest.TempPathFactory, op: SingleOp, rows: int, grid: int, seed: int
) -> None:
    random_shape(tmp_path_factory.mktemp("shape"), op, rows, grid, seed)


@pytest.mark.nightly
@settings(max_examples=60, **OPTIONS)
@given(**SHAPES)
def test_many_random_shapes(
    tmp_path_factory: pytest.TempPathFactory, op: SingleOp, rows: int, grid: int, seed: int
) -> None:
    random_shape(tmp_path_factory.mktemp("shape"), op, rows, grid, seed)
