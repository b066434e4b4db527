"""Kinds of hand-off: what is legal, what it costs, what a schedule pins; the rules on words as flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.passes.helpers import Net, context, lower, tiles_until
from tilecc.diag import TileccError
from tilecc.ir.program import Program
from tilecc.ir.program_rules import PROGRAM_RULES
from tilecc.ir.tile import HandOff, HandOffKind, TileGraph
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import verify
from tilecc.passes.context import PassContext
from tilecc.passes.handoff import POLL_BATCH, POLLED, load_seconds, poll_seconds
from tilecc.passes.pipeline import TILE_PASSES
from tilecc.passes.schedule import Schedule

NET = Net(layers=((0, "dense"), (8, "moe"), (8, "moe")))
WORDS = {"o_proj -> attn_reduce", "down -> mlp_reduce", "experts_down -> moe_reduce", "router -> route"}


def kinds(ctx: PassContext) -> tuple[TileGraph, dict[str, str]]:
    graph = tiles_until(NET.graph(), TILE_PASSES[-1], ctx)
    return graph, {d.subject: d.choice for d in ctx.decisions if d.pass_name == "edges"}


def scheduled(fill: Callable[[Schedule], None]) -> PassContext:
    ctx = context()
    schedule = Schedule(ctx.target)
    fill(schedule)
    return dataclasses.replace(ctx, schedule=schedule)


def test_words_are_flags_where_that_is_cheapest_and_the_log_has_the_alternatives() -> None:
    ctx = context()
    graph, chosen = kinds(ctx)
    assert {name for name, kind in chosen.items() if kind == "flag"} == WORDS
    assert verify(graph, TILE_RULES) == [] and TileGraph.from_text(graph.to_text()) == graph
    words = {b.name: (b.slots, b.word) for b in graph.buffers if b.word}
    assert words == {
        "o_proj_words": (3, 8), "down_words": (3, 8), "experts_down_words": (3, 8), "router_words": (3, 4),
    }  # fmt: skip
    (decision,) = (d for d in ctx.decisions if d.subject == "router -> route")
    others = {a.choice: a for a in decision.alternatives}
    counter, target = others["counter"], ctx.target
    assert decision.cost is not None and counter.cost is not None and decision.cost < counter.cost
    assert decision.cost == target.flag_hand_off + target.l2_latency
    assert counter.cost == target.counter_hand_off + target.l2_latency
    assert set(others) == {"counter", "mbarrier", "peer_flag"}
    assert "all CTAs" in others["mbarrier"].why_not and "no other rank" in others["peer_flag"].why_not


def test_a_target_whose_counters_are_cheaper_gets_counters() -> None:
    ctx = context()
    ctx = dataclasses.replace(ctx, target=dataclasses.replace(ctx.target, flag_hand_off=2e-6))
    graph, chosen = kinds(ctx)
    assert "flag" not in chosen.values() and not any(b.word for b in graph.buffers)
    assert verify(graph, TILE_RULES) == []


def test_a_pin_takes_one_edge_back_to_a_counter() -> None:
    graph, chosen = kinds(scheduled(lambda s: s.edge("down", "mlp_reduce", kind="counter")))
    assert {name for name, kind in chosen.items() if kind == "flag"} == WORDS - {"down -> mlp_reduce"}
    assert {b.name for b in graph.buffers} >= {"partials", "o_proj_words"}
    assert verify(graph, TILE_RULES) == []


def test_a_flag_that_is_not_legal_is_refused_with_the_reason() -> None:
    ctx = scheduled(lambda s: s.edge("qkv", "attention", kind="flag"))
    graph, _ = kinds(ctx)
    with pytest.raises(TileccError) as caught:
        ctx.settle(graph.ops)
    (found,) = caught.value.diagnostics
    assert found.code == "TC0713" and found.help == ("legal here: counter",)
    assert "takes several buffers of qkv with one wait" in found.notes[0]


def test_costs_grow_with_the_bytes() -> None:
    target = context().target
    polled = POLLED["project", "reduce", "partials"]
    batch = POLL_BATCH * 32 * polled.word
    assert poll_seconds(32 * polled.word, polled, target) == 0.0  # a word per lane comes with the hand-off
    assert poll_seconds(batch, polled, target) == target.l2_latency
    assert poll_seconds(batch + 1, polled, target) == 2 * target.l2_latency
    assert load_seconds(0, target) == 0.0 and load_seconds(1, target) == target.l2_latency
    assert load_seconds(96 * 1024, target) == target.activation_load


# ---- rules -----------------------------------------------------------------------------------------------


def with_op(graph: TileGraph, name: str, **changes: object) -> TileGraph:
    ops = tuple(dataclasses.replace(o, **changes) if o.name == name else o for o in graph.ops)  # type: ignore[arg-type]
    return dataclasses.replace(graph, ops=ops)


def not_handed(graph: TileGraph) -> TileGraph:
    op = graph.op("layers.1.attn_reduce")
    return with_op(graph, op.name, hand_offs=tuple(h for h in op.hand_offs if h.kind is not HandOffKind.FLAG))


def plain_words(graph: TileGraph) -> TileGraph:
    changed = HandOff("layers.1.router", HandOffKind.FLAG, ("x",), "")
    return with_op(graph, "layers.1.route", hand_offs=(changed,))


def two_slots(graph: TileGraph) -> TileGraph:
    buffers = tuple(dataclasses.replace(b, slots=2) if b.name == "router_words" else b for b in graph.buffers)
    return dataclasses.replace(graph, buffers=buffers)


def nothing_waits(graph: TileGraph) -> TileGraph:
    ops = (
        dataclasses.replace(o, hand_offs=tuple(h for h in o.hand_offs if h.kind is HandOffKind.FLAG))
        for o in graph.ops
    )
    return dataclasses.replace(graph, ops=tuple(ops))


@pytest.mark.parametrize(
    ("change", "rule", "says"),
    [
        (not_handed, "flag-turns", "`layers.1.attn_reduce` polls `o_proj_words` without being handed"),
        (plain_words, "hand-off-kinds", "the words of `x` are no flags"),
        (two_slots, "flag-turns", "`router_words` has 2 slots of words of 4 B"),
        (nothing_waits, "flag-turns", "`layers.2.o_proj` pushes `o_proj_words`, and nothing orders it after"),
    ],
)
def test_broken_words_are_reported(change: Callable[[TileGraph], TileGraph], rule: str, says: str) -> None:
    graph, _ = kinds(context())
    found = [d.message for d in verify(change(graph), TILE_RULES)]
    assert any(m.endswith(f"[{rule}]") and says in m for m in found), found


@pytest.mark.parametrize("by", [-1, 1])
def test_rows_that_poll_another_turn_are_reported(by: int) -> None:
    _, made = lower(NET.graph())
    assert verify(made, PROGRAM_RULES) == [] and Program.from_text(made.to_text()) == made
    rows = tuple(
        dataclasses.replace(r, polled=r.polled + by) if (r.op, r.layer) == ("AttnReduce", 1) else r
        for r in made.rows
    )
    (found,) = verify(dataclasses.replace(made, rows=rows), PROGRAM_RULES)
    assert f"polls turn {1 + by} of `o_proj_words`, which is in turn 1 [turns-match]" in found.message
