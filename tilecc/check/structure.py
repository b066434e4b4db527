"""Rules on the text of the scripts, which hold for every number of tasks and chunks.

A ring works for any loop counts if both sides go through it in the same pattern of loops, and every slot
is acquired, filled and committed, or taken and released, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilecc.check.exchange import touches
from tilecc.check.machine import Violation
from tilecc.check.sync import (
    RING_VERBS,
    VERBS,
    WORD_VERBS,
    Do,
    Loop,
    OpSync,
    RingSync,
    Statement,
    SyncProgram,
)

Pattern = tuple[object, ...]

ORDER = {
    "produce": ("acquire", "put", "copy", "commit"),
    "consume": ("take", "use", "release"),
}


def structure(program: SyncProgram) -> Iterator[Violation]:
    """What is wrong with the scripts, rings and waits by themselves."""
    yield from _names(program)
    yield from _counts(program)
    yield from _bars(program)
    yield from _counters(program)
    for op in program.ops:
        row = _row_of(program, op)
        scripts = {s.role: s.body for s in op.scripts}
        for ring in program.rings:
            if len(ring.consumers) == 1:
                yield from _both_sides(op, ring, scripts, row)
    yield from _routing(program)
    yield from _waits(program)
    yield from _turns(program)
    yield from _exchanges(program)


def _row_of(program: SyncProgram, op: OpSync) -> int:
    """The first row of an op, for the place of a violation."""
    return next((i for i, r in enumerate(program.rows) if r.op == op.name), 0)


def _names(program: SyncProgram) -> Iterator[Violation]:
    rings, roles = {r.name for r in program.rings}, {r.name for r in program.roles}
    buffers, bars = {b.name for b in program.buffers}, {b.name for b in program.bars}
    words = {b.name for b in program.buffers if b.turns}
    for op in program.ops:
        row = _row_of(program, op)
        for script in op.scripts:
            if script.role not in roles:
                yield Violation(
                    "script", f"`{op.name}` has a script for `{script.role}`, which is no role", (row,)
                )
            for do in _flat(script.body):
                if (
                    do.verb not in VERBS
                    or (do.verb in RING_VERBS) != bool(do.ring)
                    or (do.ring and do.ring not in rings)
                ):
                    text = f"`{op.name}`, {script.role}: `{do.verb} {do.ring}{do.buffer}` is no statement"
                    yield Violation("script", text, (row,))
                if do.verb in ("read", "write") and do.buffer not in buffers:
                    text = f"`{op.name}`, {script.role}: `{do.verb} {do.buffer}` names no buffer"
                    yield Violation("script", text, (row,))
                if do.verb in WORD_VERBS and do.buffer not in words:
                    text = f"`{op.name}`, {script.role}: `{do.verb} {do.buffer}` names no words"
                    yield Violation("script", text, (row,))
                if (do.verb == "sync") != bool(do.bar) or (do.bar and do.bar not in bars):
                    text = f"`{op.name}`, {script.role}: `{do.verb} {do.bar}` names no named barrier"
                    yield Violation("script", text, (row,))


def _counters(program: SyncProgram) -> Iterator[Violation]:
    """A counter belongs to one op: its value says how many instances of that op are done."""
    owner: dict[int, str] = {}
    for op in program.ops:
        if op.counter >= 0 and owner.setdefault(op.counter, op.name) != op.name:
            row = _row_of(program, op)
            text = f"`{owner[op.counter]}` and `{op.name}` share counter {op.counter}"
            yield Violation("counter", text, (row,))


def _counts(program: SyncProgram) -> Iterator[Violation]:
    """Arrivals that complete a phase are those that the scripts make: one per warp and slot."""
    warps = {r.name: r.warps for r in program.roles}
    for ring in program.rings:
        full = warps.get(ring.producer, 0) if ring.commits > 1 else 1
        if ring.full_count != full:
            text = f"`{ring.name}`: {ring.full_count} arrivals fill a slot, `{ring.producer}` makes {full}"
            yield Violation("arrivals", text, ())
        empty = sum(warps.get(c, 0) for c in ring.consumers)
        if ring.empty_count != empty:
            text = f"`{ring.name}`: {ring.empty_count} arrivals free a slot, consumers have {empty} warps"
            yield Violation("arrivals", text, ())
    for op in program.ops:
        if len({s.shift for s in op.scripts}) > 1:
            sides = ", ".join(f"{s.role} by {s.shift}" for s in op.scripts)
            text = f"`{op.name}`: its roles are dealt different tasks: {sides} CTAs further"
            yield Violation("ring", text, (_row_of(program, op),))


def _bars(program: SyncProgram) -> Iterator[Violation]:
    """The warps whose scripts come to a named barrier are as many as complete it, all equally often."""
    warps = {r.name: r.warps for r in program.roles}
    for op in program.ops:
        row = _row_of(program, op)
        for bar in program.bars:
            visits = {s.role: sum(d.bar == bar.name for d in _flat(s.body)) for s in op.scripts}
            visits = {role: n for role, n in visits.items() if n}
            come = sum(warps.get(role, 0) for role in visits)
            if visits and come != bar.warps:
                text = (
                    f"`{op.name}`: {bar.warps} warps complete named barrier `{bar.name}`, {come} come to it"
                )
                yield Violation("arrivals", text, (row,))
            if len(set(visits.values())) > 1:
                sides = ", ".join(f"{role} {n} times" for role, n in visits.items())
                text = f"`{op.name}`: roles come to named barrier `{bar.name}` differently often: {sides}"
                yield Violation("arrivals", text, (row,))


def _flat(body: tuple[Statement, ...]) -> Iterator[Do]:
    for s in body:
        if isinstance(s, Loop):
            yield from _flat(s.body)
        else:
            yield s


def _project(body: tuple[Statement, ...], ring: str, verb: str, ahead: bool = False) -> Pattern:
    """The loops around the statements of one verb on one ring; `ahead`: those out of turn alone."""
    found: list[object] = []
    for s in body:
        if isinstance(s, Loop):
            inner = _project(s.body, ring, verb, ahead)
            if inner:
                found.append((s.over, inner))
        elif s.ring == ring and s.verb == verb and (s.ahead or not ahead):
            found.append("*")
    return tuple(found)


def _text(pattern: Pattern) -> str:
    parts = []
    for item in pattern:
        parts.append("once" if item == "*" else f"per {item[0]} ({_text(item[1])})")  # type: ignore[index]
    return ", ".join(parts) or "never"


def _both_sides(
    op: OpSync, ring: RingSync, scripts: dict[str, tuple[Statement, ...]], row: int
) -> Iterator[Violation]:
    producer, consumer = scripts.get(ring.producer, ()), scripts.get(ring.consumers[0], ())
    made = {v: _project(producer, ring.name, v) for v in ("acquire", "commit")}
    used = {v: _project(consumer, ring.name, v) for v in ("take", "release")}
    patterns = made | used
    if _project(consumer, ring.name, "skip"):
        # Some slots are taken out of turn: as many, but not in the order in which they are filled.
        amounts = {v: _amount(pattern) for v, pattern in patterns.items()}
        ahead = _amount(_project(consumer, ring.name, "release", ahead=True))
        amounts["skip"] = _sum(amounts["release"], _amount(_project(consumer, ring.name, "skip")), ahead, -1)
        differ = len({tuple(sorted(a.items())) for a in amounts.values()}) > 1
    else:
        differ = len(set(patterns.values())) > 1
    if differ:
        sides = "; ".join(f"{verb} {_text(pattern)}" for verb, pattern in patterns.items())
        text = f"`{op.name}` does not go through ring `{ring.name}` alike on both sides: {sides}"
        yield Violation("ring", text, (row,))
        return
    for side, role in (("produce", ring.producer), ("consume", ring.consumers[0])):
        order = [d.verb for d in _flat(scripts.get(role, ())) if d.ring == ring.name and not d.ahead]
        yield from _in_order(op, ring, side, role, [v for v in order if v != "skip"], row)


Amount = dict[tuple[str, ...], int]


def _amount(pattern: Pattern) -> Amount:
    """How many statements a pattern stands for, as a sum of products of symbols. Over the rounds of a window,
    what comes early comes once, and so does the opening; a span is what came early and what comes late."""
    total: Amount = {}
    for item in pattern:
        if item == "*":
            total[()] = total.get((), 0) + 1
            continue
        assert isinstance(item, tuple)
        over, inner = item
        for symbols, n in _amount(inner).items():
            parts = [(*symbols, "late"), (*symbols, "lead")] if over == "span" else [(*symbols, over)]
            for part in parts:
                # Where one task leaves nothing in the ring, the next one begins afresh.
                names = sorted("fresh" if name == "closing" else name for name in part)
                if "rounds" in names and "lead" in names:
                    names.remove("rounds")
                    names[names.index("lead")] = "early"
                if "rounds" in names and "opening" in names:
                    names.remove("rounds")
                    names.remove("opening")
                key = tuple(sorted(names))
                total[key] = total.get(key, 0) + n
    return total


def _sum(a: Amount, b: Amount, c: Amount, sign: int) -> Amount:
    """a + b + sign * c, without zeros."""
    total = dict(a)
    for other, factor in ((b, 1), (c, sign)):
        for key, n in other.items():
            total[key] = total.get(key, 0) + factor * n
    return {key: n for key, n in total.items() if n}


def _in_order(
    op: OpSync, ring: RingSync, side: str, role: str, verbs: list[str], row: int
) -> Iterator[Violation]:
    allowed = ORDER[side]
    first, last, place = allowed[0], allowed[-1], -1
    for verb in verbs:
        if verb not in allowed:
            continue
        at = allowed.index(verb)
        if (at == 0) != (place < 0) or at < place:
            text = f"`{op.name}`, {role}: `{verb} {ring.name}` stands outside {first} ... {last}"
            yield Violation("ring", text, (row,))
            return
        place = -1 if verb == last else at
    if place >= 0:
        yield Violation("ring", f"`{op.name}`, {role}: a slot of `{ring.name}` is never given back", (row,))


def _routing(program: SyncProgram) -> Iterator[Violation]:
    """A record that several roles share is committed once per layer and released once by every role after
    it."""
    for ring in (r for r in program.rings if len(r.consumers) > 1):
        committed: int | None = None
        released: set[str] = set()
        for index, row in enumerate(program.rows):
            op = program.op(row.op)
            for script in op.scripts:
                for verb in [d.verb for d in _flat(script.body) if d.ring == ring.name]:
                    if verb == "commit":
                        if committed is not None and released != set(ring.consumers):
                            missing = ", ".join(sorted(set(ring.consumers) - released))
                            text = f"`{row.op}` makes `{ring.name}` anew before {missing} released it"
                            yield Violation("ring", text, (index, committed))
                        committed, released = index, set()
                    elif verb == "release":
                        released.add(script.role)


def _exchanges(program: SyncProgram) -> Iterator[Violation]:
    """Pushes into a buffer and polls of it take turns."""
    for buffer in (b.name for b in program.buffers if b.slots):
        pushed: int | None = None
        for index, row in enumerate(program.rows):
            scripts = program.op(row.op).scripts
            if any(touches(s.body, "send", buffer) for s in scripts):
                if pushed is not None:
                    first = program.rows[pushed].op
                    text = f"`{row.op}` pushes into `{buffer}` before what `{first}` pushed is read"
                    yield Violation("wait", text, (index, pushed))
                pushed = index
            elif any(touches(s.body, "receive", buffer) for s in scripts):
                if pushed is None:
                    text = f"`{row.op}` waits for words of `{buffer}` that no op before it pushes"
                    yield Violation("wait", text, (index,))
                pushed = None
        if pushed is not None:
            text = f"nothing reads what `{program.rows[pushed].op}` pushes into `{buffer}`"
            yield Violation("wait", text, (pushed,))


def _waits(program: SyncProgram) -> Iterator[Violation]:
    """A wait names the counter of an op that has run, or whose last instance ran in the step before."""
    by_counter = {op.counter: op for op in program.ops if op.counter >= 0}
    started: dict[int, int] = {}
    for index, row in enumerate(program.rows):
        for wait in row.waits:
            source = by_counter.get(wait.counter)
            if source is None:
                yield Violation(
                    "wait", f"`{row.op}` waits for counter {wait.counter}, which nothing signals", (index,)
                )
            elif not -source.per_step < wait.ordinal <= started.get(wait.counter, 0):
                have = started.get(wait.counter, 0)
                text = f"`{row.op}` waits for instance {wait.ordinal} of `{source.name}`, {have} have started"
                yield Violation("wait", text, (index,))
        op = program.op(row.op)
        if op.counter >= 0:
            started[op.counter] = started.get(op.counter, 0) + 1


def _turns(program: SyncProgram) -> Iterator[Violation]:
    """Words are polled in the turn that was pushed last, once each, and one side poisons them."""
    for words in (b for b in program.buffers if b.turns):
        using = [op for op in program.ops if _verbs(op, words.name)]
        sides = [op.name for op in using if "poison" in _verbs(op, words.name)]
        pushing = [op.name for op in using if "push" in _verbs(op, words.name)]
        polling = [op.name for op in using if "poll" in _verbs(op, words.name)]
        if sides not in (pushing, polling):
            text = f"`{words.name}` is poisoned by {', '.join(sides) or 'nobody'}, not by who pushes or polls"
            yield Violation("wait", text, tuple(_row_of(program, op) for op in using))
    pushed: dict[str, int] = {}
    polled: dict[str, int] = {}
    for index, row in enumerate(program.rows):
        op = program.op(row.op)
        used = {(d.verb, d.buffer) for s in op.scripts for d in _flat(s.body) if d.verb in ("push", "poll")}
        for verb, name in sorted(used):
            due = pushed.get(name, 0) - (verb == "poll")
            turn = row.polled if verb == "poll" else row.pushed
            if turn != due or (verb == "poll" and polled.get(name, -1) == due):
                text = (
                    f"`{row.op}` of layer {row.layer} {verb}s turn {turn} of `{name}`, which is in turn {due}"
                )
                again = "polled before" if turn == due else "out of turn"
                yield Violation("wait", f"{text}: {again}", (index,))
            if verb == "push":
                pushed[name] = pushed.get(name, 0) + 1
            else:
                polled[name] = due


def _verbs(op: OpSync, words: str) -> set[str]:
    return {d.verb for s in op.scripts for d in _flat(s.body) if d.buffer == words}
