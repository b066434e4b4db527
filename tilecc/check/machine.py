"""State of the abstract run: warps, mbarriers, named barriers, counters, and who touched what when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Clock = NDArray[np.int32]


@dataclass(frozen=True)
class Violation:
    """`kind`: one of `checker.CODES`. `rows` are the rows of the step it is about, the one at fault first."""

    kind: str
    message: str
    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass
class Barrier:
    """An mbarrier: arrivals still missing in the running phase, and the clocks published to it."""

    name: str
    count: int
    pending: int
    agent: int
    sources: frozenset[tuple[int, str]]
    """(CTA, role) of those who arrive."""
    phase: int = 0
    arriving: Clock | None = None
    done: list[Clock] = field(default_factory=list)
    waiters: list[Thread] = field(default_factory=list)


@dataclass
class Counter:
    """Signals so far; `clocks[k]` of instance k, by CTA, and `joined[k]` of all of them."""

    op: str
    rank: int = 0
    value: int = 0
    clocks: dict[int, dict[int, Clock]] = field(default_factory=dict)
    joined: dict[int, Clock] = field(default_factory=dict)
    waiters: list[Thread] = field(default_factory=list)


@dataclass
class Words:
    """Words that are their own flags: how many of the `warps` that push them are done with each turn.
    `pushes`: the rows of the step that push them."""

    name: str
    warps: int
    pushes: tuple[int, ...]
    slots: int
    done: dict[int, int] = field(default_factory=dict)
    waiters: list[Thread] = field(default_factory=list)

    def turn(self, step: int, ordinal: int) -> int:
        """Turns since the first step."""
        return step * len(self.pushes) + ordinal

    def pushed_at(self, turn: int) -> tuple[int, int]:
        """(step, row) of the push of a turn."""
        return turn // len(self.pushes), self.pushes[turn % len(self.pushes)]


@dataclass
class Named:
    """A named barrier of a CTA and the warps that wait there."""

    name: str
    cta: int
    warps: int
    members: list[Thread] = field(default_factory=list)


@dataclass
class Sent:
    """Words that one task of one rank pushes to another rank: the latest exchange, who pushed it in which row
    and when, and the clocks of those who took and poisoned it."""

    name: str
    source: int
    exchange: int = -1
    row: int = 0
    pushed: Clock | None = None
    taken: Clock | None = None
    waiters: list[Thread] = field(default_factory=list)


@dataclass
class Touch:
    """Accesses of one op instance to a buffer, or of all to a part of a slot: latest time per thread. `key`
    is the (step, row) of the instance, of the latest for a slot; `older`: reads of what earlier steps
    wrote."""

    key: tuple[int, int]
    reads: Clock
    writes: Clock
    older: bool = False
    wrote: bool = False
    read: bool = False


@dataclass
class Thread:
    """One warp."""

    number: int
    cta: int
    role: str
    warp: int
    clock: Clock
    step: int = 0
    row: int = 0
    cursor: dict[tuple[str, bool], int] = field(default_factory=dict)
    signals: dict[int, int] = field(default_factory=dict)
    body: Iterator[object] | None = None
    blocked: object = None
    need: int = 0
