"""Every primitive does in the emulator what numpy says it must, under every schedule, detectors silent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.case import Case
from tests.conformance.emulate import run_case
from tests.conformance.registry import CASES
from tilecc.build.emulator import DEVICE_HEADERS
from tilecc.runtime.devices.emu_lib import (
    DETECT_ALL,
    LAND_AT_ONCE,
    LAND_LAST,
    LAND_RANDOM,
    PCT,
    RANDOM,
    ROUND_ROBIN,
)

# (schedule, landing, preemption percent, seed)
RUNS = [
    (ROUND_ROBIN, LAND_AT_ONCE, 0, 0),
    (RANDOM, LAND_LAST, 10, 1),
    (PCT, LAND_RANDOM, 10, 2),
    (PCT, LAND_LAST, 0, 3),
]
# Nothing is shared between lanes: one schedule says it all.
ONE_RUN = ("math.", "matrix.mma")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_case(case: Case) -> None:
    launch = case.make()
    runs = RUNS[1:2] if case.name.startswith(ONE_RUN) else RUNS
    for schedule, landing, preempt, seed in runs:
        result, verdict, _ = run_case(
            case, launch, schedule=schedule, landing=landing, preempt=preempt, seed=seed, detect=DETECT_ALL
        )
        assert result.ok, result.report
        assert verdict.ok, f"{case.name}: {verdict.rule}: {verdict.detail}"


# Annotations; a fence for the compiler; a clock, which answers nothing twice.
NOT_JUDGED = {"name_role", "name_op", "mbar_name", "opaque", "clock32"}


def test_every_primitive_is_judged() -> None:
    """Public functions of the PTX headers, by reading them."""
    judged = {name for case in CASES for name in case.primitives}
    missing = primitives() - judged - NOT_JUDGED
    assert not missing, (
        f"{sorted(missing)}: add a case to tests/conformance, or name them in NOT_JUDGED with a reason"
    )


def primitives() -> set[str]:
    helpers = {
        "global_timer",
        "poll_word_of",
        "give_up",
        "mbar_try",
        "mbar_try_cluster",
        "global_address",
    }
    names: set[str] = set()
    for header in sorted(Path(DEVICE_HEADERS).glob("tk_ptx*.cuh")):
        text = header.read_text()
        names |= set(re.findall(r"^TK_FN [\w ]*?\b(\w+)\(", text, re.M))
        for macro, call in re.findall(r"^(TK_[A-Z0-9_]+)\((\w+)", text, re.M):
            if call in ("name",):
                continue
            suffixes = re.findall(rf"define {macro}\(.*?\n(?:.*\\\n)*", text)
            parts = set(re.findall(r"TK_FN \w+ name(?:##(\w+))?\(", "".join(suffixes)))
            names |= {call + part for part in parts or {""}}
    return {n for n in names - helpers if not n.startswith("name")}
