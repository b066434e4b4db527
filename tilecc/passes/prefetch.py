"""prefetch: what a loader asks for into L2 once the ring is full of its op's weights.

The ring runs across operators by itself: a loader goes on with the next op while this one is still
multiplied, but only as far as the ring has slots. While hand-offs, all-reduce and attention are in flight
HBM would then be idle. So an op may name the ops that come after it in its layer, up to the first whose
addresses are not known yet (experts before the routing), and how many stages of each a CTA prefetches; also
itself. Bulk prefetches to L2 take no slot and signal nothing.

    layers.3.qkv  =>  prefetch=[Prefetch("layers.3.qkv", 4), Prefetch("layers.3.o_proj", 8)]

Each label of an op is decided alike in all layers, one after the other, by the modelled step; further ops
are taken only while they make it faster. What is in L2 ahead must fit half of it: an L2 of two partitions
may hold a line twice.
"""

from __future__ import annotations

import dataclasses

from tilecc.ir.tile import Prefetch, TileGraph, TileOp
from tilecc.passes.context import Choice, PassContext, Subject
from tilecc.passes.cost import modelled_seconds, scenario_of
from tilecc.sim.lower import SimOp, lower

SHARE = 0.5
"""Of L2 that prefetched weights may fill."""
GAIN = 0.001
"""A prefetch must shorten the modelled step by this part of it: the loader has to issue it."""


def prefetch(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `prefetch` of the ops."""
    graph = dataclasses.replace(graph, ops=tuple(dataclasses.replace(op, prefetch=()) for op in graph.ops))
    planner = _Planner(graph, ctx)
    for label in dict.fromkeys(op.label for op in graph.ops if "chunk" in op.tiles):
        graph = planner.decide(graph, label)
    return graph


class _Planner:
    def __init__(self, graph: TileGraph, ctx: PassContext) -> None:
        self.ctx = ctx
        scenario = scenario_of(graph, ctx)
        self.grid = scenario.grid
        self.sim = {op.name: op for op in lower(graph, scenario)}
        self.ring = next(r.slots for r in graph.rings if r.name == "weights")
        self.room = SHARE * ctx.target.l2_bytes

    def decide(self, graph: TileGraph, label: str) -> TileGraph:
        """The graph with the best prefetches of the ops of a label."""
        plans = {op.name: self.targets(graph, op) for op in graph.ops if op.label == label}
        most = max(len(plan) for plan in plans.values())
        if not most:
            return graph
        made = {n: _with(graph, {name: plan[:n] for name, plan in plans.items()}) for n in range(most + 1)}
        cost = {n: modelled_seconds(g, self.ctx) for n, g in made.items()}
        least = min(cost.values()) + GAIN * cost[0]
        fewest = next(n for n in made if cost[n] <= least)
        longest = max(plans.values(), key=len)

        def words(choice: Choice) -> str:
            found = [p.op.split(".")[-1] for p in longest[: int(choice["prefetch"])]]
            return ", ".join(found) or "nothing"

        chosen = self.ctx.choose(
            "prefetch", Subject("op", (label,)), [{"prefetch": n} for n in made],
            default={"prefetch": fewest},
            cost=lambda c: cost[int(c["prefetch"])] * 1e6, unit="us", about="into L2", words=words,
            reason="modelled step; ops up to the first whose addresses are unknown, within half of L2",
        )  # fmt: skip
        return made[int(chosen["prefetch"])]

    def targets(self, graph: TileGraph, op: TileOp) -> tuple[Prefetch, ...]:
        """Itself and the ops after it in its layer, with the stages of the busiest CTA, while they fit L2."""
        found: list[Prefetch] = []
        room = self.room
        at = graph.ops.index(op)
        for other in graph.ops[at:]:
            if other.layer != op.layer or "chunk" not in other.tiles:
                if other.layer != op.layer:
                    break
                continue
            sim = self.sim[other.name]
            if sim.route >= 0 and self.sim[op.name].route < 0:
                break
            stages = self.stages(sim) - (self.ring if other is op else 0)
            fits = int(room // (sim.stage_bytes * min(self.grid, sim.tasks)))
            stages = min(stages, fits)
            if stages > 0:
                found.append(Prefetch(other.name, stages))
                room -= stages * sim.stage_bytes * min(self.grid, sim.tasks)
            elif other is not op:
                break
        return tuple(found)

    def stages(self, op: SimOp) -> int:
        """Stages of the busiest CTA."""
        return round(-(-round(op.tasks) // self.grid) * op.stages)


def _with(graph: TileGraph, plans: dict[str, tuple[Prefetch, ...]]) -> TileGraph:
    return dataclasses.replace(
        graph,
        ops=tuple(
            dataclasses.replace(o, prefetch=plans[o.name]) if o.name in plans else o for o in graph.ops
        ),
    )
