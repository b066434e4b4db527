"""Runs a SyncProgram abstractly: deadlocks, races and lapped phases of one assignment of its symbols.

Every warp is a thread with a vector clock; with several ranks with two, of which the second also knows what
pushed words tell: they order the reuse of their slots, behind fences, and nothing else. All waits are
monotone (a phase that is complete and a counter that has been reached stay so), hence which threads end up
blocked does not depend on the order in which they run, and neither does happens-before: one execution
decides for all schedules of this assignment.
What is left open is the number of CTAs, tasks and chunks; `structure` shows that both sides of a ring
agree for every number, and `checker` runs assignments that cover none, one and several of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from tilecc.check.blocked import deadlock
from tilecc.check.exchange import Exchanges
from tilecc.check.extents import Extents, Frame, Launch, Values, walk
from tilecc.check.machine import Barrier, Clock, Counter, Named, Sent, Thread, Touch, Violation, Words
from tilecc.check.sync import VERBS, WORD_VERBS, Do, Loop, RingSync, RowSync, Statement, SyncProgram

PRODUCING = frozenset({"acquire", "put", "copy", "commit"})
WAITING = frozenset({"inputs", "idle", "previous", "ended", "sync", "acquire", "take", "poll", "receive"})
ACTING = frozenset(VERBS) - WAITING
"""Verbs that never wait."""


class Explorer:
    """One run. `violations` has each kind of mistake once per pair of ops."""

    def __init__(self, program: SyncProgram, values: Values | Launch, limit: int = 200) -> None:
        self.program, self.values, self.limit = program, values, limit
        self.extents: Extents = values
        self.rings = {r.name: r for r in program.rings}
        self.per_layer = {b.name: b.per_layer for b in program.buffers}
        self.scripts = {(op.name, s.role): s for op in program.ops for s in op.scripts}
        self.begin = {s.role: s.body for s in program.begin}
        self.only_tasks = {
            key: all(isinstance(s, Loop) and s.over in ("tasks", "any") for s in script.body)
            for key, script in self.scripts.items()
        }
        """Scripts that do nothing on a CTA without tasks."""
        numbers = {op.name: i for i, op in enumerate(program.ops)}
        self.rows = [(row, program.op(row.op), numbers[row.op]) for row in program.rows]
        self.by_counter = {op.counter: op for op in program.ops if op.counter >= 0}
        self.violations: list[Violation] = []
        self.reported: set[tuple[object, ...]] = set()
        self.role_warps = {role.name: role.warps for role in program.roles}
        slots = sum(r.slots for r in program.rings)
        self.ctas = values.grid * values.ranks
        self.size = self.ctas * (sum(self.role_warps.values()) + slots)
        self.threads: list[Thread] = []
        self.barriers: dict[tuple[int, str], list[tuple[Barrier, Barrier]]] = {}
        """Full and empty barriers of every slot, by CTA and ring."""
        self.named: dict[tuple[int, str], Named] = {}
        for cta in range(self.ctas):
            for role in program.roles:
                for warp in range(role.warps):
                    n = len(self.threads)
                    clock = np.zeros(self.size * (2 if values.ranks > 1 else 1), np.int32)
                    clock[n :: self.size] = 1
                    self.threads.append(Thread(n, cta, role.name, warp, clock))
        agent = len(self.threads)
        for cta in range(self.ctas):
            for bar in program.bars:
                self.named[cta, bar.name] = Named(bar.name, cta, bar.warps)
            for ring in program.rings:
                makers, takers = (
                    frozenset({(cta, ring.producer)}),
                    frozenset((cta, c) for c in ring.consumers),
                )
                for slot in range(ring.slots):
                    name = f"{ring.name}[{slot}] of CTA {cta}"
                    full = Barrier(f"full {name}", ring.full_count, ring.full_count, agent, makers)
                    empty = Barrier(f"empty {name}", ring.empty_count, ring.empty_count, -1, takers)
                    self.barriers.setdefault((cta, ring.name), []).append((full, empty))
                    agent += 1
        self.counters = {
            (rank, op.counter): Counter(op.name, rank)
            for op in program.ops
            for rank in range(values.ranks)
            if op.counter >= 0
        }
        self.words: dict[tuple[int, str], Words] = {}
        """By rank and name of the buffer."""
        self.pushing: dict[tuple[str, str], str] = {}
        """(op, role) that pushes words, and which."""
        for op in program.ops:
            for script in op.scripts:
                for name in _pushed(script.body):
                    self.pushing[op.name, script.role] = name
                    rows = tuple(i for i, row in enumerate(program.rows) if row.op == op.name)
                    rows += self.words[0, name].pushes if (0, name) in self.words else ()
                    turns = next(b.turns for b in program.buffers if b.name == name)
                    warps = values.grid * self.role_warps[script.role]
                    for rank in range(values.ranks):
                        self.words[rank, name] = Words(name, warps, tuple(sorted(rows)), turns)
        self.exchanges = Exchanges(program)
        self.sent: dict[tuple[int, str, int, int, int], Sent] = {}
        """By rank that is written, buffer, slot, rank that writes, and its task."""
        self.slots: dict[tuple[int, str, int], dict[tuple[str, int], Touch]] = {}
        self.buffers: dict[tuple[int, str], list[Touch]] = {}
        self.signaller = {t.cta: t.number for t in self.threads if t.role == "store" and t.warp == 0}
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
                if isinstance(thread.blocked, Barrier | Counter | Words | Sent):
                    thread.blocked.waiters.append(thread)
            else:
                ready.append(thread)
            ready.extend(self.woken)
            self.woken.clear()
        stuck = [t for t in self.threads if t.blocked is not None]
        if stuck and len(self.violations) < self.limit:
            self.violations.append(
                deadlock(self.program, self.threads, stuck, self.values.grid, f"with {self.values}")
            )
        return self.violations

    def satisfied(self, thread: Thread) -> bool:
        at = thread.blocked
        if isinstance(at, Barrier):
            return at.phase > thread.need
        if isinstance(at, Counter):
            return at.value >= thread.need
        if isinstance(at, Words):
            return self.satisfied_by(at, thread.need)
        return isinstance(at, Sent) and at.exchange >= thread.need

    def wake(self, waiters: list[Thread]) -> None:
        kept: list[Thread] = []
        for thread in waiters:
            if self.satisfied(thread):
                self.woken.append(thread)
            else:
                kept.append(thread)
        waiters[:] = kept

    def thread_body(self, t: Thread) -> Iterator[object]:
        warps = self.role_warps[t.role]
        begin = self.begin.get(t.role, ())
        first = self.rows[0][1] if self.rows else None
        for step in range(self.values.steps):
            t.step, t.row = step, 0
            if begin and first is not None and step:
                f = Frame(first, -1, step, self.place_of(t), t.warp, warps)
                for do in walk(begin, f, self.extents):
                    if do.verb in ACTING:
                        self.act(t, do, f)
                    else:
                        yield from self.wait(t, do, f)
            for index, (row, op, number) in enumerate(self.rows):
                script = self.scripts.get((op.name, t.role))
                if script is None:
                    continue
                cta = (self.place_of(t) - script.shift) % self.values.grid
                dealt = self.extents.dealt(op, number, row.layer, cta, step)
                if not dealt and self.only_tasks[op.name, t.role] and (op.name, t.role) not in self.pushing:
                    continue
                t.row = index
                f = Frame(op, row.layer, step, self.place_of(t), t.warp, warps, dealt)
                for do in walk(script.body, f, self.extents):
                    if do.verb in ACTING:
                        self.act(t, do, f)
                    else:
                        yield from self.wait(t, do, f)
                if (op.name, t.role) in self.pushing:
                    words = self.words[self.rank_of(t), self.pushing[op.name, t.role]]
                    turn = words.turn(step, row.pushed)
                    words.done[turn] = words.done.get(turn, 0) + 1
                    self.wake(words.waiters)

    def rank_of(self, t: Thread) -> int:
        return t.cta // self.values.grid

    def place_of(self, t: Thread) -> int:
        """The CTA's number within its rank."""
        return t.cta % self.values.grid

    # ---- statements ----------------------------------------------------------------------------------------

    def wait(self, t: Thread, s: Do, f: Frame) -> Iterator[object]:
        verb, row = s.verb, self.rows[t.row][0]
        if verb == "inputs":
            yield from self.wait_inputs(t, row, 0)
        elif verb == "idle":
            if not f.tasks:
                yield from self.wait_inputs(t, row, 0)
        elif verb == "previous":
            yield from self.wait_inputs(t, row, 1)
        elif verb == "ended":
            last = self.by_counter[self.program.last]
            yield from self.wait_counter(t, last.counter, t.step * last.per_step, -1)
            self.tick(t)
        elif verb == "sync":
            yield from self.named_barrier(t, self.named[t.cta, s.bar])
        elif verb == "poll":
            yield from self.poll(t, s)
        elif verb == "receive":
            yield from self.receive(t, s.buffer, f)
        else:
            ring = self.rings[s.ring]
            slot, lap, _ = self.place(t, s, ring, f)
            if verb == "take":
                yield from self.wait_phase(t, self.barriers[t.cta, ring.name][slot][0], lap)
            elif lap:
                yield from self.wait_phase(t, self.barriers[t.cta, ring.name][slot][1], lap - 1)

    def place(self, t: Thread, s: Do, ring: RingSync, f: Frame) -> tuple[int, int, tuple[str, bool]]:
        """Slot and lap that a statement means, and the key of its cursor."""
        # A producer may read back what it puts into a slot.
        producing = s.verb in PRODUCING or (s.verb == "use" and t.role not in ring.consumers)
        side = (ring.name, producing)
        at = t.cursor.get(side, 0)
        if s.ahead:
            at += self.extents.trips(s.ahead, f)
        return at % ring.slots, at // ring.slots, side

    def act(self, t: Thread, s: Do, f: Frame) -> None:
        verb = s.verb
        if verb == "signal":
            self.signal(t)
        elif verb == "send":
            self.send(t, s.buffer, f)
        elif verb in ("read", "write"):
            self.touch_buffer(t, s, verb == "write", t.number, int(t.clock[t.number]))
        elif verb in WORD_VERBS:
            self.touch_words(t, s)
        else:
            self.ring_statement(t, s, self.rings[s.ring], f)

    def poll(self, t: Thread, s: Do) -> Iterator[object]:
        words = self.words[self.rank_of(t), s.buffer]
        turn = words.turn(t.step, self.rows[t.row][0].polled)
        t.need = turn
        if not self.satisfied_by(words, turn):
            yield words
            t.blocked = None
        self.touch_words(t, s)

    def touch_words(self, t: Thread, s: Do) -> None:
        words, (row, op, _) = self.words[self.rank_of(t), s.buffer], self.rows[t.row]
        pushes = self.pushing.get((op.name, t.role)) == s.buffer
        turn = words.turn(t.step, row.pushed if pushes else row.polled)
        # The words of a turn need no order with their own push; a pusher poisons those of the next turn.
        slot = (turn + (s.verb == "poison" and pushes)) % words.slots
        own = None if pushes else words.pushed_at(turn)
        now = int(t.clock[t.number])
        self.touch_buffer(t, s, s.verb != "poll", t.number, now, f"{s.buffer}[{slot}]", own)

    @staticmethod
    def satisfied_by(words: Words, turn: int) -> bool:
        return words.done.get(turn, 0) >= words.warps

    def buffer_of(self, name: str, row: int) -> str:
        return f"{name}.{self.program.rows[row].layer}" if self.per_layer.get(name) else name

    def ring_statement(self, t: Thread, s: Do, ring: RingSync, f: Frame) -> None:
        verb = s.verb
        slot, _, side = self.place(t, s, ring, f)
        full, empty = self.barriers[t.cta, ring.name][slot]
        if verb == "put":
            self.touch_slot(t, ring, slot, s.area, f, True, t.number, int(t.clock[t.number]))
        elif verb == "copy":
            if t.warp == 0:
                time = full.phase + 1
                self.touch_slot(t, ring, slot, s.area, f, True, full.agent, time)
                if s.buffer in self.per_layer:
                    self.touch_buffer(t, s, False, full.agent, time)
        elif verb == "use":
            # After `take` the cursor still stands on the slot; a routing record is used between take and
            # release.
            self.touch_slot(t, ring, slot, s.area, f, False, t.number, int(t.clock[t.number]))
        elif verb == "commit":
            if ring.commits > 1 or t.warp == 0:
                self.arrive(t, full)
            t.cursor[side] = t.cursor.get(side, 0) + 1
        elif verb == "release":
            self.arrive(t, empty)
            if not s.ahead:
                t.cursor[side] = t.cursor.get(side, 0) + 1
        elif verb == "skip":
            t.cursor[side] = t.cursor.get(side, 0) + 1

    def wait_phase(self, t: Thread, barrier: Barrier, phase: int) -> Iterator[object]:
        if barrier.phase <= phase:
            t.need = phase
            yield barrier
        t.blocked = None
        if barrier.phase > phase + 1:
            self.lapped(t, barrier, phase)
        np.maximum(t.clock, barrier.done[phase], out=t.clock)
        self.tick(t)

    def tick(self, t: Thread) -> None:
        t.clock[t.number] += 1
        if self.values.ranks > 1:
            t.clock[self.size + t.number] += 1

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

    def named_barrier(self, t: Thread, bar: Named) -> Iterator[object]:
        bar.members.append(t)
        if len(bar.members) < bar.warps:
            yield bar
            t.blocked = None
            return
        joined = t.clock
        for other in bar.members:
            joined = np.maximum(joined, other.clock)
        for other in bar.members:
            other.clock = joined.copy()
            self.tick(other)
            if other is not t:
                self.woken.append(other)
        bar.members.clear()

    # ---- counters ------------------------------------------------------------------------------------------

    def wait_inputs(self, t: Thread, row: RowSync, steps_ago: int) -> Iterator[object]:
        for wait in row.waits:
            per_step = self.by_counter[wait.counter].per_step
            instance = (t.step - steps_ago) * per_step + wait.ordinal
            yield from self.wait_counter(t, wait.counter, instance, wait.arrivals)
        self.tick(t)

    def wait_counter(self, t: Thread, number: int, instance: int, wanted: int) -> Iterator[object]:
        if instance <= 0:
            return
        grid, op = self.values.grid, self.by_counter[number]
        counter = self.counters[self.rank_of(t), number]
        arrivals = grid if wanted < 0 else wanted
        t.need = (instance - 1) * grid + arrivals
        if counter.value < t.need:
            yield counter
            t.blocked = None
        # Arrivals come in the order of instances (checked where they are made), so a whole number of
        # instances is known; of an instance that was not waited for in full, any arrival may be the
        # missing one.
        known = instance if arrivals >= grid else instance - 1
        for k in range(max(1, known - 1), known + 1):  # older ones are in these clocks
            if k not in counter.clocks:
                continue
            if op.scope == "gpu":
                np.maximum(t.clock, counter.joined[k], out=t.clock)
            elif op.scope == "cta" and t.cta in counter.clocks[k]:
                np.maximum(t.clock, counter.clocks[k][t.cta], out=t.clock)

    def signal(self, t: Thread) -> None:
        op = self.rows[t.row][1]
        rank = self.rank_of(t)
        counter = self.counters[rank, op.counter]
        k = t.signals.get(op.counter, 0) + 1
        t.signals[op.counter] = k
        before = counter.clocks.get(k - 1, {})
        late = [
            c
            for c, number in self.signaller.items()
            if k > 1
            and c // self.values.grid == rank
            and (c not in before or before[c][number] > t.clock[number])
        ]
        if late and op.scope == "gpu":
            self.report(
                "lap", (op.name,),
                f"CTA {t.cta} signals instance {k} of `{op.name}` although CTA {late[0]} may not have"
                f" signalled instance {k - 1}: its arrival can stand in for the missing one",
                (t.row,),
            )  # fmt: skip
        mine = t.clock.copy()
        counter.clocks.setdefault(k, {})[t.cta] = mine
        known = counter.joined.get(k)
        counter.joined[k] = mine if known is None else np.maximum(known, mine)
        self.tick(t)
        counter.value += 1
        self.wake(counter.waiters)

    # ---- between ranks -------------------------------------------------------------------------------------

    def words_of(self, rank: int, buffer: str, exchange: int, source: int, task: int) -> Sent:
        slot = exchange % self.exchanges.slots[buffer]
        key = (rank, buffer, slot, source, task)
        if key not in self.sent:
            name = f"`{buffer}` of rank {rank}, slot {slot}, from rank {source}"
            self.sent[key] = Sent(name, source)
        return self.sent[key]

    def send(self, t: Thread, buffer: str, f: Frame) -> None:
        """Words of one task to every rank. What lies in the slot must have been taken and poisoned before."""
        mine = t.clock[self.size :]
        exchange = self.exchanges.number(buffer, t.step, t.row)
        for rank in range(self.values.ranks):
            words = self.words_of(rank, buffer, exchange, self.rank_of(t), f.task)
            if words.exchange >= 0 and words.exchange != exchange:
                if words.taken is None or bool((words.taken > mine).any()):
                    row, old = self.program.rows[t.row], self.program.rows[words.row]
                    self.report(
                        "race", (buffer, row.op, old.op),
                        f"`{row.op}` of layer {row.layer} pushes into a slot of `{buffer}` that may still"
                        f" hold what `{old.op}` of layer {old.layer} pushed",
                        (t.row, words.row),
                    )  # fmt: skip
                words.taken = words.pushed = None
            words.exchange, words.row = exchange, t.row
            words.pushed = mine.copy() if words.pushed is None else np.maximum(words.pushed, mine)
            self.wake(words.waiters)
        self.tick(t)

    def receive(self, t: Thread, buffer: str, f: Frame) -> Iterator[object]:
        exchange = self.exchanges.number(buffer, t.step, t.row)
        op, layer = self.exchanges.source(buffer, t.row)
        pushes = self.extents.count(op, layer, t.step)
        for task in self.exchanges.parts(f.task, self.extents.count(f.op, f.layer, t.step), pushes):
            for source in range(self.values.ranks):
                words = self.words_of(self.rank_of(t), buffer, exchange, source, task)
                if words.exchange < exchange:
                    t.need = exchange
                    yield words
                    t.blocked = None
                mine = t.clock[self.size :]
                if words.pushed is not None:
                    np.maximum(mine, words.pushed, out=mine)
                words.taken = mine.copy() if words.taken is None else np.maximum(words.taken, mine)
        self.tick(t)

    # ---- accesses ------------------------------------------------------------------------------------------

    def touch_slot(
        self, t: Thread, ring: RingSync, slot: int, area: str, f: Frame, write: bool, agent: int, time: int
    ) -> None:
        kind = area.partition(":")[0]
        part = f.block if kind == "block" else t.number if kind == "warp" and write else -1
        parts = self.slots.setdefault((t.cta, ring.name, slot), {})
        for (other, at), touch in parts.items():
            if area and other and (other != area or (at != part and at >= 0 and part >= 0)):
                continue
            mine = t.clock[: self.size]
            if write and not area and not other:
                mine = np.maximum(mine, self.producers[t.cta, t.role])
            bad_write = touch.wrote and bool((touch.writes > mine).any())
            bad_read = write and touch.read and bool((touch.reads > mine).any())
            if bad_write or bad_read:
                old = "written" if bad_write else "read"
                row = self.program.rows[touch.key[1]]
                self.report(
                    "race",
                    (ring.name, area, write, bad_write, self.rows[t.row][0].op, row.op),
                    f"{self.who(t)} {'fills' if write else 'reads'} slot {slot} of ring `{ring.name}`"
                    f" while `{row.op}` of layer {row.layer} may still have it {old}"
                    + (f" ({area})" if area else ""),
                    (t.row, touch.key[1]),
                )
        mine_touch = parts.get((area, part))
        if mine_touch is None:
            zero = np.zeros(self.size, np.int32)
            mine_touch = parts[area, part] = Touch((t.step, t.row), zero, zero.copy())
        self.note(mine_touch, write, agent, time)
        mine_touch.key = (t.step, t.row)

    @staticmethod
    def note(touch: Touch, write: bool, agent: int, time: int) -> None:
        if write:
            touch.writes[agent], touch.wrote = time, True
        else:
            touch.reads[agent], touch.read = time, True

    def touch_buffer(
        self,
        t: Thread,
        s: Do,
        write: bool,
        agent: int,
        time: int,
        slot: str = "",
        own_push: tuple[int, int] | None = None,
    ) -> None:
        name, key = slot or self.buffer_of(s.buffer, t.row), (t.step, t.row)
        found = self.buffers.setdefault((self.rank_of(t), name), [])
        mine: Touch | None = None
        for touch in found:
            if touch.key == key and touch.older == s.older:
                mine = touch
                continue
            if touch.key == own_push:
                continue
            # What only earlier steps wrote does not conflict with what this step writes.
            if touch.key[0] == t.step and (s.older or s.word or touch.older):
                continue
            bad_write = touch.wrote and bool((touch.writes > t.clock[: self.size]).any())
            bad_read = write and touch.read and bool((touch.reads > t.clock[: self.size]).any())
            if bad_write or bad_read:
                here = (key, "writes" if write else "reads")
                there = (touch.key, "writes" if bad_write else "reads")
                (first, did), (second, does) = sorted((here, there))
                row, other = self.program.rows[second[1]], self.program.rows[first[1]]
                when = " of the step before" if first[0] < second[0] else ""
                self.report(
                    "race", (name, row.op, other.op, does),
                    f"`{row.op}` of layer {row.layer} {does} `{name}`, and nothing orders it after"
                    f" `{other.op}` of layer {other.layer}{when}, which {did} it",
                    (second[1], first[1]),
                )  # fmt: skip
        if s.word:
            return
        if mine is None:
            zero = np.zeros(self.size, np.int32)
            mine = Touch(key, zero, zero.copy(), s.older)
            # What is older than the latest writer before this op is ordered through it, but reads of older
            # contents are not ordered with the writers of their own step.
            writers = [i for i, touch in enumerate(found) if touch.wrote]
            if writers:
                last = found[writers[-1]].key[0]
                found[: writers[-1]] = [o for o in found[: writers[-1]] if o.older and o.key[0] >= last]
            found.append(mine)
        self.note(mine, write, agent, time)

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


def _pushed(body: tuple[Statement, ...]) -> Iterator[str]:
    """The words that a script pushes."""
    for s in body:
        if isinstance(s, Loop):
            yield from _pushed(s.body)
        elif s.verb == "push":
            yield s.buffer
