"""tile: tile spaces, K splits, boxes and buffers; sizes that do not fit are refused at the op's line."""

from __future__ import annotations

import math

import pytest

from tests.passes.helpers import FILE, Net, context, line_of, refusal, tiles_until, tiny
from tilecc.ir.graph import Graph
from tilecc.ir.rows import BASE_ROWS as ROWS
from tilecc.ir.tile import Access, Space, TileGraph
from tilecc.passes.tile import KV_BLOCK, MAX_SPLITS, tile
from tilecc.weights.layout import matrix_entry


def tiled(net: Net) -> TileGraph:
    return tiles_until(net.graph(), tile)


def test_a_projection() -> None:
    sizes = {"heads": 16, "kv_heads": 2, "v_dim": 16}  # o_proj is [32, 256]: two m16 tiles, two K blocks
    before = tiles_until(Net(**sizes).graph(), None).op("layers.0.o_proj")  # type: ignore[arg-type]
    after = tiled(Net(**sizes)).op("layers.0.o_proj")  # type: ignore[arg-type]
    assert (before.tiles, before.reads, before.writes) == ({}, (), ())
    stage = {"group": 1, "chunk": 1, "act_chunk": 1, "slots": 1, "warps_k": 1}
    assert after.tiles == {"tiles": 2, "blocks": 2, "splits": 2, "tasks": 4, **stage}
    assert after.reads == (Access("attention", ((0, 8), (0, 256))),)
    assert after.writes == (Access("partials", ((0, 2), (0, 8), (0, 128))),)


def test_splits_fill_the_machine_and_are_limited() -> None:
    ctx = context()
    graph = tiles_until(Net(hidden=2048, heads=64, kv_heads=4, width=4096).graph(), tile, ctx)
    # 128 m16 tiles, 132 SMs: 4 tiles and a quarter of K per CTA take 4 * 4096 + 2048 B per block of that
    # quarter, one tile and all of K would take 4 * (4096 + 2048) B.
    for name, blocks in (("layers.0.o_proj", 4), ("layers.0.down", 32)):
        tiles = graph.op(name).tiles
        assert (tiles["splits"], tiles["group"], tiles["tasks"]) == (4, 4, 128) and tiles["blocks"] == blocks
    assert tiled(Net()).op("layers.0.o_proj").tiles["splits"] == 1  # no more splits than K blocks
    assert tiled(Net()).op("layers.1.experts_down").tiles["splits"] == 3  # two experts each
    assert tiled(Net(experts=8)).op("layers.1.experts_down").tiles["splits"] == MAX_SPLITS
    assert tiled(Net(experts=3)).op("layers.1.experts_down").tiles["splits"] == 3
    assert any(d.subject == "o_proj" and d.choice == "4 K splits" for d in ctx.decisions)


@pytest.mark.parametrize(
    "net",
    [
        Net(),
        Net(hidden=96, width=40, expert_width=24, heads=6, kv_heads=3, dim=40, v_dim=24, rotary=12),
        Net(hidden=160, heads=16, kv_heads=1, dim=24, v_dim=2, rotary=24, vocab=100),
        Net(experts=300, k=8, layers=((8, "moe"),)),
    ],
    ids=["small", "odd", "one-kv-head", "many-experts"],
)
def test_tiles_and_blocks_are_those_of_the_weight_image(net: Net) -> None:
    """The kernel addresses blocks by these numbers, the image is laid out by tilecc.weights.layout."""
    graph = tiled(net)
    weights = {w.name: w for w in graph.weights}
    seen = 0
    for op in graph.ops:
        if "chunk" in op.tiles:
            w = weights[op.weights["matrix"]]
            args = {k: int(v) for k, v in w.args.items()}
            entry = matrix_entry(w.name, w.format, w.rule, w.sources, w.rows, w.cols, w.experts, **args)  # type: ignore[arg-type]
            assert (op.tiles["tiles"], op.tiles["blocks"]) == (entry.tiles, entry.k_blocks), op.name
            seen += 1
    assert seen >= 6


def test_tasks_cover_every_tile_split_and_expert() -> None:
    for op in (o for o in tiny()[0].ops if "chunk" in o.tiles):
        slots = min(16, ROWS * 4) if op.kind == "experts_up" else 1
        assert (
            op.tiles["tasks"] == math.ceil(op.tiles["tiles"] / op.tiles["group"]) * op.tiles["splits"] * slots
        )


def test_buffers_are_as_large_as_the_largest_layer_needs() -> None:
    graph = tiled(Net(layers=((0, "dense"), (8, "moe"), (0, "moe"))))
    buffers = {b.name: b for b in graph.buffers}
    assert (buffers["x"].shape, buffers["x"].nbytes) == ((8, 128), 8 * 128 * 2)
    assert buffers["partials"].nbytes == 3 * 8 * 128 * 4  # the experts' three splits; o_proj has one
    assert buffers["hidden"].nbytes == 8 * 128 * 2  # 48 columns, padded
    assert buffers["expert_hidden"].shape == (6, 8, 16)
    assert buffers["routes"].shape == (3, 8, 2)
    # 8 rows, 2 KV heads, 2 splits: one pair of value tiles of all 16 heads, then maximum and sum of each
    assert buffers["attention_partials"].nbytes == 8 * 2 * 2 * (16 * 16 + 16 * 2) * 4
    spaces = {b.name: b.space for b in graph.buffers}
    assert spaces["routing"] is Space.CTA and spaces["tokens"] is spaces["logits"] is Space.IO
    assert [n for n, s in spaces.items() if s is Space.KV] == ["kv.0", "kv.1", "kv.2"]
    for op in graph.ops:
        for access in (*op.reads, *op.writes):
            assert all(hi <= n for (_, hi), n in zip(access.box, buffers[access.buffer].shape, strict=True))


def test_a_layer_logs_its_own_routes() -> None:
    graph = tiled(Net(layers=((8, "moe"), (8, "moe"))))
    boxes = [a.box[0] for op in graph.ops for a in op.writes if a.buffer == "routes"]
    assert boxes == [(0, 1), (1, 2)]


@pytest.mark.parametrize("window", [1, 8, 9, 15, 16, 17, 128])
def test_the_ring_of_a_sliding_layer_holds_the_window_and_the_rows_of_a_step(window: int) -> None:
    """Any `window + ROWS - 1` consecutive positions must lie in different places of the ring."""
    graph = tiles_until(Net(layers=((window, "dense"),)).graph(), tile, context(max_context=4096))
    blocks = graph.op("layers.0.qkv").tiles["kv_blocks"]
    for first in range(KV_BLOCK):
        used = {(first + i) // KV_BLOCK for i in range(window + ROWS - 1)}
        assert len(used) <= blocks
    assert blocks * KV_BLOCK < window + ROWS + 2 * KV_BLOCK
    (kv,) = (b for b in graph.buffers if b.name == "kv.0")
    # 2 sequences, 2 KV heads; a block: 16 keys of 16 dims and 16 values of 8, which are padded to 16, bf16
    assert kv.nbytes == 2 * 2 * blocks * (16 * 16 * 2 + 16 * 16 * 2)


@pytest.mark.parametrize(
    ("length", "kv_heads", "splits"),
    [(16, 2, 2), (256, 2, 4), (1024, 2, 16), (1 << 17, 2, 32), (1 << 17, 1, 64), (1 << 17, 4, 16)],
)
def test_splits_of_a_global_layer_occupy_the_sms(length: int, kv_heads: int, splits: int) -> None:
    """Two tasks of four rows per split and KV head; a power of two, at most the chunks of 64 positions."""
    ctx = context(max_context=length)
    graph = tiles_until(Net(layers=((0, "dense"),), heads=4, kv_heads=kv_heads).graph(), tile, ctx)
    attention, merge = graph.op("layers.0.attention"), graph.op("layers.0.attention_merge")
    assert attention.tiles["splits"] == merge.tiles["splits"] == splits
    assert attention.tiles["tasks"] == 2 * kv_heads * splits
    assert any(d.choice == f"{splits} for global layers" for d in ctx.decisions)


def test_a_ring_is_never_longer_than_the_context() -> None:
    graph = tiles_until(Net(layers=((512, "dense"),)).graph(), tile, context(max_context=40))
    assert graph.op("layers.0.qkv").tiles["kv_blocks"] == 3


def mxfp4_gate() -> Graph:
    return Net(hidden=48, formats={"e_gate": "mxfp4", "e_up": "mxfp4"}).graph()


def mxfp4_down() -> Graph:
    return Net(formats={"e_down": "mxfp4"}).graph()


REFUSED: list[tuple[Graph, str, str, str]] = [
    (Net(hidden=40).graph(), "x", "hidden size 40 is not a multiple of 16", "hidden size 32 or 48"),
    (Net(hidden=8).graph(), "x", "hidden size 8 is not a multiple of 16", "hidden size 16"),
    (Net(heads=34, kv_heads=2).graph(), "layers.0.z", "at most 16 may share one KV head",
     "32 query heads or 17 KV heads"),
    (Net(heads=48, kv_heads=2).graph(), "layers.0.z", "at most 16 may share", "32 query heads or 3 KV heads"),
    (Net(heads=5, kv_heads=2).graph(), "layers.0.z", "5 query heads do not divide into 2 KV heads",
     "4 or 6 query heads"),
    (Net(heads=35, kv_heads=2).graph(), "layers.0.z", "35 query heads do not divide", "32 query heads"),
    (Net(v_dim=7).graph(), "layers.0.z", "value head size 7 is odd", "value head size 6 or 8"),
    (Net(rotary=0).graph(), "layers.0.z", "rotary size is 0", "rotary size 2"),
    (Net(experts=16, k=9).graph(), "layers.1.route", "top-9 of 16 experts: at most 8 of 1024", "top-8 of 16"),
    (Net(experts=1025).graph(), "layers.1.route", "top-2 of 1025 experts", "top-2 of 1024"),
    (Net(experts=1, k=2).graph(), "layers.1.route", "top-2 of 1 experts", "top-1 of 1"),
    (mxfp4_gate(), "layers.1.experts", "48 columns; MXFP4 scales cover 32", "32 or 64 columns"),
    (mxfp4_down(), "layers.1.experts", "16 columns; MXFP4 scales cover 32", "32 columns"),
    (Net(dim=256, v_dim=256).graph(), "layers.0.z", "at most 144 fit", "value size 160 or head size 64"),
    (Net(dim=1024, v_dim=16).graph(), "layers.0.z", "at most 144 fit", "head size 544"),
    (Net(layers=((8, "dense"),), dim=640, v_dim=128).graph(), "layers.0.z", "at most 144", "head size 512"),
]  # fmt: skip
"""Graph, place, part of the message, nearest legal size."""


@pytest.mark.parametrize(
    ("graph", "node", "part", "nearest"), REFUSED, ids=[f"{part[:20]}-{n}" for _, _, part, n in REFUSED]
)
def test_sizes_that_do_not_fit(graph: Graph, node: str, part: str, nearest: str) -> None:
    found = refusal(lambda: tiles_until(graph, tile), "TC0222")
    assert part in found.message
    assert found.span is not None
    assert (found.span.file, found.span.line) == (FILE, line_of(graph, node))
    assert found.help[0] == f"nearest: {nearest}"


MXFP4_EXPERTS = {"e_gate": "mxfp4", "e_up": "mxfp4"}


@pytest.mark.parametrize(
    "net",
    [
        Net(hidden=32), Net(hidden=48), Net(hidden=16), Net(heads=32, kv_heads=2), Net(heads=34, kv_heads=17),
        Net(heads=48, kv_heads=3), Net(heads=6, kv_heads=2), Net(v_dim=6), Net(rotary=2),
        Net(experts=16, k=8), Net(experts=1024), Net(experts=1, k=1),
        Net(hidden=64, formats=MXFP4_EXPERTS), Net(expert_width=32, formats={"e_down": "mxfp4"}),
        Net(dim=256, v_dim=160), Net(dim=64, v_dim=256), Net(dim=544, v_dim=16),
        Net(layers=((8, "dense"),), dim=512, v_dim=128),
    ],
    ids=str,
)  # fmt: skip
def test_the_sizes_named_as_nearest_are_legal(net: Net) -> None:
    assert tiles_until(net.graph(), tile).ops
