"""The pass list, in order. Each entry is one file of this package; `tilecc passes` prints the list."""

from __future__ import annotations

from collections.abc import Callable

from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext
from tilecc.passes.edges import edges
from tilecc.passes.fuse import fuse
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
    place,  # task -> CTA: after tile, which counts tasks
    roles,  # warps of a CTA: before rings, since exchange slots depend on the consumers
    rings,  # shared memory: last, it takes what is left
)

# TileGraph -> Program
PROGRAM = program  # rolls the layer loop, writes the op table

PASSES: tuple[Callable[..., object], ...] = (SHARD, FUSE, *TILE_PASSES, PROGRAM)
