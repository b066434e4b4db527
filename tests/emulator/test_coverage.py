"""Every line of the emitted kernel runs on the emulator, or is listed with the reason why it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.emulator import coverage

CHECKPOINT = coverage.ROOT / "models" / "mimo_tiny"

needs_gcov = pytest.mark.skipif(coverage.gcov() is None, reason="the host compiler has no gcov")


@needs_gcov
def test_every_line_of_the_small_model_is_reached(tiny_package: Path) -> None:
    files = coverage.measure(tiny_package, CHECKPOINT)
    print(coverage.table(files))
    assert {f.file for f in files} >= {
        "kernels/mimo_tiny.cu",
        "include/op_gemv.cuh",
        "include/op_attention.cuh",
    }
    assert not coverage.problems(files, coverage.reasons())


def test_lines_and_reasons_must_agree() -> None:
    lines = coverage.Lines("kernels/k.cu", ["f();", "  g();", "h();"], {1: 4, 2: 0, 3: 0})
    known = {("kernels/k.cu", "h();"): "only on Sundays", ("kernels/k.cu", "f();"): "rare"}
    assert coverage.problems([lines], known) == [
        "kernels/k.cu:2: not reached, no reason known: g();",
        "unreached.txt: kernels/k.cu | f();: reached, or gone",
    ]


@needs_gcov
@pytest.mark.nightly
def test_a_line_that_never_runs_is_found(tiny_package: Path, tmp_path: Path) -> None:
    """In the .cu and in a main loop, also where only one side of a branch runs."""
    package = tmp_path / "package"
    shutil.copytree(tiny_package, package)
    source = package / "kernels" / "mimo_tiny.cu"
    text = source.read_text()
    assert text.count("  tk::cta_sync();\n") == 1
    source.write_text(
        text.replace(
            "  tk::cta_sync();\n", "  tk::cta_sync();\n  if (tk::ncta() == 99)\n    tk::syncwarp();\n"
        )
    )
    loop = package / "include" / "op_common.cuh"
    text = loop.read_text()
    assert text.count("    tk::syncwarp();\n  }\n") >= 1
    loop.write_text(
        text.replace(
            "    tk::syncwarp();\n  }\n",
            "    tk::syncwarp();\n    if (cta > 4000)\n      tk::nanosleep(1);\n  }\n",
            1,
        )
    )
    found = coverage.problems(
        coverage.measure(package, CHECKPOINT), {("kernels/gone.cu", "x;"): "a file of the past"}
    )
    assert [f.split(": ", 2)[2] for f in found[:2]] == ["tk::nanosleep(1);", "tk::syncwarp();"], found
    assert len(found) == 3 and found[2].endswith("kernels/gone.cu | x;: reached, or gone")
