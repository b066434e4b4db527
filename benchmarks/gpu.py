#!/usr/bin/env python3
"""All that one GPU is asked, in one command and under five minutes.

    python benchmarks/gpu.py --prepare build/gpu                 builds every library here (nvcc, no GPU)
    python3 benchmarks/gpu.py --run build/gpu --out OUT          on the GPU's machine: numpy, torch, ml_dtypes

Steps, each with its own time limit and its own folder in OUT: the conformance suite of the primitives, the
micro-costs, the main loops, and the conformance suite again under compute-sanitizer. What was not prepared is
skipped, and the summary says so. `--only costs,mainloop` chooses steps; `costs-memcheck`, `costs-racecheck`
and `costs-synccheck` run only when they are named. Exit status 0: all steps ended well; 1: one failed or was
absent.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
PYTHON = sys.executable


@dataclass(frozen=True)
class Step:
    """``needs``: what --prepare must have made, in its folder; ``command``: with {dir} and {out};
    ``seconds``: limit."""

    name: str
    needs: str
    command: tuple[str, ...]
    prepare: tuple[str, ...]
    seconds: float
    extra: bool = False


def costs_step(tool: str) -> Step:
    command = (PYTHON, str(HERE / "costs.py"), "--run", "{dir}/costs", "--out", "{out}", "--sanitize", tool)
    return Step(f"costs-{tool}", "costs/sanitize-libcosts.so", command, (), 240, True)


CONFORMANCE = (
    PYTHON,
    "-m",
    "tests.conformance.gpu",
    "--library",
    "{dir}/libconformance.so",
    "--out",
    "{out}",
)
CONTROL = ("--racecheck-control", "{dir}/racecheck")
STEPS = (
    Step(
        "conformance",
        "libconformance.so",
        CONFORMANCE,
        (PYTHON, "-m", "tests.conformance.gpu", "--build-only", "-o", "{dir}/libconformance.so", *CONTROL),
        60,
    ),
    Step(
        "costs",
        "costs/libcosts.so",
        (PYTHON, str(HERE / "costs.py"), "--run", "{dir}/costs", "--out", "{out}", "--budget", "90"),
        (PYTHON, str(HERE / "costs.py"), "--build", "{dir}/costs"),
        100,
    ),
    Step(
        "mainloop",
        "mainloop/mainloop_run.py",
        (PYTHON, "{dir}/mainloop/mainloop_run.py", "{dir}/mainloop", "--out", "{out}"),
        (PYTHON, str(HERE / "mainloop.py"), "--prepare", "{dir}/mainloop"),
        75,
    ),
    Step(
        "sanitizer",
        "libconformance.so",
        (*CONFORMANCE, "--sanitizer", "memcheck,racecheck,synccheck", *CONTROL),
        (),
        120,
    ),
    *(costs_step(tool) for tool in ("memcheck", "racecheck", "synccheck")),
)


@dataclass(frozen=True)
class Outcome:
    """``state``: ok, failed, timed out, absent, or no time left; ``said``: the last line that tells
    something."""

    step: str
    state: str
    seconds: float
    said: str


def call(command: list[str], log: Path, limit: float) -> tuple[int | None, float]:
    """(exit status, or None when it was stopped at its limit; seconds). Output goes to the log."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the step and what it started
            process.wait()
            code = None
    return code, time.monotonic() - began


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def fill(command: tuple[str, ...], directory: Path, out: Path) -> list[str]:
    return [word.replace("{dir}", str(directory)).replace("{out}", str(out)) for word in command]


def run_step(step: Step, directory: Path, out: Path, left: float) -> Outcome:
    if not (directory / step.needs).is_file():
        return Outcome(step.name, "absent", 0.0, f"{step.needs} is not in {directory}: --prepare makes it")
    if left < 10:
        return Outcome(step.name, "no time left", 0.0, f"{max(left, 0):.0f} s of the budget were left")
    folder = out / step.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    code, seconds = call(fill(step.command, directory, folder), log, min(step.seconds, left))
    state = "timed out" if code is None else "ok" if code == 0 else f"failed (exit status {code})"
    return Outcome(step.name, state, round(seconds, 1), last_line(log))


def summary(outcomes: list[Outcome]) -> str:
    rows = [f"| {o.step} | {o.state} | {o.seconds:.1f} s | {o.said.replace('|', '/')} |" for o in outcomes]
    total = sum(o.seconds for o in outcomes)
    return "\n".join(
        ["| step | state | time | last line |", "|---|---|---|---|", *rows, "", f"{total:.0f} s in all", ""]
    )


def run(directory: Path, out: Path, steps: list[Step], budget: float) -> int:
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    outcomes = []
    for step in steps:
        outcome = run_step(step, directory.resolve(), out.resolve(), budget - (time.monotonic() - began))
        outcomes.append(outcome)
        print(f"{outcome.step:16} {outcome.seconds:6.1f} s  {outcome.state}: {outcome.said}", flush=True)
        # After every step, so that a machine that goes away leaves what was done.
        for name, text in (
            ("gpu.md", summary(outcomes)),
            ("gpu.json", json.dumps([asdict(o) for o in outcomes], indent=1) + "\n"),
        ):
            (out / f".{name}").write_text(text)
            os.replace(out / f".{name}", out / name)
    return 0 if all(o.state == "ok" for o in outcomes) else 1


def prepare(directory: Path, steps: list[Step]) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    failed = False
    for step in steps:
        if not step.prepare:
            continue
        log = directory / f"{step.name}.log"
        code, seconds = call(fill(step.prepare, directory.resolve(), directory.resolve()), log, 1800)
        failed |= code != 0
        print(
            f"{step.name:16} {seconds:6.1f} s  {'built' if code == 0 else f'failed, see {log}'}", flush=True
        )
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    print(f"{directory}: {size / 1e6:.1f} MB; on the GPU's machine, in the root of the tree:")
    print(f"    python3 benchmarks/gpu.py --run {directory} --out OUT")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="DIR")
    what.add_argument("--run", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="OUT")
    parser.add_argument("--only", default="", metavar="STEPS", help=", ".join(s.name for s in STEPS))
    parser.add_argument("--budget", type=float, default=290.0, help="seconds for all steps (default 290)")
    a = parser.parse_args(arguments)
    names = [n for n in a.only.split(",") if n]
    by_name = {s.name: s for s in STEPS}
    for name in names:
        if name not in by_name:
            parser.error(f"unknown step {name}; steps: {', '.join(by_name)}")
    steps = [by_name[n] for n in names] or [s for s in STEPS if not s.extra]
    if a.prepare:
        return prepare(a.prepare, steps)
    if a.out is None:
        parser.error("--run needs --out")
    return run(a.run, a.out, steps, a.budget)


if __name__ == "__main__":
    sys.exit(main())
