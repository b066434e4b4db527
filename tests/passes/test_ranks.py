"""Several ranks in the TileGraph: pushed terms, their flags, and the rule that proves the exchanges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.passes.helpers import context, tiles_until
from tests.passes.test_shard import NET, chunked, sharded
from tilecc.ir.tile import HandOff, HandOffKind, Space, TileGraph, TileOp
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import verify
from tilecc.passes.pipeline import TILE_PASSES

RANKS = 4


def tiles() -> TileGraph:
    return tiles_until(sharded(chunked(NET), RANKS), TILE_PASSES[-1], context())


def test_the_tiles_of_a_rank_are_sound_and_print() -> None:
    graph = tiles()
    assert verify(graph, TILE_RULES) == []
    assert TileGraph.from_text(graph.to_text()) == graph
    assert graph.ranks == RANKS
    kinds = [op.kind for op in graph.ops]
    assert kinds[-3:] == ["head", "argmax_push", "commit"]
    peers = {b.name: b for b in graph.buffers if b.space is Space.PEER}
    assert {name: (b.shape[0], b.slots) for name, b in peers.items()} == {
        "peer_terms": (RANKS, 3),
        "peer_argmax": (RANKS, 3),
    }


def test_pushed_words_are_flags_and_order_nothing_else() -> None:
    graph = tiles()
    reduce = graph.op("layers.1.attn_reduce")
    found = {h.source.rpartition(".")[2]: h.kind for h in reduce.hand_offs}
    # It overwrites y, which the projection of this layer read on every CTA: the flags do not say that it has,
    # but the store warps have seen the counters that attention and o_proj waited for.
    assert found == {"o_proj": HandOffKind.PEER_FLAG}


def with_op(graph: TileGraph, name: str, **changes: object) -> TileGraph:
    ops = tuple(dataclasses.replace(o, **changes) if o.name == name else o for o in graph.ops)  # type: ignore[arg-type]
    return dataclasses.replace(graph, ops=ops)


def flags(op: TileOp, keep: Callable[[HandOff], bool]) -> tuple[HandOff, ...]:
    return tuple(h for h in op.hand_offs if keep(h))


def no_flag(graph: TileGraph) -> TileGraph:
    op = graph.op("layers.1.moe_reduce")
    return with_op(graph, op.name, hand_offs=flags(op, lambda h: h.kind is not HandOffKind.PEER_FLAG))


def flag_alone(graph: TileGraph) -> TileGraph:
    for name in ("layers.1.attention", "layers.1.o_proj"):
        graph = with_op(graph, name, hand_offs=())
    return graph


def counter_for_flag(graph: TileGraph) -> TileGraph:
    op = graph.op("commit")
    changed = tuple(
        dataclasses.replace(h, kind=HandOffKind.COUNTER) if h.kind is HandOffKind.PEER_FLAG else h
        for h in op.hand_offs
    )
    return with_op(graph, op.name, hand_offs=changed)


def two_slots(graph: TileGraph) -> TileGraph:
    buffers = tuple(dataclasses.replace(b, slots=2) if b.name == "peer_terms" else b for b in graph.buffers)
    return dataclasses.replace(graph, buffers=buffers)


def unread(graph: TileGraph) -> TileGraph:
    return with_op(graph, "layers.0.attn_reduce", reads=())


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (no_flag, "peer-exchanges", "`layers.1.moe_reduce` reads `peer_terms` without waiting"),
        (flag_alone, "conflicts-ordered", "`y`"),
        (counter_for_flag, "hand-off-kinds", "a peer flag orders pushed buffers"),
        (two_slots, "peer-exchanges", "2 slots"),
        (unread, "peer-exchanges", "before what `layers.0.o_proj` pushed is read"),
    ],
)
def test_a_broken_exchange_is_reported(
    change: Callable[[TileGraph], TileGraph], rule: str, words: str
) -> None:
    found = [d.message for d in verify(change(tiles()), TILE_RULES)]
    assert any(m.endswith(f"[{rule}]") and words in m for m in found), found
