"""Ablations: leaving a part of a schedule out never helps, and each changes what it says and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from tests.passes.helpers import context, tiles_until, tiny_graph
from tilecc.ir.tile import HandOffKind
from tilecc.passes.pipeline import TILE_PASSES
from tilecc.sim.ablate import ablations, one_kind, table, unfused
from tilecc.sim.costs import costs_of
from tilecc.sim.lower import Scenario, lower
from tilecc.sim.machine import machine_of, simulate
from tilecc.target import find_target


def test_each_part_is_worth_something_or_nothing() -> None:
    graph = tiles_until(tiny_graph(), TILE_PASSES[-1], context(max_context=1024))
    scenario, costs = Scenario(8, 8, 256, 132), costs_of(find_target("sm_90a"))
    ops, machine = lower(graph, scenario), machine_of(graph)
    found = {a.name: a.seconds for a in ablations(ops, machine, costs, scenario)}
    base = found.pop("as it is")
    assert base == pytest.approx(simulate(ops, machine, costs, scenario).step, rel=0.05)
    assert set(found) == {
        "no prefetch across ops", "no L2 prefetch", "one kind of hand-off", "fixed roles", "no fusion",
    }  # fmt: skip
    assert all(seconds >= base for seconds in found.values())
    assert found["no prefetch across ops"] > base and found["no fusion"] > base
    assert found["one kind of hand-off"] > base  # the routing's mbarriers
    text = table(ablations(ops, machine, costs, scenario))
    assert "modelled" in text and "no fusion" in text


def test_one_kind_of_hand_off_changes_only_kinds() -> None:
    graph = tiles_until(tiny_graph(), TILE_PASSES[-1], context(max_context=1024))
    ops = lower(graph, Scenario(8, 8, 256, 132))
    kinds = {w.kind for op in one_kind(ops) for w in op.waits}
    assert kinds == {HandOffKind.COUNTER}
    bare = [dataclasses.replace(op, waits=()) for op in ops]
    assert [dataclasses.replace(op, waits=()) for op in one_kind(ops)] == bare


def test_without_fusion_the_same_bytes_move_in_more_ops() -> None:
    graph = tiles_until(tiny_graph(), TILE_PASSES[-1], context(max_context=1024))
    scenario, costs = Scenario(8, 8, 256, 132), costs_of(find_target("sm_90a"))
    ops = lower(graph, scenario)
    more = unfused(ops)
    assert len(more) > len(ops)
    one, two = (simulate(o, machine_of(graph), costs, scenario) for o in (ops, more))
    assert sum(one.hbm_bytes.values()) == sum(two.hbm_bytes.values())
