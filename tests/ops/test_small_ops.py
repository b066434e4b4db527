"""The small ops on the critical path at the sizes of MiMo-V2.5-Pro, against numpy: rope and KV append,
routing, argmax. All detectors of the emulator are on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ops.attention import (
    PRO_GLOBAL,
    Place,
    Shape,
    cache_bytes,
    cache_values,
    query_values,
    random_case,
)
from tests.ops.device import open_kernel, packaged
from tests.ops.one_op import SCHEDULES, Built, assert_clean, build, norm_inputs, normalised, packed
from tilecc.emit.single import SingleOp, SinglePackage, graph_package
from tilecc.ir.loc import Loc
from tilecc.ir.tile import TileGraph, TileOp, Weight
from tilecc.passes.context import PassContext
from tilecc.runtime.bare import BareKernel
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.target import find_target
from tilecc.weights.formats import fp8_block_dequantize, fp8_block_quantize
from tilecc.weights.image import build_image
from tilecc.weights.synthetic import BF16, Synthetic

HIDDEN, ROTARY, THETA, VALUE_SCALE = 6144, 64, 1e7, 0.612


# ------------------------------------------------------------------------------------------ rope, KV append


def test_the_inverse_layouts_are_inverse() -> None:
    for shape in (PRO_GLOBAL, Shape(8, heads=4, kv_heads=2, dim=24, v_dim=20, kv="fp8", max_seqs=2)):
        case = random_case(shape, [(79, 0)])
        keys, values = cache_values(cache_bytes(case, 5, poison=False), shape, 5)
        seen = slice(80 - shape.window if shape.window else 0, 80)
        assert (keys[0, :, seen] == case.k[0, seen].transpose(1, 0, 2)).all()
        assert (values[0, :, seen] == case.v[0, seen].transpose(1, 0, 2)).all()


@dataclasses.dataclass(frozen=True)
class Projection:
    """One fused projection of a rank: matrix float64 [rows, hidden], norm, blocks of the cache."""

    package: SinglePackage
    shape: Shape
    image: np.ndarray
    w: np.ndarray
    norm: np.ndarray
    blocks: int

    def emulator(self, grid: int = 3, **options: Any) -> BareKernel:
        return open_kernel(self.package, self.image, grid, detect=DETECT_ALL, **options)


def qkv_package(out: Path, shape: Shape, format: str = "bf16", hidden: int = HIDDEN) -> Projection:
    s = shape
    heads: dict[str, Any] = {
        "chunks": 1, "heads": s.heads, "kv_heads": s.kv_heads, "head_dim": s.dim, "v_head_dim": s.v_dim,
    }  # fmt: skip
    rows = (s.heads + s.kv_heads) * s.dim + s.kv_heads * s.v_dim
    attrs = {"source": "norm", "eps": 1e-5, **heads, "rotary": ROTARY, "value_scale": VALUE_SCALE,
             "window": s.window, "kv": s.kv}  # fmt: skip
    weights = (
        Weight("w", "matrix", format, "qkv", ("w",), rows, hidden, 0, {**heads, "rotary": ROTARY}),
        Weight("rope", "rope", "f32", "-", (), s.max_context, ROTARY // 2, 0, {"theta": THETA}),
    )
    uses = {"matrix": "w", "aux": "rope"}
    ops = (
        TileOp("layers.0.qkv", "qkv", "qkv", 0, ("qkv",), attrs, uses, loc=Loc("one op", 1)),
        TileOp("commit", "commit", "commit", -1, ("commit",), loc=Loc("one op", 1)),
    )
    ctx = PassContext(find_target(s.target), s.max_context, s.max_seqs)
    graph = TileGraph("qkv", s.target, s.max_context, s.max_seqs, 1, hidden, 1, ops, weights)
    package = packaged(out, ("qkv", shape, format, hidden), lambda: graph_package(out, graph, ctx))
    source = Synthetic(np.random.default_rng(5))
    norm = source.rng.uniform(0.5, 1.5, hidden).astype(BF16)
    w = source.rng.standard_normal((rows, hidden), np.float32) / 40
    if format == "bf16":
        source.tensors["w"] = w.astype(BF16)
        w = source.tensors["w"].astype(np.float32)
    else:
        source.tensors["w"], source.tensors["w_scale_inv"] = fp8_block_quantize(w)
        w = fp8_block_dequantize(source.tensors["w"], source.tensors["w_scale_inv"])
    blocks = int(package.program.op_class("Qkv").constants["tile_kv_blocks"])
    return Projection(package, s, packed(package, source), w.astype(np.float64), norm, blocks)


def rope(x: np.ndarray, position: int) -> np.ndarray:
    """NeoX pairs (j, j + 32) of the first 64 dimensions, in float64."""
    half = ROTARY // 2
    angle = position * THETA ** (-2.0 * np.arange(half) / ROTARY)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., :half], x[..., half:ROTARY]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., ROTARY:]], axis=-1)


@pytest.mark.parametrize(("kv", "format"), [("bf16", "bf16"), ("fp8", "fp8_block")])
def test_rope_and_append_of_the_fused_projection(tmp_path: Path, kv: str, format: str) -> None:
    """Eight rows of three sequences at positions up to 8,191: queries, keys and values land where attention
    reads them, everything else in the cache stays."""
    shape = dataclasses.replace(PRO_GLOBAL, kv=kv, max_context=8192)
    projection = qkv_package(tmp_path / "p", shape, format)
    kernel, w, norm, blocks = projection.emulator(), projection.w, projection.norm, projection.blocks
    places = [(0, 0), (15, 1), (16, 1), (8191, 2), (4000, 0), (4001, 0), (31, 2), (17, 1)]
    x = np.random.default_rng(6).standard_normal((8, HIDDEN)).astype(BF16)
    before = np.full(kernel.manifest.kv_bytes, 0x5A, np.uint8)
    result = kernel.run(
        norm_inputs(x, HIDDEN, norm.astype(np.float64)), table=[[(0, p, s) for p, s in places]], kv=before
    )
    assert_clean(kernel)
    q = query_values(result.regions["queries"], shape, 8)
    keys, values = cache_values(result.kv, shape, blocks)
    old_keys, old_values = cache_values(before, shape, blocks)

    y = normalised(x, norm.astype(np.float64))
    z = y @ w.T
    # Sums of 6,144 exact products in float32; a rounding of y that falls on the other side moves by 2^-8 of
    # it; angles are float32, so at position p they are wrong by p 2^-24.
    sums = (np.abs(y) @ np.abs(w).T) * HIDDEN * 2.0**-24
    slack = sums.max() + 8 * 2.0**-8 * np.abs(y).max() * np.abs(w).max()
    cut = shape.heads * shape.dim
    for row, (p, s) in enumerate(places):
        spin = np.abs(z[row]).max() * max(p, 1) * 2.0**-23
        want_q = rope(z[row, :cut].reshape(16, 192), p)
        assert np.abs(q[row] - want_q).max() <= 2.0**-8 * np.abs(want_q).max() + slack + spin
        want_k, want_v = rope(z[row, cut : cut + 192], p), VALUE_SCALE * z[row, cut + 192 :]
        for got, want in ((keys[s, 0, p], want_k), (values[s, 0, p], want_v)):
            unit = 2.0**-8 if kv == "bf16" else 2.0**-4
            assert np.abs(want).max() > 1
            assert (np.abs(got - want) <= unit * np.abs(want) + slack + spin + (kv == "fp8") * 2.0**-10).all()
        old_keys[s, 0, p], old_values[s, 0, p] = keys[s, 0, p], values[s, 0, p]
    assert (keys == old_keys).all() and (values == old_values).all()


def projected(projection: Projection, x: np.ndarray, places: list[Place], **options: Any) -> list[bytes]:
    """Bits of query, key and value of each row."""
    shape = projection.shape
    kernel = projection.emulator(**options)
    regions = norm_inputs(x, projection.norm.size, projection.norm.astype(np.float64))
    result = kernel.run(regions, table=[[(0, p, s) for p, s in places]])
    assert_clean(kernel)
    q = query_values(result.regions["queries"], shape, len(places))
    keys, values = cache_values(result.kv, shape, projection.blocks)
    return [
        q[i].tobytes() + keys[s, :, p].tobytes() + values[s, :, p].tobytes()
        for i, (p, s) in enumerate(places)
    ]


@pytest.mark.parametrize(("kv", "format"), [("bf16", "bf16"), ("fp8", "fp8_block")])
def test_a_projected_row_depends_on_nothing_but_itself(tmp_path: Path, kv: str, format: str) -> None:
    """Alone, in every column, beside other rows, on any number of CTAs, in any order of events."""
    shape = Shape(0, heads=6, kv_heads=2, dim=96, v_dim=40, kv=kv, max_context=64, max_seqs=3)
    projection = qkv_package(tmp_path / "p", shape, format, hidden=400)
    places = [(0, 0), (15, 1), (16, 1), (63, 2), (40, 0), (41, 0), (31, 2), (17, 1)]
    x = np.random.default_rng(7).standard_normal((8, 400)).astype(BF16)
    together = projected(projection, x, places)
    assert len(set(together)) == 8
    for i in range(8):
        assert projected(projection, x[i : i + 1], [places[i]]) == [together[i]], f"row {i} alone"
        order = [(i + 3 * n) % 8 for n in range(1 + i)][::-1]
        got = projected(projection, x[order], [places[n] for n in order], grid=1 + i % 5)
        assert got == [together[n] for n in order], f"rows {order}"
    for schedule, landing, seed, grid in SCHEDULES:
        got = projected(projection, x, places, schedule=schedule, landing=landing, seed=seed, grid=grid)
        assert got == together, (schedule, landing, seed, grid)


# -------------------------------------------------------------------------------------------------- routing

EXPERTS, TOP = 384, 8


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """384 experts, top 8, with experts of width 8 on a hidden size of 128."""
    op = SingleOp("experts", "bf16", 16, 128, experts=EXPERTS, k=TOP)
    return build(tmp_path_factory.mktemp("experts") / "p", op)


def with_bias(built: Built, bias: np.ndarray) -> Built:
    entry = next(e for e in built.package.manifest.image if e.kind == "f32")
    image = built.image.copy()
    image[entry.offset : entry.offset + 4 * bias.size] = bias.astype(np.float32).view(np.uint8)
    return dataclasses.replace(built, image=image)


def choose(logits: np.ndarray, bias: np.ndarray) -> list[int]:
    """Larger score, then lower id, NaN last. Scores that the caller gives must be equal or clearly apart."""
    with np.errstate(over="ignore"):
        score = 1 / (1 + np.exp(-logits.astype(np.float64))) + bias
    key = np.where(np.isnan(score), 0, -score)
    return sorted(range(EXPERTS), key=lambda e: (np.isnan(score[e]), key[e], e))[:TOP]


def mixture(built: Built, x: np.ndarray, logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    y = normalised(x, built.norm)
    want = np.zeros((8, 128))
    for row in range(8):
        with np.errstate(over="ignore"):
            sigma = 1 / (1 + np.exp(-logits[row, chosen[row]].astype(np.float64)))
        for e, weight in zip(chosen[row], sigma / (sigma.sum() + 1e-20), strict=True):
            gate, up = (y[row] @ built.weights[f"layers.0.up.{e}.{n}.weight"].T for n in ("gate", "up"))
            hidden = (gate / (1 + np.exp(-gate)) * up).astype(np.float32).astype(BF16).astype(np.float64)
            want[row] += weight * (hidden @ built.weights[f"layers.0.down.{e}.weight"].T)
    return want


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(logits [8, 384], bias [384]) by name. Random scores are 1/2048 apart or more."""
    rng = np.random.default_rng(8)
    zero = np.zeros(EXPERTS)

    def spread() -> np.ndarray:
        sigma = (np.stack([rng.permutation(EXPERTS) for _ in range(8)]) + 1) / 400
        return np.log(sigma / (1 - sigma)).astype(np.float32)

    apart = np.full((8, EXPERTS), -4.0, np.float32)
    for row in range(8):
        apart[row, row::48] = 2.0 + np.arange(8) / 8  # experts row, row + 48, ...: 64 distinct ones
    nan = spread()
    nan[:, ::2] = np.nan
    few = np.full((8, EXPERTS), np.nan, np.float32)
    few[:, [383, 5, 100]] = [1.0, 0.0, 2.0]
    ends = spread()
    ends[:, 7], ends[:, 9] = np.inf, -np.inf
    bias = np.zeros(EXPERTS)
    bias[[11, 380]] = 4.0, 3.0  # chosen whatever their scores are, which alone are their weights
    return {
        "random": (spread(), zero),
        "all equal": (np.full((8, EXPERTS), 0.25, np.float32), zero),
        "two values": (
            np.where(np.arange(EXPERTS) % 40 == 7, 1.0, np.zeros((8, 1))).astype(np.float32),
            zero,
        ),
        "one set": (spread()[:1].repeat(8, 0), zero),
        "64 distinct": (apart, zero),
        "half NaN": (nan, zero),
        "five NaN chosen": (few, zero),
        "infinite": (ends, zero),
        "bias decides": (spread(), bias),
    }


@pytest.mark.parametrize("name", cases())
def test_routing_of_384_experts(experts: Built, name: str) -> None:
    logits, bias = cases()[name]
    built = with_bias(experts, bias)
    x = np.random.default_rng(9).standard_normal((8, 128)).astype(BF16)
    inputs = {**norm_inputs(x, 128, built.norm), "router_logits": logits}
    kernel = built.emulator(detect=DETECT_ALL)
    result = kernel.run(inputs)
    assert_clean(kernel)
    chosen = result.regions["routes"].view(np.uint32).reshape(8, TOP)
    assert [list(row) for row in chosen] == [choose(logits[r], bias) for r in range(8)]
    distinct = len(np.unique(chosen))
    assert name != "64 distinct" or distinct == 64
    assert name not in ("one set", "all equal") or distinct == TOP
    if not np.isnan(logits[0, chosen[0]]).any():
        got = result.partials(built.constant("ExpertsDown", "tile_splits"), 128)
        want = mixture(built, x, logits, chosen)
        # A bf16 rounding of the hidden vector, and one ulp of an input may flip.
        assert np.abs(got - want).max() <= np.abs(want).max() * 2.0**-7 and np.abs(want).max() > 1
    # A row chooses the same alone.
    one = {
        **norm_inputs(np.roll(x, -5, axis=0), 128, built.norm),
        "router_logits": np.roll(logits, -5, axis=0),
    }
    alone = built.emulator(detect=DETECT_ALL, grid=2).run(one, rows=1)
    assert (alone.regions["routes"].view(np.uint32)[:TOP] == chosen[5]).all()


# --------------------------------------------------------------------------------------------------- argmax

VOCAB = 152576 // 8


@pytest.mark.parametrize("grid", [1, 5, 132])
def test_argmax_over_an_eighth_of_the_vocabulary(tmp_path: Path, grid: int) -> None:
    """Ties within a tile, between tiles and between CTAs go to the lower id; NaN loses against everything."""
    built = build(tmp_path / "p", SingleOp("head", "bf16", VOCAB, 128))
    entry = next(e for e in built.package.manifest.image if e.kind == "matrix")
    w = built.weights["layers.0.w.weight"].astype(BF16)
    x = np.random.default_rng(10).standard_normal((8, 128)).astype(BF16)
    y = normalised(x, built.norm)
    best = (y @ w.astype(np.float64).T).argmax(axis=1)
    # The best row of the first four token rows stands at further places: the lowest counts.
    for row, others in enumerate(([3], [best[1] - 1, best[1] + 8], [VOCAB - 1], [100, 9000, 18000])):
        for other in others:
            w[other] = w[best[row]]
    w[50:60] = np.nan
    w[VOCAB - 3] = np.nan
    source = Synthetic(np.random.default_rng(0))
    source.tensors = {"layers.0.w.weight": w}
    assert entry.sources == ["layers.0.w.weight"]
    image = np.zeros(built.package.manifest.image_bytes, np.uint8)
    build_image(built.package.manifest, source, image)
    kernel = dataclasses.replace(built, image=image).emulator(grid=grid, detect=DETECT_ALL)
    result = kernel.run(norm_inputs(x, 128, built.norm), logits=True)
    assert_clean(kernel)
    assert result.logits is not None
    got = result.logits[0]
    assert np.isnan(got).sum() == 8 * 11
    clean = np.where(np.isnan(got), -np.inf, got)
    first = [int(np.flatnonzero(row == row.max())[0]) for row in clean]
    assert [int(t) for t in result.tokens[0]] == first
    assert first[0] == min(3, best[0]) and first[1] <= best[1] - 1
    assert sum(int((row == row.max()).sum() > 1) for row in clean) >= 4  # there were ties to break
