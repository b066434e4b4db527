"""place: which CTA runs which task. Task q of an op goes to CTA (q + rotation) mod G, so that one package
runs on any number of CTAs and result bits do not depend on it. The rotation starts each op where the one
before stopped dealing: remainders do not pile up on the same CTAs.
"""

from __future__ import annotations

import dataclasses

from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext, Subject
from tilecc.passes.tile import MAX_GRID


def place(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `rotation` of every op: tasks dealt before it in its layer. Ops of the rolled loop that share a
    label share it."""
    rotations: dict[str, int] = {}
    dealt = 0
    for op in graph.ops:
        if op.label not in rotations:
            chosen = ctx.choose(
                "place",
                Subject("op", (op.label,)),
                [{"rotation": n} for n in range(max(MAX_GRID, dealt + 1))],
                default={"rotation": dealt},
                reason="where the op before stopped dealing",
                log=False,
            )
            rotations[op.label] = int(chosen["rotation"])
            dealt += op.tiles["tasks"]
    ctx.decide(
        "place",
        "tasks",
        "dealt in turn, rotated per op",
        "tasks of an op stream equal bytes; rotation spreads the remainders",
    )
    return dataclasses.replace(
        graph, ops=tuple(dataclasses.replace(op, rotation=rotations[op.label]) for op in graph.ops)
    )
