"""`tilecc emulate`: run a package's kernel under many schedules, with detectors."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilecc.cli.console import emit, emit_json, progress, say, status, table
from tilecc.cli.packages import config_places, package_of, parse_ids
from tilecc.diag import CATALOGUE, Diagnostic, error, render, to_json

if TYPE_CHECKING:
    from tilecc.runtime.campaign import Campaign, Group, Setting
    from tilecc.runtime.devices.emu_lib import BankCounts, BankSite, Stats
    from tilecc.runtime.engine import Engine

DEFAULT_PROMPT = 12
"""Tokens of the prompt when none is given: one step of 8 rows and one of 4."""

SHOWN_SEEDS = 12
SHOWN_SITES = 10


def emulate_command(
    package: Annotated[
        Path, typer.Argument(metavar="PACKAGE_OR_MODEL", help="Package, or model file.", show_default=False)
    ],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", help="Checkpoint directory.", show_default=False)
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to continue.", show_default=False)
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            "--ids", help="Token ids to continue: 1,2,3 [default: 12 made-up ones].", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of runs, one per seed.")] = 9,
    first_seed: Annotated[int, typer.Option("--first-seed", min=0, help="Seed of the first run.")] = 0,
    schedule: Annotated[
        str, typer.Option("--schedule", help="round_robin, random, pct, several of them, or all.")
    ] = "all",
    landing: Annotated[
        str,
        typer.Option("--landing", help="When copies land: at_once, random, last, several of them, or all."),
    ] = "all",
    detect: Annotated[
        str, typer.Option("--detect", help="all, none, or some of races,uninit,parity,banks.")
    ] = "all",
    preempt: Annotated[
        int | None,
        typer.Option(
            "--preempt",
            min=0,
            max=100,
            help="Percent of primitives after which another warp may run [default: 10, round_robin 0].",
            show_default=False,
        ),
    ] = None,
    grid: Annotated[int, typer.Option("--grid", min=1, help="Number of CTAs.")] = 4,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "--steps", min=1, help="New tokens of each run.")
    ] = 4,
    max_context: Annotated[
        int, typer.Option("--max-context", help="Context to compile a model file for.")
    ] = 1024,
    lint: Annotated[
        bool, typer.Option("--lint/--no-lint", help="Refuse edited text that breaks a rule for emitted text.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Decode the same text once per seed under adversarial schedules, and report what the detectors find.

    Exits with 1 if something was found, with 4 if nothing was found but runs gave different tokens.
    """
    from tilecc.runtime.campaign import Plan, parse_choices, parse_detectors, run_campaign
    from tilecc.runtime.devices.emu_lib import LANDINGS, SCHEDULES

    if prompt is not None and ids is not None:
        raise error("TC0703", "both `--prompt` and `--ids` were given", help="give one of them")
    plan = Plan(
        seeds=range(first_seed, first_seed + seeds),
        schedules=parse_choices(schedule, tuple(SCHEDULES), "--schedule"),
        landings=parse_choices(landing, tuple(LANDINGS), "--landing"),
        detect=parse_detectors(detect),
        preempt=preempt,
    )
    given = None if ids is None else parse_ids(ids)
    folder = package_of(package, checkpoint, max_context=max_context)

    from tilecc.runtime.engine import Engine

    with config_places(checkpoint / "config.json"), status(f"building {folder.name} for the emulator"):
        engine = Engine.open(folder, checkpoint, device="emulator", grid=grid, lint=lint)
    with engine:
        tokens = given or _prompt_ids(engine, checkpoint, prompt)
        engine.check_prompt(tokens, max_tokens)
        with progress("running seeds", seeds) as advance:
            campaign = run_campaign(engine, plan, tokens, max_tokens, lambda run: advance(1))
        facts = _facts(campaign, engine, folder, checkpoint, tokens, max_tokens)
    command = ["tilecc", "emulate", str(package), "--checkpoint", str(checkpoint)]
    command += ["--prompt", prompt] if prompt is not None else []
    command += ["--ids", ids] if ids is not None else []
    command += ["--max-tokens", str(max_tokens), "--grid", str(grid), "--detect", detect]
    command += [] if lint else ["--no-lint"]
    bad = campaign.first_bad
    facts["reproduce"] = shlex.join([*command, *_options(bad)]) if bad else None
    if json:
        emit_json(facts)
    else:
        emit(_text(facts, campaign, folder), end="")
    say(_verdict(campaign))
    if not campaign.ok:
        raise typer.Exit(1 if campaign.groups else 4)


def _prompt_ids(engine: Engine, checkpoint: Path, prompt: str | None) -> list[int]:
    if prompt is None:
        # Multiples of a large prime: spread over the vocabulary, the same in every run.
        return [7919 * (i + 1) % engine.manifest.vocab for i in range(DEFAULT_PROMPT)]
    from tilecc.runtime.text import Tokenizer

    return list(Tokenizer(checkpoint).encode(prompt))


def _options(setting: Setting) -> list[str]:
    options = ["--first-seed", str(setting.seed), "--seeds", "1", "--schedule", setting.schedule]
    return [*options, "--landing", setting.landing, "--preempt", str(setting.preempt)]


def _facts(
    campaign: Campaign, engine: Engine, package: Path, checkpoint: Path, ids: list[int], max_tokens: int
) -> dict[str, Any]:
    m, plan = engine.manifest, campaign.plan
    stats = campaign.stats
    return {
        "package": str(package),
        "checkpoint": str(checkpoint),
        "model": m.name,
        "target": m.target,
        "grid": engine.device.grid,
        "threads": m.threads,
        "prompt_tokens": len(ids),
        "max_tokens": max_tokens,
        "seeds": {"first": plan.seeds.start, "count": len(plan.seeds)},
        "schedules": list(plan.schedules),
        "landings": list(plan.landings),
        "detect": plan.detectors,
        "runs": len(campaign.runs),
        "clean": campaign.clean,
        "deadlocks": campaign.deadlocks,
        "findings": [_group(g, package) for g in campaign.groups],
        "tokens_equal": campaign.tokens_equal,
        "answers": [{"tokens": list(t), "seeds": s} for t, s in campaign.answers.items()],
        "cpu_seconds": round(campaign.cpu_seconds, 3),
        "build_seconds": round(engine.load_seconds.get("device", 0.0), 3),
        "stats": _stats(stats),
    }


def _group(group: Group, package: Path) -> dict[str, Any]:
    from tilecc.runtime.devices.emulator import diagnostic_of

    return to_json(diagnostic_of(group.finding, package)) | {
        "class": CATALOGUE[group.finding.code].title if group.finding.code in CATALOGUE else "",
        "runs": len(group.settings),
        "seeds": [s.seed for s in group.settings],
    }


def _stats(stats: Stats) -> dict[str, Any]:
    return {
        "switches": stats.switches,
        "preemptions": stats.preemptions,
        "landings": stats.landings,
        "total": {name: n for name, n in stats.total.items() if n},
        "roles": {role: {k: v for k, v in counts.items() if v} for role, counts in stats.roles.items()},
        "banks": [
            {
                "place": site.place,
                "primitive": site.primitive,
                "role": site.role,
                "accesses": counts.accesses,
                "wavefronts": counts.wavefronts,
                "extra": counts.extra,
            }
            for site, counts in _worst_first(stats)
        ],
    }


def _text(facts: dict[str, Any], campaign: Campaign, package: Path) -> str:
    first, count = facts["seeds"]["first"], facts["seeds"]["count"]
    seeds = f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"
    answers = len(facts["answers"])
    rows = [
        ("package", f"{facts['package']} ({facts['model']} for {facts['target']})"),
        ("launch", f"{facts['grid']} CTAs of {facts['threads']} threads"),
        ("text", f"{facts['prompt_tokens']} tokens, then {facts['max_tokens']} new ones"),
        ("schedules", f"{', '.join(facts['schedules'])}; copies land {', '.join(facts['landings'])}"),
        ("detectors", ", ".join(facts["detect"]) or "none"),
        ("runs", f"{facts['runs']} ({seeds}), {facts['clean']} clean, {facts['deadlocks']} deadlocked"),
        ("tokens", "equal in all runs that finished" if answers <= 1 else f"{answers} different answers"),
        ("time", f"{facts['cpu_seconds']:.1f} s of CPU"),
    ]
    parts = [table(rows)]
    for group in campaign.groups:
        parts.append(render(_with_runs(group, package, len(campaign.runs))))
    if answers > 1:
        lines = [f"seeds {_listed(a['seeds'])}: {a['tokens']}" for a in facts["answers"]]
        parts.append("different tokens\n" + "\n".join(lines))
    parts.append(_counts_table(campaign.stats))
    parts.append(_banks_table(campaign.stats))
    if facts["reproduce"]:
        parts.append(f"the first bad run again:\n  {facts['reproduce']}")
    return "\n\n".join(p for p in parts if p) + "\n"


def _with_runs(group: Group, package: Path, runs: int) -> Diagnostic:
    import dataclasses

    from tilecc.runtime.devices.emulator import diagnostic_of

    found = diagnostic_of(group.finding, package)
    seen = f"in {len(group.settings)} of {runs} runs: seeds {_listed([s.seed for s in group.settings])}"
    return dataclasses.replace(found, notes=(*found.notes, seen))


def _listed(seeds: list[int]) -> str:
    more = f", ... ({len(seeds)})" if len(seeds) > SHOWN_SEEDS else ""
    return ", ".join(str(s) for s in seeds[:SHOWN_SEEDS]) + more


def _counts_table(stats: Stats) -> str:
    """Instructions (per warp-wide or single-lane primitive, lanes counted one by one for memory) and bytes by
    role."""
    names = [name for name, n in stats.total.items() if n]
    if not names:
        return ""
    roles = list(stats.roles)
    head = ["instructions and bytes", *roles, "all"]
    rows = [
        [name, *(f"{stats.roles[r].get(name, 0):,}" for r in roles), f"{stats.total[name]:,}"]
        for name in names
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [head, *rows]
    ]
    return "\n".join(lines)


def _worst_first(stats: Stats) -> list[tuple[BankSite, BankCounts]]:
    return sorted(stats.banks.items(), key=lambda item: (-item[1].extra, item[0].place, item[0].role))


def _banks_table(stats: Stats) -> str:
    """Positions with bank conflicts, worst first."""
    if not stats.banks:
        return ""
    rows = [
        f"  {c.extra:,} extra wavefronts of {c.wavefronts:,} at {s.place} ({s.primitive}, {s.role})"
        for s, c in _worst_first(stats)
        if c.extra
    ]
    accesses = sum(c.accesses for c in stats.banks.values())
    head = f"bank conflicts: {sum(c.extra for c in stats.banks.values()):,} extra wavefronts of"
    head += f" {sum(c.wavefronts for c in stats.banks.values()):,} in {accesses:,} warp accesses"
    more = [f"  and {len(rows) - SHOWN_SITES} more positions (--json)"] if len(rows) > SHOWN_SITES else []
    return "\n".join([head, *rows[:SHOWN_SITES], *more])


def _verdict(campaign: Campaign) -> str:
    if campaign.ok:
        return f"{len(campaign.runs)} runs, nothing found"
    if campaign.groups:
        bad = len(campaign.runs) - campaign.clean
        return f"{len(campaign.groups)} findings in {bad} of {len(campaign.runs)} runs"
    return f"nothing found, but {len(campaign.answers)} different answers in {len(campaign.runs)} runs"
