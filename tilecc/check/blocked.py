"""Deadlock reports: which warps keep each other waiting."""

from __future__ import annotations

from tilecc.check.machine import Barrier, Counter, Named, Sent, Thread, Violation, Words
from tilecc.check.sync import Do, Loop, Statement, SyncProgram


def deadlock(
    program: SyncProgram, threads: list[Thread], stuck: list[Thread], grid: int, where: str
) -> Violation:
    """The cycle of waits among `stuck`, or the warp that waits for what nobody does any more; a rank has
    `grid` CTAs."""
    chain, closed = _chain(program, threads, stuck, grid)
    rows = tuple(dict.fromkeys(t.row for t in chain))
    last = chain[-1].blocked
    if not closed and isinstance(last, Words):
        rows = tuple(dict.fromkeys((*rows, last.pushed_at(chain[-1].need)[1])))
    if not closed and isinstance(last, Counter):
        rows = tuple(dict.fromkeys((*rows, _place(program, last.op, (chain[-1].need - 1) // grid + 1)[1])))
    steps = [f"{_wait_text(program, t)}; this needs" for t in chain]
    if closed:
        steps[-1] = steps[-1].removesuffix("; this needs") + ", which waits above"
        kind = (
            f"{len(chain)} warps wait for each other in a cycle"
            if len(chain) > 1
            else "a warp waits for itself"
        )
    else:
        steps[-1] = steps[-1].removesuffix("; this needs") + "; nobody is left who does that"
        kind = "the last of the chain waits for what nobody does"
    text = f"{len(stuck)} of {len(threads)} warps wait for ever: {kind}, {_who(program, chain[0])} first"
    others = [t for t in stuck if t not in chain]
    notes = [*steps, *(_wait_text(program, t) for t in others[: max(0, 12 - len(steps))])]
    return Violation("deadlock", text, rows, (*dict.fromkeys(notes), where))


def _chain(
    program: SyncProgram, threads: list[Thread], stuck: list[Thread], grid: int
) -> tuple[list[Thread], bool]:
    """From the thread whose row is earliest, who waits for whom: up to the first repetition (True; only the
    cycle is returned) or to a thread that nobody can help (False)."""
    waiting = set(map(id, stuck))
    at = min(stuck, key=lambda t: (t.step, t.row))
    chain = [at]
    while True:
        helpers = [t for t in _helpers(program, threads, at, grid) if id(t) in waiting and t is not at]
        if not helpers:
            return chain, False
        known = next((t for t in helpers if t in chain), None)
        if known is not None:
            return chain[chain.index(known) :], True
        at = min(helpers, key=lambda t: (t.step, t.row))
        chain.append(at)


def _helpers(program: SyncProgram, threads: list[Thread], t: Thread, grid: int) -> list[Thread]:
    """Those who could complete what `t` waits for."""
    at = t.blocked
    if isinstance(at, Barrier):
        return [o for o in threads if (o.cta, o.role) in at.sources]
    if isinstance(at, Counter):
        instance = (t.need - 1) // grid + 1
        place, done = _place(program, at.op, instance), at.clocks.get(instance, {})
        stores = (o for o in threads if o.role == "store" and o.cta // grid == at.rank)
        return [o for o in stores if o.cta not in done and (o.step, o.row) <= place]
    if isinstance(at, Words):
        stores = (o for o in threads if o.role == "store" and o.cta // grid == t.cta // grid)
        return [o for o in stores if (o.step, o.row) <= at.pushed_at(t.need)]
    if isinstance(at, Sent):
        return [o for o in threads if o.role == "store" and o.cta // grid == at.source]
    if isinstance(at, Named):
        roles = {s.role for op in program.ops for s in op.scripts if _syncs(s.body, at.name)}
        return [o for o in threads if o.cta == t.cta and o.role in roles and o not in at.members]
    return []


def _place(program: SyncProgram, op: str, instance: int) -> tuple[int, int]:
    """(step, row) of an instance of an op, 1-based."""
    rows = [i for i, row in enumerate(program.rows) if row.op == op]
    return (instance - 1) // len(rows), rows[(instance - 1) % len(rows)]


def _syncs(body: tuple[Statement, ...], bar: str) -> bool:
    for s in body:
        if isinstance(s, Loop) and _syncs(s.body, bar):
            return True
        if isinstance(s, Do) and s.bar == bar:
            return True
    return False


def _who(program: SyncProgram, t: Thread) -> str:
    row = program.rows[t.row]
    return f"{t.role} warp {t.warp} of CTA {t.cta} in `{row.op}` of layer {row.layer}"


def _wait_text(program: SyncProgram, t: Thread) -> str:
    at, who = t.blocked, _who(program, t)
    if isinstance(at, Barrier):
        return (
            f"{who} waits for phase {t.need} of {at.name}, which has completed {at.phase}"
            f" ({at.count - at.pending} of {at.count} arrivals)"
        )
    if isinstance(at, Counter):
        return f"{who} waits for {t.need} signals of `{at.op}`, there are {at.value}"
    if isinstance(at, Words):
        step, row = at.pushed_at(t.need)
        return (
            f"{who} polls `{at.name}` of turn {t.need}, which `{program.rows[row].op}` of step {step} pushes:"
            f" {at.done.get(t.need, 0)} of {at.warps} warps have"
        )
    if isinstance(at, Sent):
        return f"{who} waits for words of {at.name}"
    assert isinstance(at, Named)
    return f"{who} waits at named barrier `{at.name}`, where {len(at.members)} of {at.warps} warps are"
