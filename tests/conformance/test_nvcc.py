"""The kernels of the suite compile for Hopper and Blackwell without stack and spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.case import THREADS
from tests.conformance.gpu import HOPPER_ONLY, INCLUDE, build, main
from tests.conformance.registry import CASES, KERNELS

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def compiled(kernel: str, arch: str, directory: Path) -> str:
    """ptxas's report."""
    source = KERNELS / f"{kernel}.cu"
    command = ["nvcc", "-std=c++17", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v"]
    command += ["-Werror=all-warnings", f"-I{INCLUDE}", "-x", "cu", "-c", str(source)]
    done = subprocess.run(
        [*command, "-o", str(directory / f"{kernel}.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("arch", ["90a", "100a"])
def test_no_stack_no_spills(arch: str, tmp_path: Path) -> None:
    kernels = [k for k in THREADS if arch == "90a" or k not in HOPPER_ONLY]
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda k: compiled(k, arch, tmp_path), kernels))
    for kernel, report in zip(kernels, reports, strict=True):
        assert len(re.findall(r"Compiling entry function", report)) == 1, kernel
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, (kernel, report)


def test_the_library_says_that_there_is_no_gpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Or, on a machine with one, that a case passes."""
    library = tmp_path / "lib.so"
    build(library, ["90a"])
    status = main(["--library", str(library), "--only", "lanes.ids", "--out", str(tmp_path)])
    if status == 2:
        assert "no GPU to run on" in capfd.readouterr().err
    else:
        assert status == 0 and "lanes.ids" in (tmp_path / "conformance.md").read_text()


def test_every_kernel_has_cases() -> None:
    assert {c.kernel for c in CASES} == set(THREADS) == {p.stem for p in KERNELS.glob("*.cu")}
