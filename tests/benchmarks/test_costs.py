"""The micro-benchmarks on the emulator: no races, no deadlocks, and the data that there should be."""

from __future__ import annotations

import pytest

from benchmarks.micro import cases
from tests.benchmarks.emulated import Emulated

CASES = [case for group in cases.GROUPS.values() for case in group]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_case(case) -> None:
    machine = Emulated()
    found = list(case(machine, cases.TINY))
    assert len({c.key for c in found}) == len(found)
    assert all(c.samples > 0 and c.what and c.checked for c in found)
