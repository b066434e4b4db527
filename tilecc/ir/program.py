"""Program: one persistent kernel, ready to be emitted. The layer loop is rolled: ops of the same shape in
different layers are one OpClass, and what differs between them is a row of the op table.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tilecc.ir.graph import AttrValue
from tilecc.ir.loc import UNKNOWN, Loc
from tilecc.ir.rows import BASE_ROWS
from tilecc.ir.text import ir_node, parse_ir, print_ir
from tilecc.ir.tile import Prefetch, RingSpec, RoleSpec, Weight
from tilecc.package import IR_VERSION


@ir_node(positional=2)
class OpClass:
    """Code of one kind and shape of op. `constants` become constexpr members of the emitted op; `counter` is
    the id of its epoch counter (-1: nobody waits for one), `per_step` how many instances a step has.
    `prefetch` names classes of the same layer: a layer without one has nothing to prefetch. `pushes`,
    `polls`: the regions of words that it hands on, and is handed, as flags."""

    name: str
    kind: str
    constants: dict[str, AttrValue]
    counter: int
    per_step: int
    doc: str
    hand_offs: tuple[str, ...] = ()
    prefetch: tuple[Prefetch, ...] = ()
    pushes: str = ""
    polls: str = ""
    loc: Loc = UNKNOWN


@ir_node(positional=2)
class WaitSpec:
    """Counter `counter` must have seen instance `ordinal` (1-based; 0 and less: of the step before) on all
    CTAs."""

    counter: int
    per_step: int
    ordinal: int


@ir_node(positional=2)
class OpRowSpec:
    """One row of the op table: which class, in which layer, with which image entries (names) and waits.
    `pushed`, `polled`: the turns of the step (from 0) in the words that the op pushes and polls as flags."""

    op: str
    layer: int
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    kv_offset: int = 0
    waits: tuple[WaitSpec, ...] = ()
    pushed: int = 0
    polled: int = 0


@ir_node(positional=1)
class RegionSpec:
    """A region of the workspace, bytes, which the host clears once; with `init` "poison" the first launch
    fills it with the poison of words that are their own flags."""

    name: str
    offset: int
    nbytes: int
    init: str = "zero"


@ir_node
class Program:
    """Everything that emission needs. Offsets and sizes are bytes; a step has up to `max_rows` rows."""

    IR_NAME: ClassVar[str] = "program"
    IR_VERSION: ClassVar[int] = IR_VERSION

    name: str
    target: str
    layers: int
    hidden: int
    vocab: int
    max_context: int
    max_seqs: int
    roles: tuple[RoleSpec, ...]
    rings: tuple[RingSpec, ...]
    classes: tuple[OpClass, ...]
    prologue: tuple[str, ...]
    body: tuple[str, ...]
    epilogue: tuple[str, ...]
    rows: tuple[OpRowSpec, ...]
    workspace: tuple[RegionSpec, ...]
    workspace_bytes: int
    kv_bytes: int
    weights: tuple[Weight, ...]
    max_rows: int = BASE_ROWS

    @property
    def threads(self) -> int:
        """Threads of one CTA."""
        return 32 * max(role.first_warp + role.warps for role in self.roles)

    def op_class(self, name: str) -> OpClass:
        """The class of that name. Raises KeyError."""
        for op in self.classes:
            if op.name == name:
                return op
        raise KeyError(name)

    def ring(self, name: str) -> RingSpec:
        """The ring of that name. Raises KeyError."""
        for ring in self.rings:
            if ring.name == name:
                return ring
        raise KeyError(name)

    def turns(self, region: str) -> int:
        """How often a step pushes the words of a region."""
        pushing = {op.name for op in self.classes if op.pushes == region}
        return sum(row.op in pushing for row in self.rows)

    def region(self, name: str) -> RegionSpec:
        """The workspace region of that name. Raises KeyError."""
        for region in self.workspace:
            if region.name == name:
                return region
        raise KeyError(name)

    def to_text(self) -> str:
        """The printed Program."""
        return print_ir(self)

    @staticmethod
    def from_text(text: str, file: str = "<program>") -> Program:
        """Read a printed Program. Raises TileccError as `parse_ir` does."""
        program = parse_ir(text, [Program], file)
        assert isinstance(program, Program)
        return program
