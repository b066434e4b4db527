"""All cases, and which primitives they judge."""

from __future__ import annotations

from pathlib import Path

from tests.conformance import cases_cluster, cases_math, cases_matrix, cases_memory, cases_tensor, cases_wgmma
from tests.conformance.case import Case

KERNELS = Path(__file__).parent / "kernels"

_FILES = (cases_math, cases_memory, cases_matrix, cases_tensor, cases_cluster, cases_wgmma)
CASES: list[Case] = [case for file in _FILES for case in file.CASES]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases have one name"
