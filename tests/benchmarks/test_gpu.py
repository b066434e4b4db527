"""The one command for a GPU: steps in order, limits that hold, a summary that tells what was missing."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu


def step(name: str, text: str, seconds: float = 20.0, needs: str = "library.so") -> gpu.Step:
    return gpu.Step(name, needs, (sys.executable, "-c", text, "{dir}", "{out}"), (), seconds)


def test_outcomes_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "library.so").touch()
    start = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    child = f"import subprocess, sys, time; p = {start}"
    steps = [
        step("good", "import sys, pathlib; pathlib.Path(sys.argv[2], 'made').touch(); print('12 verdicts')"),
        step("bad", "import sys; print('3 cases failed'); sys.exit(3)"),
        step("missing", "", needs="absent.so"),
        step("slow", f"{child}; print(p.pid, flush=True); time.sleep(60)", seconds=3.0),
    ]
    out = tmp_path / "out"
    began = time.monotonic()
    assert gpu.run(tmp_path, out, steps, 100.0) == 1
    assert time.monotonic() - began < 30
    found = {o["step"]: o for o in json.loads((out / "gpu.json").read_text())}
    assert [o["state"] for o in found.values()] == ["ok", "failed (exit status 3)", "absent", "timed out"]
    assert found["good"]["said"] == "12 verdicts" and (out / "good" / "made").exists()
    assert "absent.so is not in" in found["missing"]["said"]
    assert "| bad | failed (exit status 3) |" in (out / "gpu.md").read_text()
    # What the step started ended with it.
    pid = int(found["slow"]["said"])
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(pid, 9)
        pytest.fail("the child of a stopped step still runs")


def test_no_step_begins_after_the_budget(tmp_path: Path) -> None:
    (tmp_path / "library.so").touch()
    assert gpu.run(tmp_path, tmp_path / "out", [step("late", "print(1)")], 5.0) == 1
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())[0]["state"] == "no time left"


def test_the_default_steps_fit_into_five_minutes() -> None:
    usual = [s for s in gpu.STEPS if not s.extra]
    assert [s.name for s in usual] == ["conformance", "costs", "mainloop", "sanitizer"]
    with pytest.raises(SystemExit):
        gpu.main(["--run", "x", "--out", "y", "--only", "nonsense"])
