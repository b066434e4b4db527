"""One package with every mutation in it, one engine on the emulator that runs any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.emulator.harness import places
from tests.mutations.inject import Expected, Mutation, combined, selected
from tests.mutations.table import FURTHER, GENUINE, HARMLESS, SCHEDULE, WORDS, WRAP
from tilecc.emit.compiler import compile_model
from tilecc.runtime.campaign import Campaign, Plan, run_campaign
from tilecc.runtime.devices.emu_lib import Finding
from tilecc.runtime.engine import Engine

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny"
PROMPT = [300, 301, 302]
"""Three rows at once, then one step of one row: two launches that run every op of the model."""

ALL = GENUINE | FURTHER | WORDS | HARMLESS | WRAP


def adversary(seeds: range, max_findings: int = 20) -> Plan:
    """Random and PCT-like schedules with preemption, copies that land late, all detectors."""
    return Plan(
        seeds,
        schedules=("random", "pct"),
        landings=("random", "last"),
        max_findings=max_findings,
        max_switches=30_000_000,
    )


def mutant_package(folder: Path) -> Path:
    """The small model under the campaign's schedule, with every mutation in its text, in a new directory of
    `folder`."""
    schedule = folder / "schedule.py"
    schedule.write_text(SCHEDULE)
    compile_model(
        CHECKPOINT.with_suffix(".py"), target="sm_90a", out=folder / "emitted", max_context=128,
        schedule=schedule,
    )  # fmt: skip
    return combined(folder / "emitted", folder / "mimo_tiny", list(ALL.values()))


@dataclass
class Mutants:
    """A package made of ``ALL`` and an engine on it."""

    package: Path
    engine: Engine

    def campaign(self, name: str | None, plan: Plan, max_tokens: int = 2) -> Campaign:
        """Run the mutation called ``name``, None for the text as emitted."""
        number = list(ALL).index(name) + 1 if name is not None else 0
        with selected(self.engine, number, ALL[name] if name is not None else Mutation({})):
            return run_campaign(self.engine, plan, PROMPT, max_tokens)

    @cached_property
    def answer(self) -> tuple[int, ...]:
        """Tokens of the text as emitted, under a friendly schedule."""
        plan = Plan(range(1), schedules=("round_robin",), landings=("at_once",), detect=0)
        (run,) = self.campaign(None, plan).runs
        assert run.tokens is not None
        return run.tokens

    def matches(self, finding: Finding, expected: Expected) -> bool:
        """True if the finding is of the class, says the text, and one of its places is the line expected."""
        text = " ".join([finding.message, *finding.notes])
        if finding.code != expected.code or expected.says not in text:
            return False
        for file, number in places(finding):
            if expected.file in ("", file) and expected.line in self.line(file, number):
                return True
        return False

    def line(self, file: str, number: int) -> str:
        """Text of a line of the package, "" if the file is not the package's."""
        path = self.package / file
        return path.read_text().splitlines()[number - 1] if path.is_file() else ""


@pytest.fixture(scope="session")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutants]:
    """The emitted kernel of the small model with all mutations, 2 CTAs."""
    package = mutant_package(tmp_path_factory.mktemp("mutants"))
    with Engine.open(package, CHECKPOINT, grid=2, lint=False) as engine:
        yield Mutants(package, engine)
