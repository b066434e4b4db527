"""Runs a SyncProgram abstractly: deadlocks, races and lapped phases of one assignment of its symbols.

Every warp is a thread with a vector clock. All waits are monotone (a phase that is complete and a counter
that has been reached stay so), hence which threads end up blocked does not depend on the order in which
they run, and neither does happens-before: one execution decides for all schedules of this assignment.
What is left open is the number of CTAs, tasks and chunks; `structure` shows that both sides of a ring
agree for every number, and `checker` runs assignments that cover none, one and several of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilecc.check.sync import Do, Loop, OpSync, RingSync, Statement, SyncProgram

Clock = NDArray[np.int32]


@dataclass(frozen=True)
class Values:
    """An assignment: CTAs, steps, and how often loops run. `tasks` caps the tasks of an op; `experts` and
    `blocks` are the data-dependent counts."""

    grid: int
    tasks: int
    chunks: int
    experts: int
    blocks: int
    steps: int = 2
    spread: bool = True
    """Neighbouring ops start on different CTAs; else all start on CTA 0, and the last CTAs have no task at
    all."""

    def __str__(self) -> str:
        return (
            f"{self.grid} CTAs, up to {self.tasks} tasks, {self.chunks} chunks, {self.experts} active"
            f" experts, {self.blocks} KV blocks" + ("" if self.spread else ", all tasks on the first CTAs")
        )


@dataclass(frozen=True)
class Violation:
    """`kind`: deadlock, race, lap or arrivals. `rows` are the rows of the step it is about, the one at
    fault first."""

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
    phase: int = 0
    arriving: Clock | None = None
    done: list[Clock] = field(default_factory=list)
    waiters: list[Thread] = field(default_factory=list)


@dataclass
class Counter:
    """Signals so far; `clocks[k]` of instance k, by CTA."""

    value: int = 0
    clocks: dict[int, list[Clock]] = field(default_factory=dict)
    waiters: list[Thread] = field(default_factory=list)


@dataclass
class Touch:
    """Accesses of one op instance to a buffer, or of all to a slot: latest time per thread. `key` is the
    (step, row) of the instance, of the latest for a slot."""

    key: tuple[int, int]
    reads: Clock
    writes: Clock


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
    cursor: dict[str, int] = field(default_factory=dict)
    signals: dict[int, int] = field(default_factory=dict)
    body: Iterator[object] | None = None
    blocked: object = None
    need: int = 0


class Explorer:
    """One run. `violations` has each kind of mistake once per pair of ops."""

    def __init__(self, program: SyncProgram, values: Values, limit: int = 20) -> None:
        self.program, self.values, self.limit = program, values, limit
        self.rings = {r.name: r for r in program.rings}
        self.per_layer = {b.name: b.per_layer for b in program.buffers}
        self.ops = {op.name: op for op in program.ops}
        self.scripts = {(op.name, s.role): s.body for op in program.ops for s in op.scripts}
        self.violations: list[Violation] = []
        self.reported: set[tuple[object, ...]] = set()
        warps = sum(role.warps for role in program.roles)
        slots = sum(r.slots for r in program.rings)
        self.size = values.grid * (warps + slots)
        self.threads: list[Thread] = []
        self.barriers: dict[tuple[int, str, int, str], Barrier] = {}
        for cta in range(values.grid):
            for role in program.roles:
                for warp in range(role.warps):
                    n = len(self.threads)
                    clock = np.zeros(self.size, np.int32)
                    clock[n] = 1
                    self.threads.append(Thread(n, cta, role.name, warp, clock))
        agent = len(self.threads)
        for cta in range(values.grid):
            for ring in program.rings:
                for slot in range(ring.slots):
                    name = f"{ring.name}[{slot}] of CTA {cta}"
                    full = Barrier(f"full {name}", ring.full_count, ring.full_count, agent)
                    empty = Barrier(f"empty {name}", ring.empty_count, ring.empty_count, -1)
                    self.barriers[cta, ring.name, slot, "full"] = full
                    self.barriers[cta, ring.name, slot, "empty"] = empty
                    agent += 1
        self.counters: dict[int, Counter] = {op.counter: Counter() for op in program.ops if op.counter >= 0}
        self.slots: dict[tuple[int, str, int], Touch] = {}
        self.buffers: dict[str, list[Touch]] = {}
        self.syncs: dict[tuple[int, str], list[Thread]] = {}
        self.shift = {op.name: i * values.spread for i, op in enumerate(program.ops)}
        self.role_warps = {role.name: role.warps for role in program.roles}
        self.signaller = {t.cta: t.number for t in self.threads if t.role == "store" and t.warp == 0}
        self.by_counter = {op.counter: op for op in program.ops if op.counter >= 0}
        self.woken: list[Thread] = []
        self.producers: dict[tuple[int, str], Clock] = {}
        """Per CTA and role a clock that hides its own warps: they fill different parts of a slot between the
        same barriers."""
        for t in self.threads:
            hidden = self.producers.setdefault((t.cta, t.role), np.zeros(self.size, np.int32))
            hidden[t.number] = np.iinfo(np.int32).max

    # ---- running -------------------------------------------------------------------------------------------

    def run(self) -> list[Violation]:
        """Run until everything is done or blocked; returns what was found."""
        ready = deque(self.threads)
        for thread in self.threads:
            thread.body = self.thread_body(thread)
        while ready and len(self.violations) < self.limit:
            thread = ready.popleft()
            assert thread.body is not None
            thread.blocked = next(thread.body, None)
            if thread.blocked is None:
                thread.body = iter(())
            elif not self.satisfied(thread):
                if isinstance(thread.blocked, Barrier | Counter):
                    thread.blocked.waiters.append(thread)
            else:
                ready.append(thread)
            ready.extend(self.woken)
            self.woken.clear()
        stuck = [t for t in self.threads if t.blocked is not None]
        if stuck and len(self.violations) < self.limit:
            self.report_deadlock(stuck)
        return self.violations

    def satisfied(self, thread: Thread) -> bool:
        at = thread.blocked
        if isinstance(at, Barrier):
            return at.phase > thread.need
        if isinstance(at, Counter):
            return at.value >= thread.need
        return False

    def wake(self, waiters: list[Thread]) -> None:
        kept: list[Thread] = []
        for thread in waiters:
            if self.satisfied(thread):
                self.woken.append(thread)
            else:
                kept.append(thread)
        waiters[:] = kept

    def thread_body(self, t: Thread) -> Iterator[object]:
        for step in range(self.values.steps):
            for index, row in enumerate(self.program.rows):
                op = self.ops[row.op]
                body = self.scripts.get((op.name, t.role), ())
                tasks = self.tasks_of(op, t.cta)
                yield from self.statements(t, body, op, step, index, tasks)

    def tasks_of(self, op: OpSync, cta: int) -> int:
        over = {"experts": self.values.experts}.get(op.tasks_over, 1)
        count = min(op.tasks, self.values.tasks) * over
        # Where the first task lies depends on the number of CTAs: neighbours start on different ones here.
        first = (cta - self.shift[op.name]) % self.values.grid
        return len(range(first, count, self.values.grid))

    def statements(
        self, t: Thread, body: tuple[Statement, ...], op: OpSync, step: int, row: int, tasks: int
    ) -> Iterator[object]:
        for statement in body:
            if isinstance(statement, Loop):
                for _ in range(self.times(statement.over, op, tasks)):
                    yield from self.statements(t, statement.body, op, step, row, tasks)
                continue
            t.step, t.row = step, row
            yield from self.do(t, statement, op, step, row, tasks)

    def times(self, over: str, op: OpSync, tasks: int) -> int:
        v = self.values
        return {
            "tasks": tasks,
            "any": min(tasks, 1),
            "chunks": min(op.chunks, v.chunks),
            "experts": v.experts,
            "blocks": v.blocks,
        }[over]

    # ---- statements ----------------------------------------------------------------------------------------

    def do(self, t: Thread, s: Do, op: OpSync, step: int, row: int, tasks: int) -> Iterator[object]:
        verb = s.verb
        if verb in ("inputs", "idle"):
            if verb == "inputs" or not tasks:
                yield from self.wait_inputs(t, step, row)
        elif verb == "signal":
            self.signal(t, op, row)
        elif verb == "sync":
            yield from self.role_barrier(t)
        elif verb in ("read", "write"):
            self.touch_buffer(
                t,
                self.buffer_of(s.buffer, row),
                verb == "write",
                (step, row),
                t.number,
                int(t.clock[t.number]),
            )
        else:
            yield from self.ring_statement(t, s, self.rings[s.ring], step, row)

    def buffer_of(self, name: str, row: int) -> str:
        return f"{name}.{self.program.rows[row].layer}" if self.per_layer.get(name) else name

    def ring_statement(self, t: Thread, s: Do, ring: RingSync, step: int, row: int) -> Iterator[object]:
        verb = s.verb
        side = "produce" if verb in ("acquire", "put", "copy", "commit") else "consume"
        at = t.cursor.get(f"{side} {ring.name}", 0)
        slot, lap = at % ring.slots, at // ring.slots
        full = self.barriers[t.cta, ring.name, slot, "full"]
        empty = self.barriers[t.cta, ring.name, slot, "empty"]
        if verb == "acquire":
            if lap:
                yield from self.wait_phase(t, empty, lap - 1)
        elif verb == "take":
            yield from self.wait_phase(t, full, lap)
        elif verb == "put":
            self.touch_slot(t, ring, slot, True, t.number, int(t.clock[t.number]))
        elif verb == "copy":
            if t.warp == 0:
                time = full.phase + 1
                self.touch_slot(t, ring, slot, True, full.agent, time)
                if s.buffer in self.per_layer:
                    self.touch_buffer(t, self.buffer_of(s.buffer, row), False, (step, row), full.agent, time)
        elif verb == "use":
            # After `take` the cursor still stands on the slot; a routing record is used between take and
            # release.
            self.touch_slot(t, ring, slot, False, t.number, int(t.clock[t.number]))
        elif verb == "commit":
            if ring.full_count > 1 or t.warp == 0:
                self.arrive(t, full)
            t.cursor[f"produce {ring.name}"] = at + 1
        elif verb == "release":
            self.arrive(t, empty)
            t.cursor[f"consume {ring.name}"] = at + 1

    def wait_phase(self, t: Thread, barrier: Barrier, phase: int) -> Iterator[object]:
        if barrier.phase <= phase:
            t.need = phase
            yield barrier
        t.blocked = None
        if barrier.phase > phase + 1:
            self.lapped(t, barrier, phase)
        t.clock = np.maximum(t.clock, barrier.done[phase])
        self.tick(t)

    def tick(self, t: Thread) -> None:
        t.clock[t.number] += 1

    def arrive(self, t: Thread, barrier: Barrier) -> None:
        barrier.arriving = (
            t.clock.copy() if barrier.arriving is None else np.maximum(barrier.arriving, t.clock)
        )
        self.tick(t)
        barrier.pending -= 1
        if barrier.pending == 0:
            if barrier.agent >= 0:
                barrier.arriving[barrier.agent] = barrier.phase + 1
            barrier.done.append(barrier.arriving)
            barrier.arriving = None
            barrier.phase += 1
            barrier.pending = barrier.count
            self.wake(barrier.waiters)

    def role_barrier(self, t: Thread) -> Iterator[object]:
        group = self.syncs.setdefault((t.cta, t.role), [])
        group.append(t)
        if len(group) < self.role_warps[t.role]:
            yield group
            t.blocked = None
            return
        joined = t.clock
        for other in group:
            joined = np.maximum(joined, other.clock)
        for other in group:
            other.clock = joined.copy()
            self.tick(other)
            if other is not t:
                self.woken.append(other)
        self.syncs[t.cta, t.role] = []

    # ---- counters ------------------------------------------------------------------------------------------

    def wait_inputs(self, t: Thread, step: int, row: int) -> Iterator[object]:
        grid = self.values.grid
        for wait in self.program.rows[row].waits:
            op = self.by_counter[wait.counter]
            instance = step * op.per_step + wait.ordinal
            if instance <= 0:
                continue
            arrivals = grid if wait.arrivals < 0 else wait.arrivals
            counter = self.counters[wait.counter]
            t.need = (instance - 1) * grid + arrivals
            if counter.value < t.need:
                yield counter
                t.blocked = None
            # Arrivals come in the order of instances (checked where they are made), so a whole number of
            # instances is known; of an instance that was not waited for in full, any arrival may be the
            # missing one.
            known = instance if arrivals >= grid else instance - 1
            for k in range(max(1, known - 1), known + 1):  # older ones are in these clocks
                for source, clock in enumerate(counter.clocks.get(k, [])):
                    if op.scope != "cta" or source == t.cta:
                        t.clock = np.maximum(t.clock, clock)
            self.tick(t)

    def signal(self, t: Thread, op: OpSync, row: int) -> None:
        counter = self.counters[op.counter]
        k = t.signals.get(op.counter, 0) + 1
        t.signals[op.counter] = k
        before = counter.clocks.get(k - 1, [])
        late = [
            c
            for c, number in self.signaller.items()
            if k > 1 and (c >= len(before) or before[c][number] > t.clock[number])
        ]
        if late and op.scope != "cta":
            self.report(
                "lap", (op.name,),
                f"CTA {t.cta} signals instance {k} of `{op.name}` although CTA {late[0]} may not have"
                f" signalled instance {k - 1}: its arrival can stand in for the missing one",
                (row,),
            )  # fmt: skip
        clocks = counter.clocks.setdefault(k, [])
        while len(clocks) <= t.cta:
            clocks.append(np.zeros(self.size, np.int32))
        clocks[t.cta] = t.clock.copy()
        self.tick(t)
        counter.value += 1
        self.wake(counter.waiters)

    # ---- accesses ------------------------------------------------------------------------------------------

    def touch_slot(self, t: Thread, ring: RingSync, slot: int, write: bool, agent: int, time: int) -> None:
        step, row = t.step, t.row
        key = (t.cta, ring.name, slot)
        touch = self.slots.get(key)
        if touch is None:
            zero = np.zeros(self.size, np.int32)
            touch = self.slots[key] = Touch((step, row), zero, zero.copy())
        mine = np.maximum(t.clock, self.producers[t.cta, t.role]) if write else t.clock
        bad_write = bool(np.any(touch.writes > mine))
        bad_read = write and bool(np.any(touch.reads > mine))
        if bad_write or bad_read:
            old = "written" if bad_write else "read"
            self.report(
                "race",
                (ring.name, write, bad_write, self.program.rows[row].op, touch.key[1]),
                f"{self.who(t)} {'fills' if write else 'reads'} slot {slot} of ring `{ring.name}`"
                f" while it may still be {old}",
                (row, touch.key[1]),
            )
        (touch.writes if write else touch.reads)[agent] = time
        touch.key = (step, row)

    def touch_buffer(
        self, t: Thread, name: str, write: bool, key: tuple[int, int], agent: int, time: int
    ) -> None:
        found = self.buffers.setdefault(name, [])
        mine: Touch | None = None
        for touch in found:
            if touch.key == key:
                mine = touch
                continue
            bad_write = bool(np.any(touch.writes > t.clock))
            bad_read = write and bool(np.any(touch.reads > t.clock))
            if bad_write or bad_read:
                row, other = self.program.rows[key[1]], self.program.rows[touch.key[1]]
                when = " of the step before" if touch.key[0] < key[0] else ""
                self.report(
                    "race", (name, row.op, other.op, write),
                    f"`{row.op}` of layer {row.layer} {'writes' if write else 'reads'} `{name}`, and nothing"
                    f" orders it after `{other.op}` of layer {other.layer}{when}, which"
                    f" {'writes' if bad_write else 'reads'} it",
                    (key[1], touch.key[1]),
                )  # fmt: skip
        if mine is None:
            zero = np.zeros(self.size, np.int32)
            mine = Touch(key, zero, zero.copy())
            # What is older than the latest writer before this op is ordered through it.
            writers = [i for i, touch in enumerate(found) if touch.writes.any()]
            if writers:
                del found[: writers[-1]]
            found.append(mine)
        (mine.writes if write else mine.reads)[agent] = time

    # ---- reports -------------------------------------------------------------------------------------------

    def who(self, t: Thread) -> str:
        row = self.program.rows[t.row]
        return f"{t.role} warp {t.warp} of CTA {t.cta} in `{row.op}` of layer {row.layer}"

    def report(self, kind: str, key: tuple[object, ...], message: str, rows: tuple[int, ...]) -> None:
        if (kind, *key) not in self.reported:
            self.reported.add((kind, *key))
            self.violations.append(Violation(kind, message, rows, (f"with {self.values}",)))

    def lapped(self, t: Thread, barrier: Barrier, phase: int) -> None:
        self.report(
            "lap", (barrier.name.split("[")[0], t.role),
            f"{self.who(t)} waits for phase {phase} of {barrier.name}, which may be"
            f" {barrier.phase - phase} phases further: the parity is ambiguous",
            (t.row,),
        )  # fmt: skip

    def report_deadlock(self, stuck: list[Thread]) -> None:
        # The thread whose row is earliest keeps the others waiting.
        first = min(stuck, key=lambda t: (t.step, t.row))
        rows = tuple(dict.fromkeys(t.row for t in (first, *stuck)))
        notes = tuple(dict.fromkeys(map(self.wait_text, stuck)))[:16]
        self.violations.append(
            Violation(
                "deadlock",
                f"{len(stuck)} of {len(self.threads)} warps wait for ever, the earliest is {self.who(first)}",
                rows[:4],
                (*notes, f"with {self.values}"),
            )
        )

    def wait_text(self, t: Thread) -> str:
        at = t.blocked
        if isinstance(at, Barrier):
            return (
                f"{self.who(t)} waits for phase {t.need} of {at.name}, which has completed {at.phase}"
                f" ({at.count - at.pending} of {at.count} arrivals)"
            )
        if isinstance(at, Counter):
            source = next(self.by_counter[n].name for n, c in self.counters.items() if c is at)
            return f"{self.who(t)} waits for {t.need} signals of `{source}`, there are {at.value}"
        return f"{self.who(t)} waits for the other warps of its role"
