"""All cases, and which primitives they judge."""

from __future__ import annotations

from pathlib import Path

from tests.conformance import cases_cluster, cases_math, cases_matrix, cases_memory, cases_tensor
from tests.conformance.case import Case

KERNELS = Path(__file__).parent / "kernels"

CASES: list[Case] = [
    *cases_math.CASES,
    *cases_memory.CASES,
    *cases_matrix.CASES,
    *cases_tensor.CASES,
    *cases_cluster.CASES,
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases have one name"
