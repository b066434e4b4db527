"""Figures of the main loops that the simulator uses are those of the golden machine code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tilecc.sim.loops import CODE

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sass"


@pytest.mark.parametrize("format", sorted(CODE))
def test_counts_are_those_of_the_golden_files(format: str) -> None:
    (path,) = GOLDEN.glob(f"loop-{format}-sm_90a-*.txt")
    lines = path.read_text().splitlines()

    def table(title: str) -> dict[str, str]:
        at = lines.index(title)
        return dict(zip(*(re.split(r"\s{2,}", line) for line in lines[at + 1 : at + 3]), strict=True))

    loop, lanes = table("main loops, one warp and iteration"), table("lane instructions per weight")
    weights, code = float(loop["weights"]), CODE[format]
    assert code.issue == float(lanes["all"])
    assert code.integer == float(lanes["integer"])
    assert code.stalls == float(loop["stalls"]) / weights
    assert code.waits == float(loop["scoreboard waits"]) / weights
