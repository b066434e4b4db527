"""Checker against emulator on mutants: what one accepts the other must find clean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.check.bench import Bench, table_rows
from tests.check.mutants import KINDS, Mutant, ring_mutants, text_mutants, wait_mutants
from tilecc.check.checker import first_violation


@dataclass(frozen=True)
class Verdict:
    """`refused`: kind of the first violation that the checker reports, "" if none. `found`: the first finding
    of the emulator and its seed, None if all `runs` were clean."""

    mutant: Mutant
    refused: str
    message: str
    found: tuple[int, tuple[str, ...]] | None
    runs: int

    @property
    def missed(self) -> bool:
        """The emulator found what the checker accepts."""
        return not self.refused and self.found is not None

    @property
    def wrong_alarm(self) -> bool:
        """Harmless by construction, and refused."""
        return self.mutant.harmless and bool(self.refused)


def mutants_of(bench: Bench) -> list[Mutant]:
    """All mutants of a program."""
    return [
        *text_mutants(bench.sync, bench.ids, bench.grid),
        *wait_mutants(bench.sync, table_rows(bench.program)),
        *ring_mutants(bench.sync),
    ]  # fmt: skip


def judge(bench: Bench, mutant: Mutant, accepted: Sequence[int], refused: Sequence[int]) -> Verdict:
    """Check one mutant, then run it: until the first finding, with the seeds `accepted` if the checker
    accepts it, with `refused` otherwise. A deeper ring is another kernel and is not run."""
    violation = first_violation(mutant.change(bench.sync))
    found, runs = None, 0
    if mutant.number >= 0:
        role, op, layer, cta = mutant.switches
        with bench.mutated(mutant.number, role, op, layer, cta, mutant.table):
            for seed in refused if violation else accepted:
                runs += 1
                outcome = bench.run(seed)
                if not outcome.clean:
                    found = (seed, outcome.codes)
                    break
    kind, message = (violation.kind, violation.message) if violation else ("", "")
    return Verdict(mutant, kind, message, found, runs)


@dataclass
class Table:
    """Figures of a campaign."""

    verdicts: list[Verdict] = field(default_factory=list)

    def group(self, v: Verdict) -> str:
        if v.mutant.harmless:
            return "harmless by construction"
        if v.mutant.table is not None:
            return "waits"
        return KINDS[v.mutant.number - 1].name.partition(" of ")[0]

    def lines(self) -> list[str]:
        """One line per group: mutants, refused, found by the emulator, found but accepted."""
        rows: dict[str, Counter[str]] = {}
        for v in self.verdicts:
            for name in (self.group(v), "all"):
                row = rows.setdefault(name, Counter())
                row["mutants"] += 1
                row["refused"] += bool(v.refused)
                row["found"] += v.found is not None
                row["both"] += bool(v.refused) and v.found is not None
                row["missed"] += v.missed
                row["runs"] += v.runs
        head = ("mutants", "refused", "found", "both", "missed", "runs")
        shown = [f"{'':44s}" + "".join(f"{name:>9s}" for name in head)]
        for name in sorted(rows, key=lambda n: (n == "all", -rows[n]["mutants"])):
            shown.append(f"{name:44s}" + "".join(f"{rows[name][key]:9d}" for key in head))
        return shown
