"""The texts that the emulator runs also compile with nvcc, without stack or spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.emulator.harness import KERNELS
from tilecc.build.emulator import DEVICE_HEADERS

SOURCES = sorted(KERNELS.glob("*.cu"))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["90a", "100a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles_for_the_gpu(source: Path, arch: str, tmp_path: Path) -> None:
    if source.stem == "hopper" and arch != "90a":
        pytest.skip("wgmma exists on sm_90a alone")
    command = [
        "nvcc",
        "-std=c++17",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-Xptxas=-v",
        "-Werror=all-warnings",
    ]
    command += [f"-I{DEVICE_HEADERS}", "-x", "cu", "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", done.stderr), (
        done.stderr
    )
    assert len(re.findall(r"Compiling entry function", done.stderr)) == 1
