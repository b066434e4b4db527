"""The cost that `roles`, `rings` and `prefetch` minimise: the modelled step of a trial graph, from two
layers of each kind (`tilecc.sim.fast`). It is the mean of two bounds, main loops that never limit and main
loops that hide nothing of their latencies: the truth lies between them.

The step is a full one of the base program: 8 rows of one sequence at the smaller of 4096 positions and the
longest context, with as many distinct experts as independent routing gives. Programs of more rows take the
choices of the base program, since bits must not depend on the rows of a step.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from tilecc.ir.rows import BASE_ROWS
from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext
from tilecc.sim.costs import Costs, costs_of
from tilecc.sim.fast import step_seconds
from tilecc.sim.lower import Scenario, SimOp, distinct_experts, lower
from tilecc.sim.machine import Machine, machine_of

CONTEXT = 4096


BOUNDS = ("ideal", "exposed")


def scenario_of(graph: TileGraph, ctx: PassContext, loops: str = "sass") -> Scenario:
    """The full step that choices are made for."""
    return Scenario(
        BASE_ROWS, distinct_experts(graph, BASE_ROWS), min(CONTEXT, ctx.max_context), ctx.target.sms, loops
    )


def modelled_seconds(graph: TileGraph, ctx: PassContext) -> float:
    """The modelled step of a graph after `rings`."""
    machine, costs, total = machine_of(graph), costs_of(ctx.target), 0.0
    for loops in BOUNDS:
        scenario = scenario_of(graph, ctx, loops)
        total += _step(tuple(lower(graph, scenario)), machine, costs, scenario)
    return total / len(BOUNDS)


@lru_cache(maxsize=512)
def _step(ops: tuple[SimOp, ...], machine: Machine, costs: Costs, scenario: Scenario) -> float:
    return step_seconds(list(ops), machine, costs, scenario)


def trial(ctx: PassContext) -> PassContext:
    """A context of the same compilation whose decisions and complaints are forgotten."""
    kept = {f.name: getattr(ctx, f.name) for f in dataclasses.fields(PassContext)}
    return PassContext(**(kept | {"decisions": [], "problems": []}))
