"""place: every task runs exactly once on any number of CTAs, and remainders spread."""

from __future__ import annotations

import dataclasses

import pytest

from tests.passes.helpers import Net, context, tiles_until, tiny
from tilecc.ir.tile import TileGraph, TileOp
from tilecc.passes.place import place


def tasks_of(op: TileOp, cta: int, ctas: int) -> list[int]:
    """The tasks of one CTA, as op_*.cuh deals them: `first_task`, then every `ctas`-th."""
    shift = op.rotation % ctas
    first = cta - shift if cta >= shift else cta + ctas - shift
    return list(range(first, op.tiles["tasks"], ctas))


@pytest.mark.parametrize("ctas", [*range(1, 18), 132, 148, 256])
def test_every_task_runs_exactly_once(ctas: int) -> None:
    for op in tiny()[0].ops:
        dealt = [q for cta in range(ctas) for q in tasks_of(op, cta, ctas)]
        assert sorted(dealt) == list(range(op.tiles["tasks"])), op.name


@pytest.mark.parametrize("ctas", [3, 7, 16, 132])
def test_remainders_do_not_pile_up(ctas: int) -> None:
    """Over one layer no CTA has two tasks more than another, however the ops' remainders fall."""
    graph = tiles_until(Net(layers=((8, "moe"),), hidden=96, experts=11).graph(), place)
    load = [sum(len(tasks_of(op, cta, ctas)) for op in graph.ops) for cta in range(ctas)]
    assert max(load) - min(load) <= 1
    unrotated = [dataclasses.replace(op, rotation=0) for op in graph.ops]
    piled = [sum(len(tasks_of(op, cta, ctas)) for op in unrotated) for cta in range(ctas)]
    assert max(piled) - min(piled) > 1  # what the rotation is for


def test_before_and_after() -> None:
    def op(name: str, label: str, tasks: int) -> TileOp:
        return TileOp(name, "k", label, 0, tiles={"tasks": tasks})

    ops = (
        op("a0", "a", 5),
        op("r0", "r", 0),
        op("b0", "b", 7),
        op("a1", "a", 5),
        op("b1", "b", 7),
        op("c", "c", 1),
    )
    ctx = context()
    placed = place(TileGraph("g", "sm_90a", 1, 1, 2, 1, 1, ops, ()), ctx)
    assert [o.rotation for o in placed.ops] == [0, 5, 5, 0, 5, 12]
    assert [dataclasses.replace(o, rotation=0) for o in placed.ops] == list(ops)
    assert [d.pass_name for d in ctx.decisions] == ["place"]
