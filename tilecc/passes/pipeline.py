"""The pass list, in order. Each entry is one file of this package; `tilecc passes` prints the list."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tilecc.diag import TileccError, error
from tilecc.ir.graph import Graph
from tilecc.ir.program import Program
from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext
from tilecc.passes.edges import edges
from tilecc.passes.fuse import fuse
from tilecc.passes.order import order
from tilecc.passes.place import place
from tilecc.passes.prefetch import prefetch
from tilecc.passes.program import program
from tilecc.passes.rings import rings
from tilecc.passes.roles import roles
from tilecc.passes.shard import shard
from tilecc.passes.tile import tile

# Graph -> Graph
SHARD = shard  # one rank's part: before fuse, so that an exchange ends a fused op

# Graph -> TileGraph
FUSE = fuse  # which tensor ops become one TileOp; needs the whole graph, so it is first

# TileGraph -> TileGraph
TILE_PASSES: tuple[Callable[[TileGraph, PassContext], TileGraph], ...] = (
    tile,  # tile shapes, K splits, boxes: what `edges` compares and `place` counts
    order,  # the sequence of the ops: overlapping boxes say which ones are legal
    edges,  # hand-offs from overlapping boxes: before placement, since every tile may land on any CTA
    place,  # task -> CTA: after tile, which counts tasks
    roles,  # warps of a CTA: before rings, since exchange slots depend on the consumers
    rings,  # shared memory: it takes what is left
    prefetch,  # what goes to L2 ahead of the ring: last, it depends on how much the ring holds
)

# TileGraph -> Program
PROGRAM = program  # rolls the layer loop, writes the op table

PASSES: tuple[Callable[..., object], ...] = (SHARD, FUSE, *TILE_PASSES, PROGRAM)

GRAPH_PASSES = (SHARD.__name__,)
TILE_PASS_NAMES: tuple[str, ...] = (FUSE.__name__, *(one.__name__ for one in TILE_PASSES))
"""The passes that make and fill a TileGraph, by name, in order."""


class Watch:
    """Told of every pass before and after it runs. This one does nothing."""

    def before(self, name: str, ir: Graph | TileGraph | Program) -> None:
        """A pass is about to run on `ir`."""

    def after(self, name: str, ir: Graph | TileGraph | Program) -> None:
        """A pass has made `ir`."""


def run_pass(
    name: str, ir: Graph | TileGraph | Program, ctx: PassContext, watch: Watch | None = None
) -> Graph | TileGraph | Program:
    """One pass by its name. A TileGraph remembers the passes up to this one; what later ones filled in is
    stale and is made again by them.

    Raises TileccError TC0716 if the pass takes an IR of another level, or a TileGraph that lacks what an
    earlier pass fills in; what the pass raises.
    """
    if watch is not None:
        watch.before(name, ir)
    made = _apply(name, ir, ctx)
    if watch is not None:
        watch.after(name, made)
    return made


def _apply(name: str, ir: Graph | TileGraph | Program, ctx: PassContext) -> Graph | TileGraph | Program:
    if name in (SHARD.__name__, FUSE.__name__):
        if not isinstance(ir, Graph):
            raise _misplaced(name, "a Graph", ir)
        if name == SHARD.__name__:
            return SHARD(ir, ctx)
        return dataclasses.replace(FUSE(ir, ctx), passes=TILE_PASS_NAMES[:1])
    if not isinstance(ir, TileGraph):
        raise _misplaced(name, "a TileGraph", ir)
    earlier = TILE_PASS_NAMES if name == PROGRAM.__name__ else TILE_PASS_NAMES[: TILE_PASS_NAMES.index(name)]
    missing = [n for n in earlier if n not in ir.passes]
    if missing:
        raise error(
            "TC0716",
            f"pass `{name}` comes after {', '.join(f'`{n}`' for n in missing)}",
            note=f"this text was made by: {', '.join(ir.passes) or 'no pass'}",
            help=f"run them first: -p {','.join((*missing, name))}",
        )
    if name == PROGRAM.__name__:
        return PROGRAM(ir, ctx)
    one = next(p for p in TILE_PASSES if p.__name__ == name)
    return dataclasses.replace(one(ir, ctx), passes=(*earlier, name))


def _misplaced(name: str, wanted: str, ir: Graph | TileGraph | Program) -> TileccError:
    return error(
        "TC0716",
        f"pass `{name}` takes {wanted}, this is a {type(ir).__name__}",
        note="in order: " + ", ".join(p.__name__ for p in PASSES),
        help="give text of the level before the pass (`tilecc compile --dump DIR` writes all of them)",
    )


def lower_to_tiles(
    ir: Graph | TileGraph, ctx: PassContext, watch: Watch | None = None, until: str = ""
) -> TileGraph:
    """The TileGraph of one rank's Graph, every field filled; goes on where a given TileGraph's passes ended,
    and stops after the pass `until` if there is one of that name.

    Raises TileccError for what cannot be lowered (TC022x), and for everything that is wrong with the schedule
    (TC0711 to TC0715) at once.
    """
    done = ir.passes if isinstance(ir, TileGraph) else ()
    with ctx.schedule_first():
        for name in TILE_PASS_NAMES:
            if name not in done:
                made = run_pass(name, ir, ctx, watch)
                assert isinstance(made, TileGraph)
                ir = made
            if name == until:
                break
        assert isinstance(ir, TileGraph)
        ctx.settle(ir.ops, skipped=done, whole=ir.passes == TILE_PASS_NAMES)
    return ir
