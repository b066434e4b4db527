"""prefetch: which weights a loader asks for into L2, and what limits that."""

from __future__ import annotations

import dataclasses

import pytest

from tests.passes.helpers import Net, context, tiles_until, tiny_graph
from tests.passes.test_roles import placed
from tilecc.emit.cuda import emit_cuda, prefetches
from tilecc.ir.tile import Prefetch, TileGraph
from tilecc.passes.cost import modelled_seconds, scenario_of
from tilecc.passes.pipeline import PROGRAM
from tilecc.passes.prefetch import SHARE, prefetch
from tilecc.passes.rings import rings
from tilecc.passes.roles import roles
from tilecc.passes.schedule import Schedule
from tilecc.sim.lower import lower as sim_ops
from tilecc.target import find_target


def asked(net_or_graph: object, **ops: int) -> TileGraph:
    """Tiles with pinned numbers of prefetched ops per label."""
    schedule = Schedule(find_target("sm_90a"))
    for label, count in ops.items():
        schedule.op(label, prefetch=count)
    ctx = dataclasses.replace(context(max_context=1024), schedule=schedule)
    graph = tiles_until(net_or_graph, prefetch, ctx)  # type: ignore[arg-type]
    assert not ctx.problems, ctx.problems
    return graph


NET = Net(layers=((8, "dense"), (0, "moe"), (8, "moe")), hidden=512, width=4096)


def test_before_and_after() -> None:
    graph = asked(NET.graph(), qkv=2)
    found = {op.name: [p.op for p in op.prefetch] for op in graph.ops if op.kind == "qkv"}
    # layers.0.qkv fits the ring, so it has nothing of its own to prefetch.
    assert found["layers.0.qkv"] == ["layers.0.o_proj", "layers.0.gate_up"]
    assert found["layers.1.qkv"] == ["layers.1.o_proj", "layers.1.router"]
    assert set(found) == {f"layers.{i}.qkv" for i in range(3)}


def test_experts_have_no_address_before_the_routing() -> None:
    for op in asked(NET.graph(), qkv=2, o_proj=1).ops:
        routed = [p.op for p in op.prefetch if "experts" in p.op]
        assert not routed or "experts" in op.name


@pytest.mark.parametrize("name", ["dense", "moe", "moe, 8 ranks"])
def test_the_choice_is_no_slower_than_none_and_fits_half_of_l2(name: str) -> None:
    graph, ctx = placed(name)
    ringed = rings(roles(graph, ctx), ctx)
    made = prefetch(ringed, ctx)
    assert modelled_seconds(made, ctx) <= modelled_seconds(ringed, ctx)
    ops = {op.name: op for op in sim_ops(made, scenario_of(made, ctx))}
    for op in made.ops:
        moved = sum(p.stages * ops[p.op].stage_bytes * min(132, ops[p.op].tasks) for p in op.prefetch)
        assert moved <= SHARE * ctx.target.l2_bytes
    assert prefetch(made, ctx) == made


def test_a_class_prefetches_what_any_of_its_layers_has() -> None:
    program = PROGRAM(asked(NET.graph(), qkv=2), context(max_context=1024))
    window = next(op for op in program.classes if op.name == "QkvWindow8")
    assert [p.op for p in window.prefetch] == ["OProj", "GateUp", "Router"]
    (first, *_) = prefetches(program)
    body = program.body
    assert all(body.index(name) == body.index(first.name) + distance for name, distance, _ in first.ops)


def test_the_kernel_asks_for_what_the_program_says() -> None:
    graph = asked(tiny_graph(), qkv=2, experts_up=1)
    program = PROGRAM(graph, context(max_context=1024))
    text = emit_cuda(program, "mimo_tiny.py")
    wanted = [p for op in program.classes for p in op.prefetch]
    assert wanted and text.count("::prefetch<") == len(wanted)
    for found in prefetches(program):
        for name, distance, stages in found.ops:
            assert f"::prefetch<{name}>(c, {distance}, {stages});" in text
    assert text.count("kPrefetches = true") == len(prefetches(program))
    assert text.count("kPrefetches = false") > 0


def test_texts_round_trip() -> None:
    graph = asked(NET.graph(), qkv=2)
    assert TileGraph.from_text(graph.to_text()) == graph
    first = graph.op("layers.0.qkv").prefetch[0]
    assert first == Prefetch("layers.0.o_proj", first.stages)
