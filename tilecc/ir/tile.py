"""TileGraph: the decode step as TileOps over named buffers, before it becomes one program.

`fuse` makes it from a Graph; `tile` adds buffers, tile spaces and the boxes each op reads and writes;
`edges` derives the hand-offs from overlapping boxes; `place` deals tasks to CTAs; `roles` and `rings` choose
the machine of one CTA. Every field that a later pass fills is empty before. Boxes are half-open intervals
per dimension; a data-dependent extent (rows, active experts, context) stands at its upper bound.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import ClassVar

from tilecc.ir.graph import AttrValue
from tilecc.ir.loc import UNKNOWN, Loc
from tilecc.ir.rows import BASE_ROWS
from tilecc.ir.text import ir_node, parse_ir, print_ir

IR_VERSION = 2

Box = tuple[tuple[int, int], ...]


class Space(enum.Enum):
    """Where a buffer lives, which decides the kinds of hand-off that may protect it."""

    WORKSPACE = 0  # global memory, all CTAs
    KV = 1  # global memory, outlives the launch
    CTA = 2  # shared memory of one CTA, recomputed by each
    IO = 3  # the caller's output buffers
    PEER = 4  # global memory of each rank that all ranks write, one slot per epoch modulo the slots


class HandOffKind(enum.Enum):
    """How a consumer learns that a producer is done."""

    MBARRIER = 0  # both run on the same CTA
    COUNTER = 1  # GPU-scope epoch counter, one arrival per CTA
    PEER_FLAG = 2  # words that all ranks push, each its own flag: system scope
    FLAG = 3  # words that one op pushes and another polls, each its own flag: GPU scope


@ir_node(positional=2)
class Weight:
    """One entry of the weight image; the fields are those of `tilecc.package.ImageEntry` before layout."""

    name: str
    kind: str
    format: str = "-"
    rule: str = "-"
    sources: tuple[str, ...] = ()
    rows: int = 0
    cols: int = 0
    experts: int = 0
    args: dict[str, int | float] = dataclasses.field(default_factory=dict)


@ir_node(positional=2)
class Buffer:
    """Named storage. `shape` is logical, in elements, of one slot; `nbytes` what it takes in its layout,
    padding and all `slots` included. Instance e of a writer uses slot e modulo `slots`. `word` is not 0 where
    every word of so many bytes is its own flag: it holds data, or the poison if it is not there yet."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    space: Space = Space.WORKSPACE
    slots: int = 1
    word: int = 0


@ir_node(positional=1)
class Access:
    """A box of a buffer."""

    buffer: str
    box: Box


@ir_node(positional=1)
class HandOff:
    """This op waits for op `source`; `previous_step` when that is an instance of the step before."""

    source: str
    kind: HandOffKind
    buffers: tuple[str, ...]
    reason: str
    previous_step: bool = False


@ir_node(positional=2)
class Prefetch:
    """Up to `stages` ring stages per CTA of op `op` are asked for into L2; of the op itself, those after the
    ring's."""

    op: str
    stages: int


@ir_node
class TileOp:
    """One op of the step: what it fuses, its constants, and (later) its tiles, accesses and hand-offs.

    `prefetch` is what the loader asks for once the ring is full of this op's weights.

    `label` is the part of the name that instances of different layers share; `layer` is -1 outside the
    layers. `weights` maps the op's uses ("matrix", "norm", "aux") to entries of the image.
    """

    name: str
    kind: str
    label: str
    layer: int
    fused: tuple[str, ...] = ()
    attrs: dict[str, AttrValue] = dataclasses.field(default_factory=dict)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    tiles: dict[str, int] = dataclasses.field(default_factory=dict)
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()
    hand_offs: tuple[HandOff, ...] = ()
    rotation: int = 0
    prefetch: tuple[Prefetch, ...] = ()
    loc: Loc = UNKNOWN


@ir_node(positional=1)
class RoleSpec:
    """A warp role: `warps` warps from `first_warp`. `registers` 0 leaves the budget to the launch bounds."""

    name: str
    first_warp: int
    warps: int
    registers: int = 0


@ir_node(positional=1)
class RingSpec:
    """A ring of shared memory."""

    name: str
    slots: int
    slot_bytes: int


@ir_node
class TileGraph:
    """The step of one rank, of up to `max_rows` rows. Ops are in an order in which every hand-off of the step
    points backwards."""

    IR_NAME: ClassVar[str] = "tiles"
    IR_VERSION: ClassVar[int] = IR_VERSION

    name: str
    target: str
    max_context: int
    max_seqs: int
    layers: int
    hidden: int
    vocab: int
    ops: tuple[TileOp, ...]
    weights: tuple[Weight, ...]
    buffers: tuple[Buffer, ...] = ()
    roles: tuple[RoleSpec, ...] = ()
    rings: tuple[RingSpec, ...] = ()
    ranks: int = 1
    max_rows: int = BASE_ROWS
    passes: tuple[str, ...] = ()
    """The passes that made this text, in order: `tilecc compile --from` goes on after the last."""

    def op(self, name: str) -> TileOp:
        """The op of that name. Raises KeyError."""
        for op in self.ops:
            if op.name == name:
                return op
        raise KeyError(name)

    def to_text(self) -> str:
        """The printed TileGraph."""
        return print_ir(self)

    @staticmethod
    def from_text(text: str, file: str = "<tiles>") -> TileGraph:
        """Read a printed TileGraph. Raises TileccError as `parse_ir` does."""
        graph = parse_ir(text, [TileGraph], file)
        assert isinstance(graph, TileGraph)
        return graph


FLAG_TURNS = 3
"""Slots of words that are their own flags (kTurns in op_common.cuh): while one is pushed, the next one is
poisoned, and the one before may still be read."""

STORE_OPS = frozenset({"embed", "reduce", "attention_merge", "commit", "argmax_push"})
"""Ops that the store warps carry out alone (op_vector.cuh). A store warp goes through all ops of its CTA, so
what an earlier op waited for is done when one of these starts."""


def warps_along_k(consumers: int, chunk: int) -> int:
    """Consumer warps that share the K blocks of a chunk, the others its m16 tiles: the largest power of two
    that divides the consumers and leaves no warp without a block."""
    warps = 1
    while consumers % (2 * warps) == 0 and 2 * warps <= chunk:
        warps *= 2
    return warps
