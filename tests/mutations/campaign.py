"""The whole campaign as a table: every bug class in ten seeds, harmless edits, clean seeds.

    python -m tests.mutations.campaign [--seeds 10] [--clean 200] [--out FILE]

Each line says where the bug was put (the emitted kernel of `mimo_tiny`, or a small kernel where the emitted
one has nothing of the kind), what must be reported, in how many seeds a finding of that code names the
expected line, and how many seeds had no finding at all. Exits with 1 if a bug was missed or a right kernel
reported.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.emulator import test_scopes as small
from tests.emulator.harness import build_text, library, mutated
from tests.mutations.conftest import ALL, CHECKPOINT, Mutants, adversary, mutant_package
from tests.mutations.table import FURTHER, GENUINE, HARMLESS, WORDS
from tests.mutations.test_clean import GRIDS, PROMPTS
from tests.mutations.test_wrap import NAME as UNSIGNED
from tests.mutations.test_wrap import arrivals_per_step, findings_at_wrap, reported
from tilecc.runtime.campaign import Plan, run_campaign
from tilecc.runtime.devices.emu_lib import Finding
from tilecc.runtime.engine import Engine

PROTOCOLS = {
    small.ALL_REDUCE: "all-reduce through words of two ranks",
    small.RANKS: "counters across ranks",
    small.CTAS: "counters across CTAs",
}

EMITTED, SMALL = "emitted", "small kernel"
"""What a bug is put into: the emitted kernel of `mimo_tiny`, or tests/emulator/kernels/peers.cu."""


@dataclass
class Row:
    """``code``: what must be reported, "" for a right kernel. ``found``: seeds with such a finding at the
    expected line; ``quiet``: seeds without any finding."""

    name: str
    where: str
    code: str
    seeds: int
    bug: int = 0
    found: int = 0
    quiet: int = 0

    @property
    def ok(self) -> bool:
        return self.found == self.seeds if self.code else self.quiet == self.seeds


def emitted_bugs(mutants: Mutants, seeds: range) -> Iterator[Row]:
    """The 24 classes, further edits of them, and bugs of words that are their own flags."""
    for name in [*GENUINE, *FURTHER, *WORDS]:
        mutation = ALL[name]
        runs = mutants.campaign(name, adversary(seeds, mutation.max_findings)).runs
        row = Row(name, EMITTED, codes({e.code for e in mutation.expected}), len(seeds), mutation.bug)
        row.found = sum(
            any(mutants.matches(f, e) for f in run.findings for e in mutation.expected) for run in runs
        )
        row.quiet = sum(not run.findings for run in runs)
        yield row


def wraps(mutants: Mutants, seeds: range) -> Iterator[Row]:
    """A counter just before its wrap: targets compared as unsigned numbers, and the text as emitted."""
    per_step = arrivals_per_step(mutants)
    for name in (UNSIGNED, None):
        code = codes({e.code for e in ALL[name].expected}) if name else ""
        row = Row(name or "counters and epoch wrap", EMITTED, code, len(seeds))
        for seed in seeds:
            found = findings_at_wrap(mutants, per_step, name, seed)
            row.found += reported(mutants, found)
            row.quiet += not found
        yield row


def small_bugs(seeds: range) -> Iterator[Row]:
    """Scopes across ranks, data-as-flag words and wraps of small kernels."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (mode, edits, code, words, line) in small.MUTATIONS.items():
            source = mutated("peers", *edits)
            lib = build_text(source, "peers_mutant", Path(folder))
            peers = small.Peers(mode, ranks=1 if mode == small.CTAS else 2)
            row = Row(name, SMALL, code, len(seeds))
            for seed in seeds:
                found = peers.launch(lib, seed)[0].findings
                row.found += any(small.matches(f, code, words, source, line) for f in found)
                row.quiet += not found
            yield row
        for name, (edits, base, expected, line) in small.WRAP.items():
            text = mutated("peers", *edits)
            lib = build_text(text, "peers_mutant", Path(folder))
            row = Row(name, SMALL, codes(expected), len(seeds))
            for seed in seeds:
                found = small.Peers(small.RANKS, epochs=6, base=base).launch(lib, seed)[0].findings
                row.found += any(at(f, expected, line, text) for f in found)
                row.quiet += not found
            yield row
    for mode, prefilled in (
        (small.ALL_REDUCE, False),
        (small.ALL_REDUCE, True),
        (small.RANKS, True),
        (small.CTAS, True),
    ):
        name = PROTOCOLS[mode] if prefilled else "words not filled with poison"
        row = Row(name, SMALL, "" if prefilled else small.FLAG, len(seeds))
        text = mutated("peers")
        for seed in seeds:
            found = small.Peers(mode).launch(library("peers"), seed, prefilled=prefilled)[0].findings
            row.found += any(at(f, {small.FLAG}, "poll_word<", text) for f in found)
            row.quiet += not found
        yield row


def at(finding: Finding, expected: set[str], line: str, source: str) -> bool:
    """A finding of one of these codes that names a line with this text."""
    return any(small.matches(finding, code, "", source, line) for code in expected)


def codes(expected: set[str]) -> str:
    return " or ".join(sorted(expected))


def harmless(mutants: Mutants, seeds: range) -> Iterator[Row]:
    for name in HARMLESS:
        campaign = mutants.campaign(name, adversary(seeds))
        same = list(campaign.answers) == [mutants.answer]
        yield Row(name, EMITTED, "", len(seeds), quiet=campaign.clean if same else 0)


def clean(package: Path, runs: int) -> Iterator[Row]:
    """The text as emitted: all pairs of schedule and landing, for each prompt and grid.

    The tokens of a prompt must be the same everywhere."""
    each = -(-runs // (len(GRIDS) * len(PROMPTS)))
    answers: dict[int, set[tuple[int, ...]]] = {i: set() for i in range(len(PROMPTS))}
    for grid in GRIDS:
        row = Row(f"text as emitted, {grid} CTAs", EMITTED, "", each * len(PROMPTS))
        with Engine.open(package, CHECKPOINT, grid=grid) as engine:
            for i, prompt in enumerate(PROMPTS):
                first = (GRIDS.index(grid) * len(PROMPTS) + i) * each
                campaign = run_campaign(engine, Plan(range(first, first + each)), prompt, 3)
                answers[i] |= set(campaign.answers)
                row.quiet += campaign.clean if len(answers[i]) == 1 else 0
        yield row


def markdown(rows: list[Row]) -> str:
    """The table, bugs before right kernels."""
    lines = [
        "| class | bug | where | reported as | code and place | no finding |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.bug or ''} | {row.name} | {row.where} | {row.code} | {row.found} of {row.seeds} "
        f"| {row.quiet} |"
        for row in rows
        if row.code
    ]
    lines += ["", "| right kernel | where | seeds without a finding |", "|---|---|---|"]
    lines += [f"| {row.name} | {row.where} | {row.quiet} of {row.seeds} |" for row in rows if not row.code]
    return "\n".join(lines)


def write(out: Path, rows: list[Row]) -> str:
    """Write the table with its date and machine; returns the text."""
    text = f"{datetime.date.today()}, emulator on {platform.machine()}\n\n{markdown(rows)}\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    written = out.with_suffix(".new")
    written.write_text(text)
    os.replace(written, out)
    return text


def run(package: Path, seeds: int, clean_runs: int) -> list[Row]:
    """All of it. ``package``: the small model's, as emitted."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        mixed = mutant_package(Path(folder))
        with Engine.open(mixed, CHECKPOINT, grid=2, lint=False) as engine:
            mutants = Mutants(mixed, engine)
            parts = [
                emitted_bugs(mutants, range(seeds)),
                wraps(mutants, range(seeds)),
                small_bugs(range(seeds)),
            ]
            for part in [*parts, harmless(mutants, range(seeds)), clean(package, clean_runs)]:
                for row in part:
                    print(
                        f"{row.name}: {row.found if row.code else row.quiet} of {row.seeds}",
                        file=sys.stderr,
                        flush=True,
                    )
                    rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--clean", type=int, default=200, help="clean runs, rounded up")
    parser.add_argument("--out", type=Path, default=Path("build") / "mutations.md")
    options = parser.parse_args()
    from tilecc.emit.compiler import compile_model

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "mimo_tiny-sm_90a"
        compile_model(CHECKPOINT.with_suffix(".py"), target="sm_90a", out=package, max_context=128)
        rows = run(package, options.seeds, options.clean)
    bad = [row.name for row in rows if not row.ok]
    print(write(options.out, rows))
    print(f"not as expected: {bad}" if bad else "every bug found in every seed, nothing else reported")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
