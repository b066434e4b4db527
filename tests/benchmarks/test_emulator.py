"""benchmarks/emulator.py runs on a small problem, checks its result, and gives consistent figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_small_run(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/emulator.py", "--small", "--json", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(out.read_text())
    lines = done.stdout.splitlines()[2:]
    assert len(lines) == len(figures) == 7 and all(f["right"] for f in figures)
    for line, f in zip(lines, figures, strict=True):
        assert line.startswith(f["name"])
        assert f["mma_per_second"] == pytest.approx(f["mma"] / f["seconds"]) and f["seconds"] > 0
        # Two layers of 16 m16 tiles and 16 k16 steps.
        assert f["mma"] == 2 * 16 * 16 and f["rss"] > f["weight_bytes"] > 0
        assert (f["shadow"] > 0) == (f["detect"] > 0)
    assert {f["grid"] for f in figures} == {4, 132 * 320 // 64 // 256}
    promised = [f for f in figures if f["kept"] is not None]
    assert [f["name"] for f in promised] == ["bf16", "bf16, adversarial, all detectors", "132 x 320"]
