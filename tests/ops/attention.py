"""Attention alone: a package of one layer, its cache and queries laid out by numpy, a float64 reference.

Nothing here is shared with the kernel or with the model files: the layouts are written out again, the
reference is the textbook formula over a dense list of keys.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.ops.device import open_kernel, packaged
from tilecc.emit.single import SinglePackage, tiled, tiles_package
from tilecc.ir.loc import Loc
from tilecc.ir.tile import Space, TileGraph, TileOp, Weight
from tilecc.passes.context import PassContext
from tilecc.runtime.abi import Row
from tilecc.runtime.bare import BareKernel, BareResult
from tilecc.runtime.fragments import from_activations
from tilecc.schedules import Schedule
from tilecc.target import find_target
from tilecc.weights.image import build_image

BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
F32, F64 = NDArray[np.float32], NDArray[np.float64]
Place = tuple[int, int]
"""(position, sequence) of a row."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """One attention layer; window 0 is a global layer."""

    window: int
    heads: int = 16
    kv_heads: int = 1
    dim: int = 192
    v_dim: int = 128
    sink: bool = True
    kv: str = "bf16"
    max_context: int = 512
    max_seqs: int = 1
    max_rows: int = 8
    target: str = "sm_90a"
    consumers: int = 4

    @property
    def stored(self) -> Any:
        return BF16 if self.kv == "bf16" else E4M3


PRO_WINDOW = Shape(128, max_seqs=3)
"""A sliding layer of one of eight ranks of MiMo-V2.5-Pro."""
PRO_GLOBAL = Shape(0, sink=False, max_seqs=3)


class Sinks:
    """The sinks as the only tensor of a checkpoint."""

    def __init__(self, values: F32) -> None:
        self.values = values

    def tensor(self, name: str) -> F32:
        return self.values

    def names(self) -> list[str]:
        return ["sink"]


@dataclasses.dataclass
class Built:
    """A package of one attention layer. `kv_blocks` and `splits` are what the passes chose."""

    shape: Shape
    package: SinglePackage
    image: NDArray[np.uint8]
    sinks: F32

    def constant(self, name: str) -> int:
        classes = [c for c in self.package.program.classes if c.kind == "attention"]
        return int(classes[0].constants.get(name, 1))

    @property
    def kv_blocks(self) -> int:
        return self.constant("tile_kv_blocks")

    def emulator(self, grid: int = 3, **options: Any) -> BareKernel:
        return open_kernel(self.package, self.image, grid, **options)


def build(out: Path, shape: Shape, sinks: F32 | None = None, kv_blocks: int | None = None) -> Built:
    """Compile one attention layer. `kv_blocks` replaces the size of the cache that the passes chose."""
    s = shape
    schedule = Schedule(find_target(s.target))
    schedule.roles(consumer=s.consumers)
    ctx = PassContext(
        find_target(s.target), s.max_context, s.max_seqs, schedule=schedule, max_rows=s.max_rows
    )
    attrs: dict[str, Any] = {
        "heads": s.heads, "kv_heads": s.kv_heads, "head_dim": s.dim, "v_head_dim": s.v_dim,
        "window": s.window, "scale": s.dim**-0.5, "sink": s.sink, "kv": s.kv,
    }  # fmt: skip
    weights = (Weight("sink", "f32", "f32", "-", ("sink",), 1, s.heads),) if s.sink else ()
    uses = {"aux": "sink"} if s.sink else {}
    kinds = ("attention",) if s.window else ("attention", "attention_merge")
    ops = [TileOp(f"layers.0.{k}", k, k, 0, (k,), attrs, uses, loc=Loc("one op", 1)) for k in kinds]
    ops.append(TileOp("commit", "commit", "commit", -1, ("commit",), loc=Loc("one op", 1)))
    hidden = s.heads * s.v_dim
    graph = TileGraph(
        "attention",
        s.target,
        s.max_context,
        s.max_seqs,
        1,
        hidden - hidden % 16 or 16,
        1,
        tuple(ops),
        weights,
        max_rows=s.max_rows,
    )
    tiles = tiled(graph, ctx)
    assert not ctx.problems, ctx.problems
    if kv_blocks is not None:
        tiles = with_kv_blocks(tiles, kv_blocks)
    package = packaged(out, ("attention", shape, kv_blocks), lambda: tiles_package(out, tiles, ctx))
    if sinks is None:
        sinks = np.linspace(-3, 3, s.heads, dtype=np.float32).astype(BF16).astype(np.float32)
    image = np.zeros(package.manifest.image_bytes, np.uint8)
    build_image(package.manifest, Sinks(sinks), image)
    return Built(s, package, image, sinks)


def with_kv_blocks(graph: TileGraph, blocks: int) -> TileGraph:
    """The same graph with caches of `blocks` blocks a sequence."""
    (old,) = {op.tiles["kv_blocks"] for op in graph.ops if "kv_blocks" in op.tiles}
    ops = tuple(
        dataclasses.replace(op, tiles={**op.tiles, "kv_blocks": blocks}) if "kv_blocks" in op.tiles else op
        for op in graph.ops
    )
    buffers = tuple(
        dataclasses.replace(b, nbytes=b.nbytes // old * blocks) if b.space is Space.KV else b
        for b in graph.buffers
    )
    return dataclasses.replace(graph, ops=ops, buffers=buffers)


@dataclasses.dataclass
class Case:
    """Queries f32 [T, H, D] of rows at `places`, keys f32 [S, C, Hk, D] and values [S, C, Hk, Dv] of all
    positions of each sequence. Everything is a value of its storage format."""

    shape: Shape
    places: list[Place]
    q: F32
    k: F32
    v: F32

    def rows(self, *which: int) -> Case:
        """The same case with some of the rows, in the given order."""
        return dataclasses.replace(self, places=[self.places[i] for i in which], q=self.q[list(which)])


def random_case(shape: Shape, places: list[Place], seed: int = 0, scale: float = 1.0) -> Case:
    """Normal numbers; scores have standard deviation `scale`."""
    rng, s = np.random.default_rng(seed), shape
    length = max(p for p, _ in places) + 1

    def normal(*size: int, kind: Any = BF16, by: float = 1.0) -> F32:
        return (rng.standard_normal(size, np.float32) * by).astype(kind).astype(np.float32)

    return Case(
        s,
        places,
        normal(len(places), s.heads, s.dim, by=scale),
        normal(s.max_seqs, length, s.kv_heads, s.dim, kind=s.stored),
        normal(s.max_seqs, length, s.kv_heads, s.v_dim, kind=s.stored),
    )


# --------------------------------------------------------------------------------------- device layouts


def cache_bytes(case: Case, blocks: int, poison: bool = True) -> NDArray[np.uint8]:
    """The KV cache u8: [sequence][KV head][block slot][keys, values] in fragment order.

    Only what some row of the case sees is there; every other position, of the ring as of the rest of a
    block, is NaN.
    """
    s = case.shape
    steps, pairs = -(-s.dim // 16), -(-s.v_dim // 16)
    keys = np.zeros((s.max_seqs, s.kv_heads, blocks, 16, steps * 16), s.stored)
    values = np.zeros((s.max_seqs, s.kv_heads, blocks, 16, pairs * 16), s.stored)
    if poison:
        keys[..., : s.dim], values[..., : s.v_dim] = np.nan, np.nan
    for position, seq in case.places:
        for first in range(visible(s, position).start, position + 1, 4096):
            t = np.arange(first, min(first + 4096, position + 1))
            at = (seq, slice(None), t // 16 % blocks, t % 16)
            # Advanced indices apart from each other: numpy puts them first, [t, kv head, d].
            keys[(*at, slice(0, s.dim))] = case.k[seq, t].astype(s.stored)
            values[(*at, slice(0, s.v_dim))] = case.v[seq, t].astype(s.stored)
    # keys: position = 8 tile + g, dimension = 16 step + 8 half + 2 t + e -> [step][g][t][tile][half][e]
    k = keys.reshape(*keys.shape[:3], 2, 8, steps, 2, 4, 2).transpose(0, 1, 2, 5, 4, 7, 3, 6, 8)
    # values: position = 8 half + 2 t + e, dimension = 16 pair + 8 tile + g -> [pair][g][t][tile][half][e]
    v = values.reshape(*values.shape[:3], 2, 4, 2, pairs, 2, 8).transpose(0, 1, 2, 6, 8, 4, 7, 3, 5)
    lead = keys.shape[:3]
    both = np.concatenate([k.reshape(*lead, -1), v.reshape(*lead, -1)], axis=-1)
    return np.ascontiguousarray(both).view(np.uint8).reshape(-1)


def cache_values(raw: NDArray[np.uint8], shape: Shape, blocks: int) -> tuple[F64, F64]:
    """The inverse of `cache_bytes`: keys [S, Hk, blocks * 16, D] and values [S, Hk, blocks * 16, Dv]."""
    s = shape
    steps, pairs = -(-s.dim // 16), -(-s.v_dim // 16)
    both = raw.view(s.stored).reshape(s.max_seqs, s.kv_heads, blocks, -1)
    cut = steps * 256
    k = both[..., :cut].reshape(*both.shape[:3], steps, 8, 4, 2, 2, 2).transpose(0, 1, 2, 6, 4, 3, 7, 5, 8)
    v = both[..., cut:].reshape(*both.shape[:3], pairs, 8, 4, 2, 2, 2).transpose(0, 1, 2, 7, 5, 8, 3, 6, 4)
    keys, values = (
        np.ascontiguousarray(x).reshape(s.max_seqs, s.kv_heads, blocks * 16, -1).astype(np.float64)
        for x in (k, v)
    )
    return keys[..., : s.dim], values[..., : s.v_dim]


def query_values(raw: NDArray[np.uint8], shape: Shape, rows: int) -> F64:
    """The inverse of `query_fragments`: q [rows, H, D]."""
    s = shape
    steps, group = -(-s.dim // 16), s.heads // s.kv_heads
    parts = raw.view(BF16)[: rows * s.kv_heads * steps * 256].reshape(rows, s.kv_heads, steps, 8, 4, 2, 2, 2)
    full = np.ascontiguousarray(parts.transpose(0, 1, 6, 3, 2, 5, 4, 7)).reshape(rows, s.kv_heads, 16, -1)
    return full[:, :, :group, : s.dim].reshape(rows, s.heads, s.dim).astype(np.float64)


def query_fragments(case: Case) -> NDArray[Any]:
    """Region `queries`: bf16 A fragments [row][KV head][step][lane][4][2] of 16 heads by 16 dimensions."""
    s = case.shape
    steps, group = -(-s.dim // 16), s.heads // s.kv_heads
    full = np.zeros((len(case.places), s.kv_heads, 16, steps * 16), BF16)
    full[:, :, :group, : s.dim] = case.q.reshape(len(case.places), s.kv_heads, group, s.dim).astype(BF16)
    # head = 8 a + g, dimension = 16 step + 8 b + 2 t + e -> [step][g][t][b][a][e]
    parts = full.reshape(len(case.places), s.kv_heads, 2, 8, steps, 2, 4, 2).transpose(0, 1, 4, 3, 6, 5, 2, 7)
    return np.ascontiguousarray(parts).reshape(-1)


def table(places: list[Place]) -> list[Row]:
    return [(0, position, seq) for position, seq in places]


def launch(kernel: BareKernel, built: Built, case: Case, steps: int = 1) -> BareResult:
    """Run `steps` equal steps of the case's rows."""
    return kernel.run(
        {"queries": query_fragments(case)},
        table=[table(case.places)] * steps,
        kv=cache_bytes(case, built.kv_blocks),
    )


def attend(kernel: BareKernel, built: Built, case: Case, steps: int = 1) -> NDArray[Any]:
    """o bf16 [T, H * Dv] of the last step."""
    s, result = case.shape, launch(kernel, built, case, steps)
    o = from_activations(result.regions["attention"].view(BF16), s.heads * s.v_dim, s.max_rows)
    return o[: len(case.places)]


# -------------------------------------------------------------------------------------------- reference


def visible(shape: Shape, position: int) -> range:
    return range(max(0, position + 1 - shape.window) if shape.window else 0, position + 1)


@dataclasses.dataclass
class Reference:
    """o float64 [T, H * Dv], and how far float32 arithmetic may be from it, elementwise."""

    o: F64
    bound: F64


def reference(case: Case, sinks: F32, splits: int = 1) -> Reference:
    """Softmax attention in float64, and a bound for the kernel's arithmetic.

    The kernel rounds: products of scores are exact in float32 (8 by 8 bits) and their sum of D terms errs by
    less than D 2^-24 of the sum of magnitudes; e^x errs by (|x| + 4) 2^-24; a probability is cut to 16 bits;
    sums over the keys of one split and over the splits run in float32; the result is rounded to bf16, at
    most 2^-8 of it.
    """
    s = case.shape
    group = s.heads // s.kv_heads
    o, bound = (np.zeros((len(case.places), s.heads, s.v_dim)) for _ in range(2))
    unit = 2.0**-24
    for i, (position, seq) in enumerate(case.places):
        t = visible(s, position)
        for h in range(s.heads):
            q = case.q[i, h].astype(np.float64)
            k = case.k[seq, t.start : t.stop, h // group].astype(np.float64)
            v = case.v[seq, t.start : t.stop, h // group].astype(np.float64)
            scores = k @ q * s.dim**-0.5
            noise = (np.abs(k) @ np.abs(q)) * s.dim**-0.5 * (s.dim + 2) * unit
            top = max(scores.max(), float(sinks[h]) if s.sink else -np.inf)
            e = np.exp(scores - top)
            total = e.sum() + (np.exp(float(sinks[h]) - top) if s.sink else 0.0)
            p = e / total
            # Of a key's weight: its own score and that of the maximum, two exponentials, the cut to 16 bits.
            each = noise + noise.max() + 2 * (np.abs(scores - top) + 4) * unit + 2.0**-16
            sums = (3 * (-(-len(t) // splits)) / 16 + 16 + 4 * splits + len(t) / splits) * unit
            o[i, h] = p @ v
            bound[i, h] = (p * each) @ np.abs(v) + (p @ np.abs(v)) * (float(p @ each) + 2 * sums)
    shape = (len(case.places), s.heads * s.v_dim)
    o, bound = o.reshape(shape), bound.reshape(shape)
    # Exponentials and reciprocals below 2^-126 are flushed to zero.
    return Reference(o, bound + 2.0**-8 * (np.abs(o) + bound) + 2.0**-116)


def check(got: NDArray[Any], want: Reference) -> float:
    """Raise if the kernel is out of bounds; returns the largest error over the largest value."""
    error = np.abs(got.astype(np.float64) - want.o)
    assert np.isfinite(got.astype(np.float32)).all()
    assert np.abs(want.o).max() > 1e-3  # never on zeros
    worst = float((error / want.bound).max())
    assert worst <= 1.0, (
        f"{worst:.2f} of the bound, {error.max() / np.abs(want.o).max():.2e} of the largest value"
    )
    return float(error.max() / np.abs(want.o).max())


def bits(x: NDArray[Any]) -> NDArray[np.uint16]:
    return np.ascontiguousarray(x).view(np.uint16)
