#!/usr/bin/env python3
"""Micro-costs of one GPU: what hand-offs, copies, loads and instructions of emitted kernels take.

    python benchmarks/costs.py --build DIR
        builds DIR/libcosts.so for sm_90a (needs nvcc, no GPU)
    python3 benchmarks/costs.py --run DIR --out OUT
        measures (needs a GPU and numpy); writes OUT/costs-<gpu>.json and .md
    python3 benchmarks/costs.py --run DIR --out OUT --sanitize TOOL
        the same kernels, few repetitions, under compute-sanitizer's memcheck, racecheck, synccheck or
        initcheck
    python benchmarks/costs.py --import RESULT.json
        makes them the measured costs of the target table (tilecc/target/measured)
    python benchmarks/costs.py --compare MODEL.py
        reruns the passes with planned and with measured costs and prints what differs

The kernels (benchmarks/micro) use the primitive header alone, so they measure what emitted kernels do. Every
group of measurements runs in a process of its own with a time limit; whatever a kernel moves or computes is
checked, and a group whose data is wrong reports that in place of its numbers. Exit status 0: all groups were
measured; 1: some were not.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MICRO = ROOT / "benchmarks" / "micro"
LIBRARY = "libcosts.so"
SCHEMA = 1
GROUP_SECONDS = {"launch": 40, "sync": 60, "stream": 80, "latency": 60, "activations": 60, "rates": 60}


WATCHDOGS = {LIBRARY: 2_000_000_000, "sanitize-" + LIBRARY: 60_000_000_000}
"""Nanoseconds after which a wait gives up: one library to measure, one that is patient under a sanitizer."""


def build(out: Path, names: tuple[str, ...] = tuple(WATCHDOGS)) -> list[Path]:
    """Compile the kernels and their host side into ``names`` in ``out``."""
    from tilecc.build.nvcc import find_nvcc
    from tilecc.target import find_target

    out.mkdir(parents=True, exist_ok=True)
    built = []
    for name in names:
        made = out / ("." + name)
        command = [
            str(find_nvcc()),
            "-std=c++17",
            "-O3",
            "-lineinfo",
            "-gencode",
            find_target("sm_90a").gencode,
        ]
        command += [
            f"-DTK_WATCHDOG_NS={WATCHDOGS[name]}ull",
            f"-I{ROOT / 'templates' / 'include'}",
            "-Xcompiler",
        ]
        command += ["-fPIC,-fvisibility=hidden", "-shared", "-cudart", "static", "-Werror", "all-warnings"]
        subprocess.run([*command, str(MICRO / "host.cu"), "-o", str(made)], check=True)
        os.replace(made, out / name)
        built.append(out / name)
    return built


def measure(library: Path, group: str, scale_name: str) -> dict[str, Any]:
    """One group in this process."""
    from benchmarks.micro import cases
    from benchmarks.micro.device import Gpu

    scale = {"full": cases.FULL, "sanitize": cases.SANITIZE}[scale_name]
    began = time.monotonic()
    gpu = Gpu(library) if scale is cases.FULL else Gpu(library, 64 << 20, 64 << 20)
    info = gpu.info
    costs = [dataclasses.asdict(c) for case in cases.GROUPS[group] for c in case(gpu, scale)]
    device = {
        "name": gpu.name,
        "sms": gpu.sms,
        "l2_bytes": info.l2_bytes,
        "memory_bytes": info.memory_bytes,
        "cuda_driver": f"{info.driver // 1000}.{info.driver % 1000 // 10}",
        "cuda_runtime": f"{info.runtime // 1000}.{info.runtime % 1000 // 10}",
        "clock_limit_hz": info.clock_khz * 1e3,
        "memory_clock_hz": info.memory_clock_khz * 1e3,
    }
    return {"device": device, "costs": costs, "seconds": round(time.monotonic() - began, 2)}


def driver_version() -> str:
    """As nvidia-smi gives it, or empty."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ""
    command = [smi, "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else ""


def run(directory: Path, out: Path, groups: list[str], sanitize: str | None, budget: float) -> int:
    """Every group in its own process, within ``budget`` seconds in all."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for group in groups:
        left = budget - (time.monotonic() - began)
        if left < 5:
            failed[group] = "no time left"
            continue
        part = out / f".{group}.json"
        part.unlink(missing_ok=True)
        library = directory / (("sanitize-" if sanitize else "") + LIBRARY)
        command = [sys.executable, __file__, "--group", group, "--library", str(library), "--part", str(part)]
        if sanitize:
            tool = ["compute-sanitizer", "--tool", sanitize, "--error-exitcode", "9", "--print-limit", "20"]
            command = [*tool, *command, "--scale", "sanitize"]
        limit = min(left, GROUP_SECONDS[group] * (3 if sanitize else 1))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            said = (done.stdout + done.stderr).strip()
            if sanitize:
                (out / f"{sanitize}-{group}.log").write_text(said + "\n")
            if done.returncode != 0:
                failed[group] = said.splitlines()[-1] if said else f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            failed[group] = f"not ended after {limit:.0f} s"
        if part.is_file():
            found[group] = json.loads(part.read_text())
            part.unlink()
        state = f"failed: {failed[group]}" if group in failed else "ok"
        print(f"{group:12} {found.get(group, {}).get('seconds', '-'):>6} s  {state}", flush=True)
    if sanitize:
        print(
            f"compute-sanitizer {sanitize}: "
            + (f"{len(failed)} groups with findings" if failed else "0 errors")
        )
        return 1 if failed else 0
    if not found:
        return 1
    result = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": next(iter(found.values()))["device"] | {"driver": driver_version()},
        "seconds": {g: f["seconds"] for g, f in found.items()},
        "failed": failed,
        "costs": {
            c["key"]: {k: v for k, v in c.items() if k != "key"} for f in found.values() for c in f["costs"]
        },
    }
    from benchmarks.micro.report import file_stem, table

    stem = "costs-" + file_stem(result["device"]["name"])
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", table(result))):
        made = out / f".{stem}{suffix}"
        made.write_text(text)
        os.replace(made, out / (stem + suffix))
        print(out / (stem + suffix))
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--build", type=Path, metavar="DIR")
    what.add_argument("--run", type=Path, metavar="DIR")
    what.add_argument("--import", type=Path, metavar="RESULT.json", dest="result")
    what.add_argument("--compare", type=Path, metavar="MODEL.py")
    what.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="OUT", help="directory of the results of --run")
    parser.add_argument(
        "--only", default="", metavar="GROUPS", help="comma-separated, of: " + ", ".join(GROUP_SECONDS)
    )
    parser.add_argument("--sanitize", choices=["memcheck", "racecheck", "synccheck", "initcheck"])
    parser.add_argument(
        "--budget", type=float, default=150.0, help="seconds that --run may take (default 150)"
    )
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scale", default="full", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.build:
        for path in build(a.build):
            print(path)
        return 0
    if a.result:
        from benchmarks.micro.measured import import_result

        print(import_result(a.result))
        return 0
    if a.compare:
        from benchmarks.micro.compare import compare

        print(compare(a.compare), end="")
        return 0
    if a.group:
        a.part.write_text(json.dumps(measure(a.library, a.group, a.scale)))
        return 0
    groups = [g for g in a.only.split(",") if g] or list(GROUP_SECONDS)
    unknown = [g for g in groups if g not in GROUP_SECONDS]
    if unknown or a.out is None:
        parser.error(f"unknown group {unknown[0]}" if unknown else "--run needs --out")
    return run(a.run, a.out, groups, a.sanitize, a.budget)


if __name__ == "__main__":
    sys.exit(main())
