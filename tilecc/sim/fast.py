"""A fast estimate of a step for passes that compare many machines: two layers of each kind instead of all.

Layers whose ops have the same shapes are of one kind. The program that is simulated has the prologue, two
layers of each kind one after the other, and the epilogue; the time of the second one, from the end of the
layer before to its own, counts for every layer of its kind.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from tilecc.sim.costs import Costs
from tilecc.sim.lower import Scenario, SimOp, Wait
from tilecc.sim.machine import Machine, simulate

INSTANCES = 2


def step_seconds(ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario) -> float:
    """The modelled step, seconds, from two layers of each kind."""
    kinds = layer_kinds(ops)
    keep = [layer for layers in kinds for layer in layers[:INSTANCES]]
    small = cut(ops, keep)
    result = simulate(small, machine, costs, scenario)
    ends = {layer: max(result.done[i] for i, op in enumerate(small) if op.layer == layer) for layer in keep}
    extra, before = 0.0, 0.0
    for layers in kinds:
        mine = layers[:INSTANCES]
        for at, layer in enumerate(mine):
            if at == len(mine) - 1:
                extra += (len(layers) - len(mine)) * (ends[layer] - before)
            before = ends[layer]
    return result.step + extra


def layer_kinds(ops: list[SimOp]) -> list[list[int]]:
    """Layers by the shapes of their ops, in the order of the first of each kind."""
    shapes: dict[int, list[tuple[object, ...]]] = defaultdict(list)
    for op in ops:
        if op.layer >= 0:
            shapes[op.layer].append(
                (op.label, op.tasks, op.stages, op.stage_bytes, op.warp_blocks, op.kv_bytes)
            )
    kinds: dict[tuple[tuple[object, ...], ...], list[int]] = defaultdict(list)
    for layer, shape in shapes.items():
        kinds[tuple(shape)].append(layer)
    return list(kinds.values())


def cut(ops: list[SimOp], layers: list[int]) -> list[SimOp]:
    """The program of these layers, in this order, with prologue and epilogue. What an op waits for in a layer
    that is gone is the op of the same label in the layer that stands before it now, or else its last op."""
    groups: dict[int, list[int]] = defaultdict(list)
    seen = False
    for i, op in enumerate(ops):
        seen = seen or op.layer >= 0
        groups[op.layer if op.layer >= 0 else (1 << 30 if seen else -1)].append(i)
    order = [i for key in (-1, *layers, 1 << 30) for i in groups.get(key, [])]
    place = {i: at for at, i in enumerate(order)}
    last: dict[str, int] = {}
    made: list[SimOp] = []
    end = -1
    for at, i in enumerate(order):
        op = ops[i]
        if at and ops[order[at - 1]].layer != op.layer:
            end = at - 1
        waits = []
        for wait in op.waits:
            source = ops[wait.op]
            same = source.layer == op.layer or source.layer < 0
            found = place.get(wait.op, -1) if same else last.get(source.label, end)
            if wait.previous_step or found >= at:
                waits.append(Wait(max(found, 0), wait.kind, True))
            elif found >= 0:
                waits.append(Wait(found, wait.kind, False))
        made.append(
            dataclasses.replace(
                op,
                waits=tuple(waits),
                route=place.get(op.route, -1),
                prefetch=tuple((place[j], n) for j, n in op.prefetch if j in place),
            )
        )
        last[op.label] = at
    return made
