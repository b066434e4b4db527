"""What each part of a schedule is worth: the modelled step without it, from two layers of each kind. All
figures are modelled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilecc.ir.tile import HandOffKind
from tilecc.sim.costs import Costs
from tilecc.sim.fast import step_seconds
from tilecc.sim.lower import Scenario, SimOp, Wait
from tilecc.sim.machine import Machine


@dataclass(frozen=True)
class Ablation:
    """`seconds` of the step without the part."""

    name: str
    what: str
    seconds: float


def ablations(ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario) -> list[Ablation]:
    """The step as it is, then without each part that the simulator can leave out of one program: the ring
    across operators and L2 prefetch, L2 prefetch alone, hand-offs of more than one kind, the number of
    consumers that was chosen, and fusion of the small ops with the main loops beside them."""
    made = [Ablation("as it is", "the schedule that the passes chose", _step(ops, machine, costs, scenario))]

    def without(name: str, what: str, some: list[SimOp], changed: Machine) -> None:
        made.append(Ablation(name, what, _step(some, changed, costs, scenario)))

    alone = dataclasses.replace(machine, across_ops=False, l2_prefetch=False)
    without("no prefetch across ops", "an op's weights are asked for when its inputs are there", ops, alone)
    no_l2 = dataclasses.replace(machine, l2_prefetch=False)
    without("no L2 prefetch", "only the ring runs ahead", ops, no_l2)
    without("one kind of hand-off", "counters inside the rank for every edge", one_kind(ops), machine)
    without("fixed roles", "2 activation and 4 consumer warps", fixed(ops), fixed_machine(machine))
    without("no fusion", "norm, SwiGLU and residual as ops of their own", unfused(ops), machine)
    return made


def _step(ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario) -> float:
    return step_seconds(ops, machine, costs, scenario)


def one_kind(ops: list[SimOp]) -> list[SimOp]:
    """Every hand-off inside the rank as a counter; pushes between ranks stay, nothing else reaches a peer."""

    def wait_kind(kind: HandOffKind) -> HandOffKind:
        return kind if kind is HandOffKind.PEER_FLAG else HandOffKind.COUNTER

    return [
        dataclasses.replace(op, waits=tuple(dataclasses.replace(w, kind=wait_kind(w.kind)) for w in op.waits))
        for op in ops
    ]


FIXED_CONSUMERS = 4


def fixed(ops: list[SimOp]) -> list[SimOp]:
    """Main loops and attention with four consumer warps."""
    return [dataclasses.replace(op, warps=min(op.warps, FIXED_CONSUMERS)) if op.stages else op for op in ops]


def fixed_machine(machine: Machine) -> Machine:
    """The role set that every program had before roles were chosen."""
    return dataclasses.replace(machine, act_warps=2, consumers=FIXED_CONSUMERS)


FUSED_AFTER = {"qkv": 1, "gate_up": 1, "experts_up": 1}
"""Ops of their own that these would need behind them: rope and KV append, SwiGLU. Those in front, the norms,
are what the reduce ops and the embedding fuse."""


def unfused(ops: list[SimOp]) -> list[SimOp]:
    """Every norm, rope, SwiGLU and residual as an op of its own: one more small op and one more counter
    hand-off behind each op that fuses one. The extra op is a reduce: one pass over the activations."""
    made: list[SimOp] = []
    place: dict[int, int] = {}
    for i, op in enumerate(ops):
        waits = tuple(dataclasses.replace(w, op=place.get(w.op, w.op)) for w in op.waits)
        first = len(made)
        route = place.get(op.route, -1)
        made.append(dataclasses.replace(op, waits=waits, route=route, prefetch=()))
        place[i] = first
        if op.kind in ("embed", "reduce") or op.label in FUSED_AFTER:
            made.append(extra(op, first))
            place[i] = first + 1
    return made


def extra(op: SimOp, source: int) -> SimOp:
    """A small op behind `source`."""
    wait = Wait(source, HandOffKind.COUNTER, False)
    return SimOp(f"{op.name}.unfused", "reduce", f"{op.label}_unfused", op.layer, (wait,), 96, 0)


def table(found: list[Ablation]) -> str:
    """The ablations for a terminal."""
    base = found[0].seconds
    lines = ["  modelled step without a part     us     worth us"]
    for a in found:
        lines.append(f"    {a.name:24s} {a.seconds * 1e6:9.1f} {(a.seconds - base) * 1e6:10.1f}   {a.what}")
    return "\n".join(lines)
