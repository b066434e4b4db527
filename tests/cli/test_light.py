"""Commands that people type often must start fast, so they import neither torch nor tvm."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

PROBE = """
import json, sys
from tilecc.cli.main import run_app
code = run_app(sys.argv[1:])
heavy = [name for name in ("torch", "tvm", "tvm_ffi", "transformers") if name in sys.modules]
print(json.dumps({"code": code, "heavy": heavy}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "compile --help", "doctor", "explain TC0302", "explain --list", "targets", "ops"],
)
def test_light_commands_import_nothing_heavy(command: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *command.split()], capture_output=True, text=True)
    facts = json.loads(done.stderr.splitlines()[-1])
    assert facts == {"code": 0, "heavy": []}, done.stderr
    assert done.stdout


def test_help_is_fast() -> None:
    """0.5 s of CPU time (wall time would measure the other test worker), the best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "tilecc.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_a_reader_that_leaves_is_no_error() -> None:
    """`tilecc explain --list | head -1` ends quietly."""
    command = f"{sys.executable} -m tilecc.cli ops | head -1; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "embedding"
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
