"""SyncProgram: the synchronisation of a Program made explicit, which is what the checker runs.

Every warp of a CTA runs the scripts of its role, op after op, step after step. A script is a list of
statements and of loops over a symbol ("tasks" of the CTA, "chunks" of a task, ...) whose value is only
known at run time; `tilecc.check.extents` lists the symbols.

    acquire R   wait until slot s of ring R is empty     take R      wait until it is full
    put R       write the slot (generic stores)          use R       read the slot
    copy R B    copy buffer B into it, asynchronously    release R   arrive on "empty", go to the next slot
    commit R    arrive on "full", go to the next slot    skip R      go to the next slot: its `release` came
                                                                     before its turn
    inputs      wait for the counters of the row         idle        the same, if the CTA has no tasks of it
    previous    wait for them as of one step ago         ended       wait for the last op of the step before
    read B      read buffer B                            write B     write buffer B
    sync N      named barrier N                          signal      arrive on the op's counter
    push B      write words that are their own flags,    poll B      wait for those of the turn that the row
                of the turn that the row pushes                      polls, and read them
    poison B    by who polls B: take those words back; by who pushes B: those of the next turn
    send B      write the task's words of buffer B of    receive B   wait for the words of B that the task
                every rank, behind a fence                           reads, of every rank, and poison them

`take`, `use` and `release` with `ahead` mean the slot that many further; only `skip` passes it over. `put`
and `use` with an `area` mean a part of the slot: "warp:NAME" is one part per warp, of which `put` writes its
own and `use` reads all; "block:NAME" one part per block of the loop around it. Without an area the warps of
a role write different parts. A ring with one slot and several consumer roles is the routing record.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tilecc.ir.loc import UNKNOWN, Loc
from tilecc.ir.text import ir_node, parse_ir, print_ir

IR_VERSION = 1

VERBS = (
    "acquire", "put", "copy", "commit", "take", "use", "release", "skip", "inputs", "idle", "previous",
    "ended", "read", "write", "sync", "signal", "push", "poll", "poison", "send", "receive",
)  # fmt: skip
RING_VERBS = frozenset({"acquire", "put", "copy", "commit", "take", "use", "release", "skip"})
WORD_VERBS = frozenset({"push", "poll", "poison"})


@ir_node(positional=2)
class Do:
    """One statement. `ring`, `buffer` and named barrier `bar` where the verb takes them; `ahead` is a symbol.
    `older`: only what earlier steps wrote is read. `word`: of a word that says itself which step it is of, so
    that later writes need not be ordered after the read."""

    verb: str
    ring: str = ""
    buffer: str = ""
    area: str = ""
    ahead: str = ""
    bar: str = ""
    older: bool = False
    word: bool = False


@ir_node(positional=1)
class Loop:
    """Statements repeated once per value of a symbol (`tilecc.check.extents`)."""

    over: str
    body: tuple[Do | Loop, ...]


Statement = Do | Loop


@ir_node(positional=1)
class Script:
    """What every warp of a role does for an op; the role takes the tasks that are dealt to the CTA `shift`
    places before its own."""

    role: str
    body: tuple[Do | Loop, ...] = ()
    shift: int = 0


@ir_node(positional=1)
class RingSync:
    """A ring and its two mbarriers per slot: how many arrivals complete a phase of each. `commits` is how
    many a commit makes: one per warp of the producer, or 1 by its warp 0 alone."""

    name: str
    slots: int
    producer: str
    consumers: tuple[str, ...]
    full_count: int
    empty_count: int
    commits: int


@ir_node(positional=1)
class RoleSync:
    """A role; each of its warps is a thread of the checker."""

    name: str
    warps: int


@ir_node(positional=1)
class BarSync:
    """A named barrier of the CTA: so many warps complete it."""

    name: str
    warps: int


@ir_node(positional=1)
class BufferSync:
    """Global memory. Tasks of one op touch different parts of it; `per_layer`: so do ops of different
    layers. Words that are their own flags have as many slots as `turns`, used in turn, `per_step` a step.
    `slots` of a buffer that the ranks push into: exchange e uses slot e modulo the slots."""

    name: str
    per_layer: bool = False
    turns: int = 0
    per_step: int = 0
    slots: int = 0


@ir_node(positional=1)
class OpSync:
    """An op class: its scripts, its counter (-1: none) and the scope of that counter's release ("gpu", "cta",
    or "none" for a relaxed signal). `tasks` and `chunks` per task are the largest counts; `shape` holds the
    sizes that `tilecc.check.extents` computes the symbols from."""

    name: str
    counter: int
    per_step: int
    tasks: int
    scripts: tuple[Script, ...]
    scope: str = "gpu"
    chunks: int = 1
    tasks_over: str = ""
    """"experts": so many tasks per active expert."""
    kind: str = ""
    shape: dict[str, int] = dataclasses.field(default_factory=dict)
    loc: Loc = UNKNOWN


@ir_node(positional=1)
class WaitSync:
    """Counter `counter` must have seen instance `ordinal` of the step (1-based; 0 and less: of the step
    before) on `arrivals` CTAs; -1 means all."""

    counter: int
    ordinal: int
    arrivals: int = -1


@ir_node(positional=1)
class RowSync:
    """One op of the step. `pushed`, `polled`: which turn of the step its words are of."""

    op: str
    layer: int
    waits: tuple[WaitSync, ...] = ()
    pushed: int = 0
    polled: int = 0


@ir_node
class SyncProgram:
    """One step of one rank, repeated for ever. Every step starts with the scripts of `begin`; `last` is the
    counter that `ended` waits for (-1: none)."""

    IR_NAME: ClassVar[str] = "sync"
    IR_VERSION: ClassVar[int] = IR_VERSION

    name: str
    roles: tuple[RoleSync, ...]
    rings: tuple[RingSync, ...]
    buffers: tuple[BufferSync, ...]
    ops: tuple[OpSync, ...]
    rows: tuple[RowSync, ...]
    bars: tuple[BarSync, ...] = ()
    begin: tuple[Script, ...] = ()
    last: int = -1
    ranks: int = 1

    def op(self, name: str) -> OpSync:
        """The op class of that name. Raises KeyError."""
        for op in self.ops:
            if op.name == name:
                return op
        raise KeyError(name)

    def to_text(self) -> str:
        """The printed SyncProgram."""
        return print_ir(self)

    @staticmethod
    def from_text(text: str, file: str = "<sync>") -> SyncProgram:
        """Read a printed SyncProgram. Raises TileccError as `parse_ir` does."""
        program = parse_ir(text, [SyncProgram], file)
        assert isinstance(program, SyncProgram)
        return program


def with_op(program: SyncProgram, name: str, **changes: object) -> SyncProgram:
    """The program with fields of one op class replaced."""
    ops = tuple(dataclasses.replace(o, **changes) if o.name == name else o for o in program.ops)  # type: ignore[arg-type]
    return dataclasses.replace(program, ops=ops)
