"""The pass list, in order. Each entry is one file of this package; `tilecc passes` prints the list."""

from __future__ import annotations

from collections.abc import Callable

from tilecc.ir.graph import Graph
from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext
from tilecc.passes.edges import edges
from tilecc.passes.fuse import fuse
from tilecc.passes.order import order
from tilecc.passes.place import place
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
    edges,  # hand-offs from overlapping boxes: before placement, since every tile may land on any CTA
    order,  # the sequence of the ops: hand-offs say which ones are legal
    place,  # task -> CTA: after tile, which counts tasks
    roles,  # warps of a CTA: before rings, since exchange slots depend on the consumers
    rings,  # shared memory: last, it takes what is left
)

# TileGraph -> Program
PROGRAM = program  # rolls the layer loop, writes the op table

PASSES: tuple[Callable[..., object], ...] = (SHARD, FUSE, *TILE_PASSES, PROGRAM)

Watch = Callable[[str, object, object], None]
"""Called after each pass with its name, its input and its result."""


def lower_to_tiles(graph: Graph, ctx: PassContext, watch: Watch | None = None) -> TileGraph:
    """The TileGraph of one rank's Graph, every field filled.

    Raises TileccError for what cannot be lowered (TC022x), and for everything that is wrong with the schedule
    (TC0711 to TC0715) at once.
    """
    with ctx.schedule_first():
        tiles = FUSE(graph, ctx)
        if watch is not None:
            watch(FUSE.__name__, graph, tiles)
        for one in TILE_PASSES:
            before, tiles = tiles, one(tiles, ctx)
            if watch is not None:
                watch(one.__name__, before, tiles)
        ctx.settle(tiles.ops)
    return tiles
