"""Every device primitive does on the GPU what numpy, and so the emulator, says it must."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conformance.gpu import Report, build, run_suite
from tests.conformance.registry import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One run of the whole suite. TILECC_CONFORMANCE_LIBRARY names a library that was built elsewhere."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is false")
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}a"
    given = os.environ.get("TILECC_CONFORMANCE_LIBRARY")
    library = Path(given) if given else tmp_path_factory.mktemp("conformance") / "libconformance.so"
    if not given:
        if shutil.which("nvcc") is None:
            pytest.skip("nvcc is not installed, and TILECC_CONFORMANCE_LIBRARY names no library")
        build(library, [arch])
    return run_suite(library, [c.name for c in CASES if arch in c.arches])


@pytest.mark.parametrize("name", [c.name for c in CASES])
def test_case(report: Report, name: str) -> None:
    if name not in report.verdicts:
        pytest.skip(f"{report.device} does not have the instruction")
    verdict = report.verdicts[name]
    assert verdict["ok"], f"{verdict['rule']}: {verdict['detail']}"
