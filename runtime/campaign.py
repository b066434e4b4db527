"""A campaign: one decode on the emulator under many schedules, with detectors, and what they found.

>>> plan = Plan(seeds=range(20))
>>> with Engine.open(package, checkpoint, grid=4) as engine:
...     campaign = run_campaign(engine, plan, ids, max_tokens=8)
>>> campaign.ok, campaign.groups, campaign.stats.total["mma"]

Everything a run does follows from its ``Setting``: the same one gives the same run, switch for switch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

from tilecc.diag import error
from tilecc.diag.model import nearest
from tilecc.runtime.devices.emu_lib import DETECT_ALL, DETECTORS, LANDINGS, SCHEDULES, Finding, Stats
from tilecc.runtime.devices.emulator import EmulatorDevice, KernelFault
from tilecc.runtime.engine import Engine

DEADLOCK = "TC0901"


@dataclass(frozen=True)
class Setting:
    """How one run is scheduled. ``preempt`` in percent of the primitives."""

    seed: int
    schedule: str
    landing: str
    preempt: int


@dataclass(frozen=True)
class Plan:
    """The settings of a campaign: one run per seed.

    Several schedules and landings are dealt out in turn: seed s takes number s of all their combinations
    (modulo their count), so what a seed does does not depend on where the campaign starts.
    ``preempt`` None means 0 under round-robin and 10 otherwise. ``detect``: flags of emu_lib. A launch ends
    after ``max_findings``, or as TC0902 after ``max_switches`` thread switches (0: no bound).
    """

    seeds: range
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    landings: tuple[str, ...] = tuple(LANDINGS)
    detect: int = DETECT_ALL
    preempt: int | None = None
    max_findings: int = 20
    max_switches: int = 0

    def setting(self, seed: int) -> Setting:
        """Return what ``seed`` runs."""
        pairs = list(product(self.schedules, self.landings))
        schedule, landing = pairs[seed % len(pairs)]
        preempt = self.preempt if self.preempt is not None else (0 if schedule == "round_robin" else 10)
        return Setting(seed, schedule, landing, preempt)

    @property
    def detectors(self) -> list[str]:
        return [name for name, bit in DETECTORS.items() if self.detect & bit]


@dataclass(frozen=True)
class Run:
    """One run. ``tokens`` is None if the kernel stopped; ``cpu_seconds`` of this process."""

    setting: Setting
    findings: tuple[Finding, ...]
    tokens: tuple[int, ...] | None
    cpu_seconds: float

    @property
    def deadlocked(self) -> bool:
        return any(f.code == DEADLOCK for f in self.findings)


@dataclass
class Group:
    """Findings of one class at the same lines: the first one, and the settings of the runs that had it."""

    finding: Finding
    settings: list[Setting] = field(default_factory=list)


@dataclass
class Campaign:
    """What a campaign found, run by run and grouped; ``stats`` sums the launches of all runs."""

    plan: Plan
    runs: list[Run] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats.zero)

    @property
    def ok(self) -> bool:
        """True if no run found anything and all runs gave the same tokens."""
        return not self.groups and self.tokens_equal

    @property
    def clean(self) -> int:
        return sum(not run.findings for run in self.runs)

    @property
    def deadlocks(self) -> int:
        return sum(run.deadlocked for run in self.runs)

    @property
    def answers(self) -> dict[tuple[int, ...], list[int]]:
        """The different answers of the runs that finished, each with its seeds."""
        found: dict[tuple[int, ...], list[int]] = {}
        for run in self.runs:
            if run.tokens is not None:
                found.setdefault(run.tokens, []).append(run.setting.seed)
        return found

    @property
    def tokens_equal(self) -> bool:
        """True if the runs that finished agree; also if none finished."""
        return len(self.answers) <= 1

    @property
    def cpu_seconds(self) -> float:
        return sum(run.cpu_seconds for run in self.runs)

    @property
    def first_bad(self) -> Setting | None:
        """The setting of the first run with a finding, or else of the first whose tokens differ."""
        for run in self.runs:
            if run.findings:
                return run.setting
        answers = list(self.answers.values())
        odd = min((seeds[0] for seeds in answers[1:]), default=None)
        return None if odd is None else self.plan.setting(odd)

    def add(self, run: Run) -> None:
        """Count a run and its findings."""
        self.runs.append(run)
        known = {class_of(g.finding): g for g in self.groups}
        for finding in run.findings:
            key = class_of(finding)
            if key not in known:
                known[key] = Group(finding)
                self.groups.append(known[key])
            if run.setting not in known[key].settings:
                known[key].settings.append(run.setting)


def class_of(finding: Finding) -> tuple[str, frozenset[str]]:
    """What makes two findings the same: code and lines. Which access of a race comes second is chance, and so
    is who waits in a deadlock."""
    if finding.code == DEADLOCK:
        return finding.code, frozenset()
    places = [p for p in (finding.where, *finding.others) if p is not None]
    return finding.code, frozenset(f"{p.file}:{p.line}" for p in places)


def run_campaign(
    engine: Engine,
    plan: Plan,
    prompt_ids: Sequence[int],
    max_tokens: int,
    on_run: Callable[[Run], None] | None = None,
) -> Campaign:
    """Decode ``max_tokens`` tokens after the prompt once per seed, each time from an empty session.

    The engine must be opened on the emulator; its options are changed. Raises TC0401 and TC0403 for a prompt
    that cannot run; whatever the kernel does is a finding and not an error.
    """
    device = engine.device
    if not isinstance(device, EmulatorDevice):
        raise TypeError("a campaign runs on the emulator")
    engine.check_prompt(list(prompt_ids), max_tokens)
    campaign = Campaign(plan)
    for seed in plan.seeds:
        setting = plan.setting(seed)
        device.configure(
            seed=setting.seed,
            schedule=setting.schedule,
            landing=setting.landing,
            preempt=setting.preempt,
            detect=plan.detect,
            max_switches=plan.max_switches,
            max_findings=plan.max_findings,
        )
        engine.session.reset()
        began = time.process_time()
        findings: tuple[Finding, ...] = ()
        tokens: tuple[int, ...] | None = None
        try:
            tokens = tuple(engine.generate(prompt_ids, max_tokens, stop_ids=()).tokens)
        except KernelFault as fault:
            findings = tuple(fault.result.findings)
        campaign.stats = campaign.stats + device.stats
        run = Run(setting, findings, tokens, time.process_time() - began)
        campaign.add(run)
        if on_run is not None:
            on_run(run)
    return campaign


def parse_detectors(text: str) -> int:
    """Return the flags of ``all``, ``none`` or names separated by commas. Raises TC0703."""
    if text == "all":
        return DETECT_ALL
    if text == "none":
        return 0
    flags = 0
    for name in text.split(","):
        if name.strip() not in DETECTORS:
            raise error(
                "TC0703",
                f"the emulator has no detector `{name.strip()}`",
                note=f"known: {', '.join(DETECTORS)}, all, none",
                help=nearest(name.strip(), DETECTORS),
            )
        flags |= DETECTORS[name.strip()]
    return flags


def parse_choices(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Return ``all`` of ``known``, or the names separated by commas. Raises TC0703."""
    if text == "all":
        return tuple(known)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise error(
                "TC0703",
                f"`{option}` does not know `{name}`",
                note=f"known: {', '.join(known)}, all",
                help=nearest(name, known),
            )
    return names
