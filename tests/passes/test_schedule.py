"""Schedules: a request restricts what a pass may choose, what is left is chosen as without one, and
everything that is wrong is reported at once, at its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.passes.helpers import Net, context, tiny_graph
from tilecc.diag import Diagnostic, TileccError
from tilecc.ir.tile import TileGraph
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import expect
from tilecc.passes.context import PassContext
from tilecc.passes.draw import draw_schedule
from tilecc.passes.pipeline import lower_to_tiles
from tilecc.passes.schedule import allows
from tilecc.passes.schedule_file import load_schedule
from tilecc.schedules import KNOBS, Schedule, at_least, at_most, between, one_of
from tilecc.target import find_target

Lines = Callable[[Schedule], None]


def scheduled(ask: Lines) -> PassContext:
    made = Schedule(find_target("sm_90a"), max_context=1024, max_seqs=2)
    ask(made)
    return dataclasses.replace(context(max_context=1024), schedule=made)


def lowered(ask: Lines, net: Net | None = None) -> tuple[TileGraph, PassContext]:
    ctx = scheduled(ask)
    graph = (net or Net(hidden=512, vocab=16384)).graph()
    return expect(lower_to_tiles(graph, ctx), TILE_RULES, "tiles"), ctx


def refused(ask: Lines, net: Net | None = None) -> list[Diagnostic]:
    with pytest.raises(TileccError) as caught:
        lowered(ask, net)
    return caught.value.diagnostics


def test_without_requests_nothing_changes() -> None:
    free, with_empty = context(max_context=1024), scheduled(lambda s: None)
    assert lower_to_tiles(tiny_graph(), free) == lower_to_tiles(tiny_graph(), with_empty)
    assert free.decisions == with_empty.decisions


def test_pins() -> None:
    def ask(s: Schedule) -> None:
        s.op("o_proj", splits=1, why="to see it alone")
        s.op("head", group=2, chunk=2)
        s.op("embed", rotation=7)
        s.op("attention", splits=3)
        s.ring("weights", depth=4, slot_bytes=40 * 1024)
        s.ring("activations", depth=5)
        s.edge("qkv", "attention", kind="counter")
        s.roles(consumer=4)

    graph, ctx = lowered(ask)
    assert graph.op("layers.1.o_proj").tiles["splits"] == 1
    assert [graph.op("head").tiles[k] for k in ("group", "chunk")] == [2, 2]
    assert graph.op("embed").rotation == 7
    assert graph.op("layers.0.attention").tiles["splits"] == 3
    assert graph.op("layers.0.attention_merge").tiles["splits"] == 3
    assert [(r.slots, r.slot_bytes) for r in graph.rings[:2]] == [(4, 40 * 1024), (5, 4 * 2048)]
    (decision,) = (d for d in ctx.decisions if d.subject == "o_proj")
    assert decision.choice == "1 K splits" and decision.pinned.endswith("splits = 1: to see it alone")
    assert Path(__file__).name in decision.pinned


def test_what_is_left_free_is_chosen_by_cost() -> None:
    """Without the cheapest candidates, the cheapest of the others; a default that is out of bounds gives the
    nearest."""
    free, ctx = lowered(lambda s: None)
    (decision,) = (d for d in ctx.decisions if d.subject == "head stage")
    assert decision.cost is not None and decision.unit == "B"
    assert all(a.cost is None or a.cost >= decision.cost for a in decision.alternatives)
    group, depth = free.op("head").tiles["group"], free.rings[0].slots
    assert (group, depth) == (4, 4)
    bounded, _ = lowered(lambda s: (s.op("head", group=at_most(2)), s.ring("weights", depth=at_most(3)))[0])
    assert bounded.op("head").tiles["group"] == 2
    assert bounded.rings[0].slots == 3


def test_the_more_specific_name_wins() -> None:
    def ask(s: Schedule) -> None:
        s.op("*", group=at_most(2))
        s.op("qkv", group=1)
        s.op("layers.1.qkv", group=2)

    graph, _ = lowered(ask)
    assert graph.op("layers.0.qkv").tiles["group"] == 1
    assert graph.op("layers.1.qkv").tiles["group"] == 2
    assert max(op.tiles.get("group", 0) for op in graph.ops) == 2


def test_requests_for_one_choice_add_up() -> None:
    graph, _ = lowered(lambda s: (s.op("head", group=between(1, 4)), s.op("head", group=one_of(1, 8)))[0])
    assert graph.op("head").tiles["group"] == 1


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        "from tilecc.schedules import Schedule, between\n"
        "def schedule(s: Schedule) -> None:\n"
        '    s.op("o_prj", splits=2)\n'  # 3: no such op
        '    s.op("o_proj", split=2)\n'  # 4: no such choice
        '    s.op("o_proj", splits=77)\n'  # 5: not legal
        '    s.op("head", group=4)\n'
        '    s.op("head", group=2)\n'  # 7: contradicts line 6
        '    s.op("down", splits=2, group=4, chunk=8)\n'  # 8: each legal, not together
        '    s.edge("qkv", "attention", kind="mbarrier")\n'  # 9: not legal
        '    s.edge("qkv", "attentoin", kind="counter")\n'  # 10: no such edge
        '    s.op("embed", splits=2)\n'  # 11: no such choice of this op
        '    s.op("head", group=between(4, 2))\n'  # 12: empty range
        '    s.op("head", group="large")\n'  # 13: not a number
        '    s.ring("weights", depth=90)\n'  # 14: does not fit
        "    s.roles(consumer=7)\n"  # 15
        '    s.order("head")\n'  # 16
        '    s.op("qkv")\n'  # 17
        '    s.only_for("sm_100a")\n'  # 18
    )
    made = load_schedule(file, find_target("sm_90a"), max_context=64, max_seqs=2)
    ctx = dataclasses.replace(context(), schedule=made)
    with pytest.raises(TileccError) as caught:
        lower_to_tiles(Net(hidden=1024, width=2048, vocab=2048).graph(), ctx)
    found = {(d.span.line, d.code): d for d in caught.value.diagnostics if d.span is not None}
    assert all(d.span is not None and d.span.file == str(file) for d in caught.value.diagnostics)
    assert sorted(found) == [
        (3, "TC0711"), (4, "TC0711"), (5, "TC0713"), (7, "TC0712"), (8, "TC0712"), (9, "TC0713"),
        (10, "TC0711"), (11, "TC0714"), (12, "TC0713"), (13, "TC0713"), (14, "TC0713"), (15, "TC0713"),
        (16, "TC0711"), (17, "TC0711"), (18, "TC0715"),
    ]  # fmt: skip
    assert found[3, "TC0711"].help == ("did you mean `o_proj`?",)
    assert found[4, "TC0711"].help == ("did you mean `splits`?",)
    assert found[5, "TC0713"].help == ("legal here: 1",)
    assert [s.line for s in found[7, "TC0712"].secondary] == [6]
    assert found[8, "TC0712"].help == ("with chunk = 8, `group` may be 1",)
    assert found[9, "TC0713"].notes == ("tiles of qkv lie on all CTAs",)
    assert found[9, "TC0713"].help == ("legal here: counter",)
    assert found[10, "TC0711"].help == ("did you mean `qkv -> attention`?",)
    assert found[15, "TC0713"].help == ("legal here: 4, 8",)


def test_the_schedule_is_reported_with_the_error_that_stops_a_pass() -> None:
    heads = Net(hidden=512, dim=448, v_dim=448, rotary=64)
    found = refused(lambda s: s.op("head", grop=2), heads)
    assert {d.code for d in found} == {"TC0711", "TC0222"}


def test_order_of_ops() -> None:
    """Ops that no hand-off orders may change places; the others may not."""
    graph, _ = lowered(lambda s: s.order("qkv", "attention"))
    assert [op.label for op in graph.ops if op.layer == 1][:2] == ["qkv", "attention"]
    (found,) = refused(lambda s: s.order("attention", "qkv"))
    assert found.code == "TC0713" and found.notes == ("what must come first: qkv -> attention",)
    cyclic = refused(lambda s: (s.order("embed", "head"), s.order("head", "embd"))[0])
    assert [d.code for d in cyclic] == ["TC0711"] and cyclic[0].help == ("did you mean `embed`?",)


def test_independent_ops_change_places() -> None:
    """An op that touches no data of others is free to move, and nothing else moves."""
    from tilecc.passes.order import order

    graph, _ = lowered(lambda s: None)
    ops = tuple(
        dataclasses.replace(op, reads=(), writes=()) if op.name == "layers.1.router" else op
        for op in graph.ops
    )
    free = dataclasses.replace(graph, ops=ops)
    made = order(free, scheduled(lambda s: s.order("router", "qkv")))
    before = [op.label for op in graph.ops if op.layer == 1]
    after = [op.label for op in made.ops if op.layer == 1]
    assert after.index("router") < after.index("qkv")
    assert [n for n in after if n != "router"] == [n for n in before if n != "router"]
    contradictory = scheduled(lambda s: (s.order("router", "qkv"), s.order("qkv", "router"))[0])
    order(free, contradictory)
    assert [d.code for d in contradictory.problems] == ["TC0712"]


def test_bounds() -> None:
    assert lowered(lambda s: s.op("head", group=at_least(4)))[0].op("head").tiles["group"] == 4
    assert [d.code for d in refused(lambda s: s.op("head", group=True))] == ["TC0713"]
    assert [d.code for d in refused(lambda s: s.op("head", group=one_of()))] == ["TC0713"]
    assert [d.code for d in refused(lambda s: s.edge("qkv", "attention", kind=between(1, 2)))] == ["TC0713"]


def test_every_knob_says_what_it_is() -> None:
    assert len({(k.kind, k.key) for k in KNOBS}) == len(KNOBS)
    assert all(k.doc and not k.doc.endswith(".") for k in KNOBS)


@pytest.mark.parametrize("seed", range(30))
def test_drawn_schedules_are_legal(seed: int, tmp_path: Path) -> None:
    """A drawn schedule goes through the public API to the choices that were drawn."""
    net = Net(hidden=512, vocab=2048, width=512).graph()
    file = tmp_path / "drawn.py"
    try:
        file.write_text(draw_schedule(net, context(max_context=1024), seed))
    except TileccError as misfit:
        assert {d.code for d in misfit.diagnostics} == {"TC0223"}  # stages too large for the ring
        return
    made = load_schedule(file, find_target("sm_90a"), max_context=1024, max_seqs=2)
    ctx = dataclasses.replace(context(max_context=1024), schedule=made)
    tiles = expect(lower_to_tiles(net, ctx), TILE_RULES, "tiles")
    for (kind, name, key), request in made.requests.items():
        if kind == "op" and key in ("splits", "group", "chunk"):
            ops = [op for op in tiles.ops if name in (op.name, op.label) and key in op.tiles]
            assert ops and all(allows(request.bound, op.tiles[key]) for op in ops)
