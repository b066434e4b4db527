"""check: Program -> everything that is unsound about its synchronisation and its budgets.

Three parts. `structure` reads the scripts and holds for every number of tasks and chunks; `explore` runs
the program abstractly for assignments that cover none, one and several of each data-dependent count;
`budgets` compares what a CTA needs with the target. All violations are returned, each with the source
lines it is about.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilecc.check.budgets import budgets
from tilecc.check.explore import Explorer
from tilecc.check.extents import Values
from tilecc.check.lower import lower
from tilecc.check.machine import Violation
from tilecc.check.structure import structure
from tilecc.check.sync import SyncProgram
from tilecc.diag import Diagnostic, Span
from tilecc.ir.program import Program
from tilecc.target import Target

ASSIGNMENTS = (
    Values(grid=1, tasks=2, chunks=2, experts=2, blocks=2, rows=2, early=1),
    Values(grid=2, tasks=3, chunks=2, experts=2, blocks=4, early=2, stop=True),
    Values(grid=3, tasks=1, chunks=1, experts=0, blocks=0, rows=2),
    Values(grid=3, tasks=4, chunks=2, experts=1, blocks=99, rows=3, early=99, row_tiles=1),
    Values(grid=2, tasks=1, chunks=1, experts=1, blocks=1, spread=False),
)
"""CTAs with none, one and several tasks of an op; expert lists that are empty, of one and of two; windows of
one block, of a round and of more, with none, some and as many early blocks as there can be; rings that
wrap."""


def assignments(sync: SyncProgram) -> tuple[Values, ...]:
    """ASSIGNMENTS, and one in which every op has a CTA of its own: nothing is ordered by luck of sharing a
    CTA with another op."""
    alone = Values(grid=len(sync.ops) + 1, tasks=1, chunks=1, experts=1, blocks=3, early=1)
    varying = dataclasses.replace(alone, varying=True, steps=3)
    chosen = (*ASSIGNMENTS, varying, dataclasses.replace(alone, stop=True))
    # Ranks are alike: two stand for any number.
    return tuple(dataclasses.replace(v, ranks=min(sync.ranks, 2)) for v in chosen)


CODES = {
    "deadlock": "TC0801",
    "race": "TC0802",
    "lap": "TC0803",
    "arrivals": "TC0804",
    "ring": "TC0805",
    "wait": "TC0806",
    "counter": "TC0806",
    "script": "TC0807",
    "budget": "TC0808",
}


UNSOUND = frozenset({"script", "wait", "counter"})
"""Kinds after which there is nothing to run: a statement or a counter does not mean anything."""


@dataclass(frozen=True)
class Report:
    """What was checked and what was found."""

    program: str
    assignments: tuple[Values, ...]
    violations: tuple[Violation, ...]
    diagnostics: tuple[Diagnostic, ...]


def check(program: Program, target: Target) -> Report:
    """Check a verified Program for a target."""
    sync = lower(program)
    found = [*budgets(program, target), *violations(sync)]
    return Report(program.name, assignments(sync), tuple(found), tuple(diagnostics(sync, found)))


def violations(sync: SyncProgram, chosen: tuple[Values, ...] | None = None) -> list[Violation]:
    """What `structure` finds; what `explore` finds where the scripts are sound enough to run, for the
    `chosen` assignments or those of `assignments`."""
    found = list(structure(sync))
    if any(v.kind in UNSOUND for v in found):
        return found
    seen: set[tuple[str, str]] = set()
    for values in assignments(sync) if chosen is None else chosen:
        for violation in Explorer(sync, values).run():
            key = (violation.kind, violation.message if violation.kind != "deadlock" else "")
            if key not in seen:
                seen.add(key)
                found.append(violation)
    return found


def first_violation(sync: SyncProgram) -> Violation | None:
    """Any one violation, as soon as it is found."""
    for violation in structure(sync):
        return violation
    for values in assignments(sync):
        for violation in Explorer(sync, values, limit=1).run():
            return violation
    return None


def diagnostics(sync: SyncProgram, found: list[Violation]) -> list[Diagnostic]:
    """Violations at the lines of the model file that their ops come from."""
    made = []
    for v in found:
        spans: list[Span] = []
        for row in dict.fromkeys(v.rows):
            op = sync.op(sync.rows[row].op)
            span = op.loc.span(f"{op.name}, layer {sync.rows[row].layer}")
            if span is not None:
                spans.append(span)
        first = spans[0] if spans else None
        made.append(Diagnostic(CODES[v.kind], v.message, first, v.notes, (), tuple(spans[1:])))
    return made
