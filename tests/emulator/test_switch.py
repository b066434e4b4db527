"""The other ways to switch stacks: the portable one runs the same kernels, the AArch64 one assembles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.harness import CONFIGS, Chain, library
from tilecc.build.emulator import DEVICE_HEADERS, FLAGS_VARIABLE, RUNTIME_SOURCES

ROOT = Path(__file__).resolve().parents[2]

LAUNCH = """
import sys
from tests.emulator.harness import CONFIGS, Chain, library
for config in CONFIGS:
    schedule, landing, preempt = config
    chain = Chain(dim=128, n_ops=2)
    how = {"schedule": schedule, "landing": landing, "preempt": preempt, "detect": 15, "seed": 3}
    result, out = chain.launch(library("chain"), **how)
    print(result.status, result.stats.switches, out.tobytes().hex())
"""


def test_ucontext_gives_the_same_runs() -> None:
    """Same seeds, same switches, same bits: only the way to another stack differs."""
    environment = os.environ | {FLAGS_VARIABLE: "-DTK_EMU_UCONTEXT", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    want = []
    for schedule, landing, preempt in CONFIGS:
        result, out = Chain(dim=128, n_ops=2).launch(
            library("chain"), schedule=schedule, landing=landing, preempt=preempt, detect=15, seed=3
        )
        assert result.ok, result.report
        want.append(f"{result.status} {result.stats.switches} {out.tobytes().hex()}")
    assert done.stdout.splitlines() == want


def test_ucontext_symbols_are_there(tmp_path: Path) -> None:
    """The build above really took the portable switch."""
    for flags, calls in (([], False), (["-DTK_EMU_UCONTEXT"], True)):
        made = tmp_path / "switch.o"
        command = [
            "g++",
            "-std=c++20",
            "-c",
            *flags,
            f"-I{DEVICE_HEADERS}",
            str(RUNTIME_SOURCES / "switch.cpp"),
        ]
        subprocess.run([*command, "-o", str(made)], check=True)
        symbols = subprocess.run(["nm", str(made)], check=True, capture_output=True, text=True).stdout
        assert ("swapcontext" in symbols) == calls
        assert ("tk_emu_switch_stack" in symbols) != calls


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="no aarch64-linux-gnu-g++")
def test_aarch64_compiles(tmp_path: Path) -> None:
    """The whole runtime and a kernel; with qemu-aarch64, the switch also runs."""
    flags = [
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        f"-I{DEVICE_HEADERS}",
        f"-I{RUNTIME_SOURCES}",
        "-x",
        "c++",
    ]
    kernel = ROOT / "tests" / "emulator" / "kernels" / "chain.cu"
    for source in [*sorted(RUNTIME_SOURCES.glob("*.cpp")), kernel]:
        subprocess.run(
            ["aarch64-linux-gnu-g++", *flags, "-c", str(source), "-o", str(tmp_path / "out.o")], check=True
        )
    main = tmp_path / "main.cpp"
    main.write_text(TWO_STACKS)
    program = tmp_path / "two_stacks"
    subprocess.run(
        [
            "aarch64-linux-gnu-g++",
            *flags,
            "-static",
            str(main),
            str(RUNTIME_SOURCES / "switch.cpp"),
            "-o",
            str(program),
        ],
        check=True,
    )
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("compiled and linked; no qemu-aarch64 to run it")
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=True)
    assert done.stdout == EXPECTED


TWO_STACKS = """
#include <stdio.h>
#include <stdlib.h>
#include "switch.h"
// Two stacks that hand a number and live floating-point values back and forth.
static void* sp[2];
static int number = 0;
static void fiber() {
  double kept = 0.5;
  for (int i = 1;; i++) {
    kept += i;
    number = number * 2 + 1;
    tk_emu::switch_stack(&sp[1], sp[0]);
    if (kept != 0.5 + i * (i + 1) / 2.0) abort();
  }
}
int main() {
  sp[1] = tk_emu::make_stack(malloc(1 << 16), 1 << 16, fiber);
  double mine = 1.25;
  for (int i = 0; i < 5; i++) {
    mine *= 2.0;
    tk_emu::switch_stack(&sp[0], sp[1]);
    printf("%d %g\\n", number, mine);
  }
}
"""
EXPECTED = "1 2.5\n3 5\n7 10\n15 20\n31 40\n"


def test_two_stacks_on_this_machine(tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text(TWO_STACKS)
    for flags in ([], ["-DTK_EMU_UCONTEXT"]):
        command = ["g++", "-std=c++20", "-O2", *flags, f"-I{RUNTIME_SOURCES}", str(main)]
        program = tmp_path / "two_stacks"
        subprocess.run([*command, str(RUNTIME_SOURCES / "switch.cpp"), "-o", str(program)], check=True)
        done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
        assert done.stdout == EXPECTED
