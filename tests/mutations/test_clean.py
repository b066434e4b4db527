"""The emitted kernel, unchanged, under adversarial schedules with every detector: nothing to report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutations.conftest import CHECKPOINT, adversary
from tilecc.runtime.campaign import Plan, run_campaign
from tilecc.runtime.engine import Engine

PROMPTS = [[300, 301, 302], [7], [11, 4000, 11, 4000, 5, 5, 5, 5, 90], list(range(1000, 1040, 3))]
"""1 to 14 rows: one chunk and two, near rows and far ones, so that experts are shared or not."""

GRIDS = (2, 3, 4, 8)


def clean(package: Path, grid: int, plan: Plan, prompt: list[int], max_tokens: int) -> tuple[int, ...]:
    """Assert that no seed finds anything and all agree; returns the tokens."""
    with Engine.open(package, CHECKPOINT, grid=grid) as engine:
        campaign = run_campaign(engine, plan, prompt, max_tokens)
    assert campaign.ok, (campaign.groups, campaign.answers)
    assert campaign.clean == len(plan.seeds)
    (tokens,) = campaign.answers
    return tokens


def test_ten_clean_seeds(tiny_package: Path) -> None:
    """All nine pairs of schedule and landing."""
    clean(tiny_package, 2, Plan(range(4)), PROMPTS[0], 2)
    clean(tiny_package, 3, Plan(range(4, 10)), PROMPTS[1], 2)


@pytest.mark.nightly
def test_thirty_two_tokens_in_a_minute(tiny_package: Path) -> None:
    """CPU time of one core: 4 CTAs, random schedule, copies that land late, preemption, all detectors."""
    plan = replace(adversary(range(1)), schedules=("random",), landings=("last",))
    with Engine.open(tiny_package, CHECKPOINT, grid=4) as engine:
        began = time.process_time()
        campaign = run_campaign(engine, plan, PROMPTS[0], 32)
        seconds = time.process_time() - began
    assert campaign.ok, campaign.groups
    stats = campaign.stats.total
    print(f"32 tokens: {seconds:.1f} s of CPU time, {stats['mma'] / seconds / 1e6:.3f} M mma/s")
    assert seconds < 60
