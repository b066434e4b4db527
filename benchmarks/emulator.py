#!/usr/bin/env python3
"""Speed and memory of the emulator on emitted kernels, in CPU seconds of one core.

    python benchmarks/emulator.py [--json FILE] [--check] [--small]

The kernel is one projection, 2048 x 2048 in the named weight format and 8 layers, made by the real passes and
emitter, on eight rows per step; its result is compared with float64 before a speed counts. A figure is the
best of three runs, each in a process of its own. "132 x 320" is 42,240 emulated threads: the emitted kernel
has 256 threads per CTA, so 165 CTAs run. --check exits with 1 if a figure misses what the project promises;
--small is for tests of this file: one run each, in this process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


@dataclass(frozen=True)
class Measure:
    """One line of the table. `threads` asks for that many emulated threads in place of `grid` CTAs;
    `min_mma`, `min_bytes` per CPU second and `max_rss` bytes are promises, None where there is none."""

    name: str
    format: str = "bf16"
    schedule: str = "round_robin"
    landing: str = "at_once"
    detect: int = 0
    grid: int = 4
    threads: int = 0
    steps: int = 4
    size: int = 2048
    layers: int = 8
    min_mma: float | None = None
    min_bytes: float | None = None
    max_rss: float | None = None


ALL = 15
MEASURES = (
    Measure("bf16", min_mma=0.4e6, min_bytes=200e6),
    Measure("bf16, adversarial", schedule="random", landing="last"),
    Measure(
        "bf16, adversarial, all detectors",
        schedule="random",
        landing="last",
        detect=ALL,
        steps=3,
        min_mma=0.12e6,
    ),
    Measure("mxfp4", format="mxfp4"),
    Measure(
        "mxfp4, adversarial, all detectors",
        format="mxfp4",
        schedule="random",
        landing="last",
        detect=ALL,
        steps=1,
    ),
    Measure("132 x 320", threads=132 * 320, steps=1, max_rss=1.5e9),
    Measure(
        "132 x 320, adversarial, all detectors",
        schedule="random",
        landing="last",
        detect=ALL,
        threads=132 * 320,
        steps=1,
    ),
)


def run(m: Measure) -> dict[str, Any]:
    """Build, run once, check the result; return counts, CPU seconds and the peak memory of this process."""
    import numpy as np
    from mainloop_cases import Case, fill

    from tilecc.emit.single import SingleOp
    from tilecc.runtime.bare import BareKernel
    from tilecc.runtime.devices.emulator import EmulatorDevice

    op = SingleOp("project", m.format, m.size, m.size, layers=m.layers, name="emulated")
    with tempfile.TemporaryDirectory() as folder:
        filled = fill(Case(m.name, op, "projection"), Path(folder) / "package")
        manifest = filled.package.manifest
        grid = m.threads // manifest.threads if m.threads else m.grid
        device = EmulatorDevice(
            filled.package.directory,
            manifest,
            grid,
            seed=1,
            schedule=m.schedule,
            landing=m.landing,
            detect=m.detect,
        )
        kernel = BareKernel.open(filled.package.directory, device, filled.image())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began = time.process_time()
        result = kernel.run(filled.regions, steps=m.steps)
        seconds = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        constants = filled.package.program.classes[0].constants
        got = result.partials(int(constants["tile_splits"]), op.rows)
    shift = 3 * (m.layers - 1)  # of the last layer's weights, as mainloop_cases lays them out
    tiles = (np.arange(got.shape[1] // filled.want.shape[2]) + shift) % filled.want.shape[1]
    error = np.abs(got - filled.want[:, tiles].reshape(8, -1)) / filled.bound[:, tiles].reshape(8, -1)
    assert device.last_result is not None
    stats = device.last_result.stats
    weights = sum(e.nbytes for e in manifest.image if e.kind == "matrix")
    return {
        "seconds": seconds, "mma": stats.total["mma"], "weight_bytes": weights * m.steps,
        "switches": stats.switches, "grid": grid, "threads": manifest.threads,
        "right": bool(error.max() <= 1), "rss": peak, "rss_before": before, "shadow": stats.shadow_bytes,
    }  # fmt: skip


def measure(m: Measure, repeats: int) -> dict[str, Any]:
    """The fastest of `repeats` runs in processes of their own, or of one in this; with rates, verdicts."""
    runs = [] if repeats else [run(m)]
    for _ in range(repeats):
        command = [sys.executable, __file__, "--one", json.dumps(asdict(m))]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    best = min(runs, key=lambda r: r["seconds"])
    rates = {key: best[key] / best["seconds"] for key in ("mma", "weight_bytes", "switches")}
    promises = [
        (rates["mma"], m.min_mma, 1),
        (rates["weight_bytes"], m.min_bytes, 1),
        (best["rss"], m.max_rss, -1),
    ]
    kept = [sign * value >= sign * limit for value, limit, sign in promises if limit is not None]
    return asdict(m) | best | {
        "mma_per_second": rates["mma"],
        "weight_bytes_per_second": rates["weight_bytes"],
        "switches_per_second": rates["switches"],
        "kept": all(kept) and best["right"] if kept else None,
    }  # fmt: skip


def line(r: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table; a wrong result has no speed."""
    if not r["right"]:
        return (r["name"], f"{r['grid']} x {r['threads']}", "WRONG RESULT", "", "", "", "", "")
    promised = [f"{r['min_mma'] / 1e6:g} M mma/s"] if r["min_mma"] else []
    promised += [f"{r['min_bytes'] / 1e6:g} MB/s"] if r["min_bytes"] else []
    promised += [f"at most {r['max_rss'] / 1e9:g} GB"] if r["max_rss"] else []
    verdict = "" if r["kept"] is None else "kept: " if r["kept"] else "MISSED: "
    return (
        r["name"],
        f"{r['grid']} x {r['threads']}",
        f"{r['mma_per_second'] / 1e6:.3f}",
        f"{r['weight_bytes_per_second'] / 1e6:.0f}",
        f"{r['switches_per_second'] / 1e6:.1f}",
        f"{r['rss'] / 1e9:.2f}",
        f"{r['shadow'] / 1e6:.0f}",
        verdict + ", ".join(promised),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a promise is missed")
    parser.add_argument("--small", action="store_true", help="small problem, one run each, in one process")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(Measure(**json.loads(options.one)))))
        return 0
    from tilecc.cli.console import table

    found = []
    for m in MEASURES:
        if options.small:
            m = replace(m, size=256, layers=2, steps=1, threads=m.threads // 64)
        found.append(measure(m, 0 if options.small else 3))
        print(f"{m.name}: {found[-1]['seconds']:.2f} s", file=sys.stderr)
    print("emulator: CPU seconds of one core; emitted projection, 8 rows; best of 3")
    head = (
        "case",
        "CTAs x threads",
        "M mma/s",
        "weights MB/s",
        "M switches/s",
        "peak GB",
        "shadow MB",
        "promised",
    )
    print(table([head, *(line(r) for r in found)]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    missed = [r for r in found if r["kept"] is False or not r["right"]]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
