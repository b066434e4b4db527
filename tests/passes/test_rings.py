"""rings: slots fit what the ops put there, the whole fits the target, or the model is refused."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from tests.passes.helpers import FILE, Net, context, line_of, lower, refusal, tiles_until, tiny
from tilecc.emit.cuda import smem_bytes
from tilecc.ir.tile import TileGraph
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.passes.rings import (
    FIXED_BYTES,
    MAX_ACTIVATION_SLOTS,
    MIN_ACTIVATION_SLOTS,
    RING_BYTES,
    rings,
)
from tilecc.passes.roles import roles
from tilecc.target import show


def sizes(net: Net) -> dict[str, tuple[int, int]]:
    return {r.name: (r.slots, r.slot_bytes) for r in tiles_until(net.graph(), rings).rings}


def test_before_and_after() -> None:
    graph = tiles_until(Net().graph(), roles)
    ctx = context()
    assert graph.rings == ()
    made = {r.name: (r.slots, r.slot_bytes) for r in rings(graph, ctx).rings}
    # weights: a stage of the experts' down projection, two experts of one bf16 block, and their activations.
    # exchange: 4 warps of attention, each with the probabilities of one block and the maxima
    # and sums of 16 heads; a main loop over one K block leaves one partial.
    exchange = (2, 4 * (1024 + 128))
    assert made == {"weights": (12, 2 * 4096), "activations": (8, 2 * 2048), "exchange": exchange}
    (decision,) = (d for d in ctx.decisions if d.subject == "weights")
    assert decision.choice == "12 stages of 8192 B"
    needed = show(ctx.target.in_flight, "B")
    assert decision.reason == f"96 KiB in flight per SM; the memory system needs {needed}"


def test_the_largest_op_decides_the_slot() -> None:
    assert sizes(Net(hidden=512))["weights"] == (8, 4 * 4096)  # four K blocks a stage
    assert sizes(Net(hidden=256, formats={"router": "f32"}))["weights"] == (8, 2 * 8192)
    # keys and values of 16 positions of a global layer; a window of 8 has one block per consumer warp
    assert sizes(Net(dim=192, v_dim=128))["activations"] == (8, 16 * (192 + 128) * 2)
    assert sizes(Net(dim=192, v_dim=128))["exchange"] == (2, 4 * (1024 + 128))
    assert sizes(Net(layers=((128, "dense"),)))["exchange"] == (2, 4 * (3 * 1024 + 128))
    assert sizes(Net(dim=8, v_dim=2, rotary=4))["activations"] == (8, 2 * 2048)
    # eight K blocks of two tiles: four warps share the blocks, so a tile leaves four partials
    assert sizes(Net(hidden=1024, vocab=8192))["exchange"] == (2, 4 * (1024 + 128))


def test_activations_give_way_to_the_weight_ring() -> None:
    """The ring has 96 KiB before there are more than the fewest slots."""
    made = sizes(Net(hidden=2048, dim=448, v_dim=64, rotary=64, formats={"e_gate": "mxfp4", "e_up": "mxfp4"}))
    (stages, stage), (slots, slot) = made["weights"], made["activations"]
    assert stages * stage >= RING_BYTES and MIN_ACTIVATION_SLOTS <= slots < MAX_ACTIVATION_SLOTS
    left = 227 * 1024 - FIXED_BYTES - slots * slot - 2 * made["exchange"][1]
    assert stages * stage <= left < (stages + 1) * stage
    assert (left - slot) // stage * stage < RING_BYTES  # not one slot more would do


@pytest.mark.parametrize(
    "net", [Net(), Net(hidden=512, dim=192, v_dim=128), Net(hidden=512, dim=256, v_dim=128)]
)
def test_the_emitted_layout_fits_the_target(net: Net) -> None:
    """FIXED_BYTES must cover the barriers and the routing record of the emitted kernel."""
    ctx = context()
    assert smem_bytes(lower(net.graph(), ctx)[1]) <= ctx.target.smem_per_cta
    assert smem_bytes(tiny()[1]) <= ctx.target.smem_per_cta


def test_heads_that_do_not_fit() -> None:
    graph = Net(layers=((8, "dense"), (0, "dense")), hidden=512, dim=192, v_dim=128, rotary=64).graph()
    ctx = context()
    ctx = dataclasses.replace(ctx, target=dataclasses.replace(ctx.target, smem_per_cta=48 * 1024))
    found = refusal(lambda: tiles_until(graph, rings, ctx), "TC0223")
    assert found.message == "shared memory of `sm_90a` does not hold 3 weight stages"
    assert f"{48 * 1024} B per CTA; activations 3 x 10240 B, exchange 2 x 4608 B" in found.notes[0]
    assert found.span is not None
    assert (found.span.file, found.span.line) == (FILE, line_of(graph, "layers.0.attend"))
    assert found.help


def test_more_rows_than_shared_memory_holds() -> None:
    """The nearest number of rows that does fit is named, and does fit."""
    graph = Net(hidden=512, formats={"router": "f32"}).graph()

    def made(rows: int, smem: int) -> TileGraph:
        ctx = context()
        small = dataclasses.replace(ctx.target, smem_per_cta=smem)
        return tiles_until(graph, rings, dataclasses.replace(ctx, target=small, max_rows=rows))

    # 16 rows have the stages of 8 and longer activations. What 8 rows cannot have is refused for any.
    for rows, smem, help in ((16, 136, "nearest: --rows 8"), (64, 106, "use smaller attention heads")):
        found = refusal(functools.partial(made, rows, smem * 1024), "TC0223")
        assert found.span is not None and found.span.file == FILE
        assert found.help == (help,)
        assert made(rows, 227 * 1024).max_rows == rows
    assert made(8, 136 * 1024).max_rows == 8


@pytest.mark.parametrize("rows", [16, 32, 64])
def test_more_rows_keep_what_decides_the_bits(rows: int) -> None:
    graph = Net(hidden=1024, vocab=8192, formats={"e_gate": "mxfp4", "e_up": "mxfp4"}).graph()
    few = tiles_until(graph, rings)
    many = tiles_until(graph, rings, dataclasses.replace(context(), max_rows=rows))
    assert few.max_rows == 8 and many.max_rows == rows
    kept = 0
    for a, b in zip(few.ops, many.ops, strict=True):
        for key in ("splits", "warps_k", "chunk_blocks", "turns"):
            assert a.tiles.get(key) == b.tiles.get(key), (a.name, key)
            kept += key in a.tiles
        if "chunk" in b.tiles:
            per_split = -(-b.tiles["blocks"] // (1 if b.kind == "experts_down" else b.tiles["splits"]))
            chunk, warps = b.tiles["chunk"], b.tiles["warps_k"]
            assert chunk >= per_split or chunk % warps == 0 or warps % chunk == 0
    assert kept > 10 and not [d for rule in TILE_RULES for d in rule.check(many)]
