"""check: Program -> everything that is unsound about its synchronisation and its budgets.

Three parts. `structure` reads the scripts and holds for every number of tasks and chunks; `explore` runs
the program abstractly for assignments that cover none, one and several of each data-dependent count;
`budgets` compares what a CTA needs with the target. All violations are returned, each with the source
lines it is about.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilecc.check.budgets import budgets
from tilecc.check.explore import Explorer, Values, Violation
from tilecc.check.lower import lower
from tilecc.check.structure import structure
from tilecc.check.sync import SyncProgram
from tilecc.diag import Diagnostic, Span
from tilecc.ir.program import Program
from tilecc.target import Target

ASSIGNMENTS = (
    Values(grid=1, tasks=2, chunks=2, experts=2, blocks=2),
    Values(grid=2, tasks=3, chunks=2, experts=2, blocks=1),
    Values(grid=3, tasks=1, chunks=1, experts=0, blocks=0),
    Values(grid=3, tasks=4, chunks=3, experts=1, blocks=3),
    Values(grid=2, tasks=1, chunks=1, experts=1, blocks=1, spread=False),
)
"""CTAs with none, one and several tasks of an op; expert lists that are empty, of one and of two; rings
that wrap."""

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
    return Report(program.name, ASSIGNMENTS, tuple(found), tuple(diagnostics(sync, found)))


def violations(sync: SyncProgram, assignments: tuple[Values, ...] = ASSIGNMENTS) -> list[Violation]:
    """What `structure` finds; what `explore` finds where the scripts are sound enough to run."""
    found = list(structure(sync))
    if any(v.kind in ("script", "wait", "counter") for v in found):
        return found
    seen: set[tuple[str, str]] = set()
    for values in assignments:
        for violation in Explorer(sync, values).run():
            key = (violation.kind, violation.message if violation.kind != "deadlock" else "")
            if key not in seen:
                seen.add(key)
                found.append(violation)
    return found


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
