"""AddressSanitizer and UBSan on the emulator's runtime and on kernels compiled for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tilecc.build.emulator import FLAGS_VARIABLE, compiler

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "models" / "mimo_tiny"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"


def library(name: str) -> str:
    """Path of a sanitizer's runtime, "" if the compiler has none."""
    found = subprocess.run(
        [compiler()[0], f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if Path(found).is_absolute() else ""


def sanitized(*command: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizers' runtimes loaded first and kernels built for them.

    Leaks are not looked for: a fiber that is stopped never unwinds, and Python keeps memory.
    """
    preload = [library("libasan.so"), library("libubsan.so")]
    if not all(preload):
        pytest.skip("the compiler has no libasan and libubsan")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
        FLAGS_VARIABLE: FLAGS,
    }
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def accept(done: subprocess.CompletedProcess[str]) -> None:
    said = done.stdout + done.stderr
    assert "Sanitizer" not in said and "runtime error" not in said, said[-8000:]
    assert done.returncode == 0, said[-8000:]


BROKEN = """
#include "tk_prim.cuh"
struct BrokenParams { uint32_t* out; uint32_t index; };
TK_KERNEL(broken, 32)(TK_GRID_CONST BrokenParams p) {
  uint32_t local[4] = {1, 2, 3, 4};
  %s
  tk::stg32(p.out + tk::lane(), local[p.index & 3]);
}
TK_EMU_ENTRY(broken, BrokenParams)
"""

LAUNCH = """
import struct, sys
from pathlib import Path
from tests.emulator.harness import Buffer, LaunchOptions, aligned, build_text
lib = build_text(Path(sys.argv[1]).read_text(), "broken", Path(sys.argv[1]).parent)
out = aligned(128)
params = struct.pack("QI4x", out.ctypes.data, 33)
result = lib.launch(params, [Buffer("out", out)], LaunchOptions(1, 32, 1024))
print("finished", result.status)
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("local[p.index] = 5;", "stack-buffer-overflow|index 33 out of bounds"),
        ("local[1] = 1u << p.index;", "shift exponent 33"),
        ("local[1] = 3;", ""),
    ],
)
def test_sanitizers_see_into_fibers(line: str, said: str, tmp_path: Path) -> None:
    """An error on a fiber's own stack is found, so silence below means something."""
    text = tmp_path / "source.txt"
    text.write_text(BROKEN % line)
    done = sanitized("-c", LAUNCH, text)
    if said:
        assert done.returncode != 0 and any(s in done.stderr for s in said.split("|")), done.stderr[-4000:]
    else:
        accept(done)
        assert done.stdout == "finished 0\n"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "files",
    [
        "test_execution.py",
        "test_findings.py",
        "test_races.py",
        "test_banks.py",
        "test_structured.py test_scopes.py",
        "test_hopper_findings.py",
    ],
)
def test_the_runtime_is_clean(files: str) -> None:
    """The emulator's own tests, the ones that stop in the middle of a launch included."""
    paths = [Path("tests/emulator") / name for name in files.split()]
    # The stack of a fiber is larger here, so it does not overflow where that test wants it to.
    chosen = ("-k", "not stack_of_a_thread and not switches_per_second")
    accept(sanitized("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen, *paths))


@pytest.mark.nightly
def test_the_emitted_kernel_is_clean(tiny_package: Path) -> None:
    """Prompt and decode of the small model, under all schedules and detectors."""
    command = ["-m", "tilecc.cli", "emulate", tiny_package, "--checkpoint", CHECKPOINT, "--ids", "5,9,77"]
    accept(sanitized(*command, "--max-tokens", 2, "--seeds", 9, "--grid", 2))
