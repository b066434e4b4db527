"""edges: hand-offs from overlapping boxes, on hand-made graphs, on random ones and on MiMo tiny."""

from __future__ import annotations

import dataclasses
import random

import pytest

from tests.passes.helpers import Net, context, tiles_until
from tilecc.ir.tile import Access, Buffer, HandOffKind, Space, TileGraph, TileOp
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import verify
from tilecc.passes.edges import covers, edges, overlap
from tilecc.target import show

C, M = HandOffKind.COUNTER, HandOffKind.MBARRIER
ORDER_RULES = tuple(
    r for r in TILE_RULES if r.name in ("conflicts-ordered", "hand-offs-point-back", "hand-off-kinds")
)


def box(text: str) -> Access:
    """`b[0:4]` -> Access("b", ((0, 4),)); a bare name is all of it."""
    name, _, interval = text.rstrip("]").partition("[")
    lo, hi = interval.split(":") if interval else ("0", "8")
    return Access(name, ((int(lo), int(hi)),))


def made(*ops: str, local: tuple[str, ...] = ()) -> TileGraph:
    """A graph of ops written `name: reads -> writes`; buffers have eight elements, `local` ones are per
    CTA."""
    parsed = []
    for text in ops:
        name, _, rest = text.partition(":")
        reads, writes = ([box(t) for t in side.split()] for side in rest.split("->"))
        parsed.append(
            TileOp(name, "k", name, -1, tiles={"tasks": 1}, reads=tuple(reads), writes=tuple(writes))
        )
    names = dict.fromkeys(a.buffer for op in parsed for a in (*op.reads, *op.writes))
    buffers = tuple(Buffer(n, "f32", (8,), 32, Space.CTA if n in local else Space.WORKSPACE) for n in names)
    return TileGraph("g", "sm_90a", 1, 1, 0, 1, 1, tuple(parsed), (), buffers)


def found(graph: TileGraph) -> dict[str, list[str]]:
    """Hand-offs by op, `<` before a source of the step before."""
    ops = edges(graph, context()).ops
    return {op.name: [("<" if h.previous_step else "") + h.source for h in op.hand_offs] for op in ops}


@pytest.mark.parametrize(
    ("ops", "want"),
    [
        # read after write; the next write waits for the read (write after read, across the step)
        (("a: -> x", "b: x -> y"), {"a": ["<b"], "b": ["a"]}),
        # write after write
        (("a: -> x", "b: -> x"), {"a": ["<b"], "b": ["a"]}),
        # write after read within a step
        (("a: x -> y", "b: -> x"), {"a": ["<b"], "b": ["a"]}),
        # two reads do not conflict; both wait for the writer; what has arrived at c is done with b, too
        (("a: -> x", "b: x -> y", "c: x -> z"), {"a": ["<c"], "b": ["a"], "c": ["a"]}),
        # boxes that only touch do not overlap
        (("a: -> x[0:4]", "b: -> x[4:8]"), {"a": ["<a"], "b": ["<b"]}),
        # partial overlap
        (("a: -> x[0:5]", "b: x[4:8] -> y"), {"a": ["<b"], "b": ["a"]}),
        # halves written apart and read together
        (("a: -> x[0:4]", "b: -> x[4:8]", "c: x -> y"), {"a": ["<c"], "b": ["<c"], "c": ["b"]}),
        # in place
        (("a: -> x", "b: x -> x", "c: x -> y"), {"a": ["<c"], "b": ["a"], "c": ["b"]}),
        # a smaller write does not stand for a larger one
        (("a: -> x", "b: -> x[0:4]", "c: x -> y"), {"a": ["<c"], "b": ["a"], "c": ["b"]}),
    ],
)  # fmt: skip
def test_conflicts(ops: tuple[str, ...], want: dict[str, list[str]]) -> None:
    assert found(made(*ops)) == want


def test_an_edge_that_a_path_implies_is_dropped() -> None:
    graph = made("a: -> x", "b: x -> y", "c: x y -> z")  # c reads x of a, but b is in between
    assert found(graph) == {"a": ["<c"], "b": ["a"], "c": ["b"]}


def test_a_cross_step_edge_that_this_step_implies_is_dropped() -> None:
    """b writes what c of the step before read; a is between them already."""
    graph = made("a: z -> x", "b: x -> y", "c: y -> z")
    assert found(graph) == {"a": ["<c"], "b": ["a"], "c": ["b"]}


def test_cross_step_edges_carry_their_buffers_and_reason() -> None:
    ops = edges(made("a: s -> x", "b: x -> s"), context()).ops
    (first,), (second,) = ops[0].hand_offs, ops[1].hand_offs
    assert (first.source, first.previous_step, first.kind) == ("b", True, C)
    assert (second.source, second.previous_step, second.buffers) == ("a", False, ("s", "x"))
    target = context().target
    cost = show(target.counter_hand_off + target.l2_latency, "s")
    assert "same-CTA mbarrier is not legal" in second.reason and second.reason.endswith(f", {cost}")


def test_shared_memory_of_the_cta_needs_only_an_mbarrier() -> None:
    ops = edges(made("a: -> x", "r: x -> local", "b: local -> y", local=("local",)), context()).ops
    kinds = {(h.source, op.name): h.kind for op in ops for h in op.hand_offs if not h.previous_step}
    assert kinds == {("a", "r"): C, ("r", "b"): M}


def test_an_mbarrier_does_not_order_other_ctas() -> None:
    """r reads x and hands over to b by mbarrier alone; b overwrites x, which r of another CTA may still
    read."""
    graph = edges(made("a: -> x", "r: x -> local", "b: local -> x", local=("local",)), context())
    (to_b,) = (op.hand_offs for op in graph.ops if op.name == "b")
    assert ("r", C) in {(h.source, h.kind) for h in to_b}


def test_decisions_name_each_pair_of_labels_once() -> None:
    ctx = context()
    tiles_until(Net(layers=((8, "dense"),) * 3).graph(), edges, ctx)
    pairs = [d.subject for d in ctx.decisions if d.pass_name == "edges"]
    assert "qkv -> attention" in pairs and len(pairs) == len(set(pairs))
    assert all(d.reason for d in ctx.decisions)


def random_graph(seed: int) -> TileGraph:
    rng = random.Random(seed)

    def access() -> str:
        lo, hi = sorted(rng.sample(range(9), 2))
        return f"{rng.choice('xyz')}[{lo}:{hi}]"

    ops = []
    for i in range(rng.randint(2, 9)):
        reads, writes = ([access() for _ in range(rng.randint(low, 2))] for low in (0, 1))
        ops.append(f"op{i}: {' '.join(reads)} -> {' '.join(writes)}")
    return made(*ops)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_are_ordered_and_nothing_is_superfluous(seed: int) -> None:
    graph = edges(random_graph(seed), context())
    assert verify(graph, ORDER_RULES) == []
    for i, op in enumerate(graph.ops):
        for h in op.hand_offs:
            less = dataclasses.replace(op, hand_offs=tuple(o for o in op.hand_offs if o is not h))
            mutant = dataclasses.replace(graph, ops=(*graph.ops[:i], less, *graph.ops[i + 1 :]))
            messages = [d.message for d in verify(mutant, ORDER_RULES)]
            assert any("[conflicts-ordered]" in m and f"`{op.name}`" in m for m in messages), (op.name, h)


def test_overlap_and_covers() -> None:
    assert overlap(box("x[0:4]"), box("x[3:8]")) and not overlap(box("x[0:4]"), box("x[4:8]"))
    assert covers(box("x[0:8]"), box("x[2:3]")) and not covers(box("x[0:4]"), box("x[3:5]"))
    row, column = Access("x", ((0, 1), (0, 8))), Access("x", ((0, 8), (2, 3)))
    assert overlap(row, column) and not covers(row, column) and not covers(column, row)
