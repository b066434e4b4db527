"""Counters and the epoch pass 2^32 (and 2^31) while the kernel runs: same bits, nothing reported."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.mutations.conftest import ALL, PROMPT, Mutants, adversary
from tests.mutations.inject import Mutation, selected
from tilecc.runtime.devices.emu_lib import DETECT_ALL, DETECT_RACES, Finding
from tilecc.runtime.devices.emulator import EmulatorDevice, KernelFault
from tilecc.runtime.engine import Engine

NAME = "targets compared as unsigned numbers"
LINE = 32  # u32 words from one counter to the next


def decode(
    engine: Engine,
    seed: int,
    detect: int = DETECT_ALL,
    max_findings: int = 20,
    max_switches: int = 30_000_000,
) -> tuple[list[Finding], NDArray[np.float32] | None]:
    """Three rows, then two steps of one row in one launch; returns (findings, logits [5, vocab])."""
    plan = adversary(range(seed, seed + 1), max_findings)
    setting = plan.setting(seed)
    assert isinstance(engine.device, EmulatorDevice)
    engine.device.configure(
        seed=seed,
        schedule=setting.schedule,
        landing=setting.landing,
        preempt=setting.preempt,
        detect=detect,
        max_switches=max_switches,
        max_findings=max_findings,
    )
    first = [(token, i, 0) for i, token in enumerate(PROMPT)]
    try:
        _, before = engine.run_steps([first])
        _, after = engine.run_steps([[(7, 3, 0)], [(-1, 4, 0)]])
    except KernelFault as fault:
        return list(fault.result.findings), None
    assert before is not None and after is not None
    return [], np.concatenate([*before, *after])


def words(engine: Engine, region: str) -> NDArray[np.uint32]:
    """The region itself, not a copy."""
    found = next(r for r in engine.manifest.workspace if r.name == region)
    whole: NDArray[np.uint8] = engine.session.workspace.handle
    return whole[found.offset : found.offset + found.nbytes].view(np.uint32)


def start_at(engine: Engine, epoch: int, arrivals: NDArray[np.uint32]) -> None:
    """An empty session as it is after ``epoch`` steps, each of which adds ``arrivals`` to the counters."""
    engine.session.reset()
    words(engine, "state")[0] = epoch
    words(engine, "counters")[::LINE] = arrivals * np.uint32(epoch)


def arrivals_per_step(mutants: Mutants) -> NDArray[np.uint32]:
    """What one step adds to each counter; at least once per CTA."""
    engine = mutants.engine
    engine.session.reset()
    decode(engine, 0, detect=0)
    arrivals = words(engine, "counters")[::LINE] // 3
    assert words(engine, "state")[0] == 3 and (arrivals >= engine.device.grid).all()
    assert (words(engine, "counters")[::LINE] == 3 * arrivals).all()
    return arrivals


def findings_at_wrap(
    mutants: Mutants, per_step: NDArray[np.uint32], name: str | None, seed: int
) -> list[Finding]:
    """Of the mutation ``name`` (None: the text as emitted) when epoch and counters wrap in the third step."""
    number, mutation = (list(ALL).index(name) + 1, ALL[name]) if name else (0, Mutation({}))
    with selected(mutants.engine, number, mutation):
        start_at(mutants.engine, 2**32 - 2, per_step)
        return decode(mutants.engine, seed, DETECT_ALL, mutation.max_findings, 5_000_000)[0]


def reported(mutants: Mutants, found: list[Finding]) -> bool:
    """The comparison that does not wrap is among the findings, with its place."""
    return any(mutants.matches(f, e) for f in found for e in ALL[NAME].expected)


@pytest.fixture(scope="module")
def per_step(mutants: Mutants) -> NDArray[np.uint32]:
    return arrivals_per_step(mutants)


def test_a_wrap_changes_nothing(mutants: Mutants, per_step: NDArray[np.uint32]) -> None:
    engine = mutants.engine
    engine.session.reset()
    found, want = decode(engine, 0, detect=0)
    assert not found and want is not None
    # The epoch and all counters wrap in the second step, or in the third; one counter wraps while the epoch
    # is far from it; numbers pass 2^31, where a signed comparison would turn.
    epochs = [2**32 - 1, 2**32 - 2, 2**32 // int(per_step.max()), 2**31 - 2]
    for seed, epoch in enumerate(epochs):
        start_at(engine, epoch, per_step)
        found, logits = decode(engine, seed, detect=DETECT_ALL if seed % 2 else 0)
        assert not found, found
        np.testing.assert_array_equal(logits, want)
        assert words(engine, "state")[0] == (epoch + 3) % 2**32
        assert (words(engine, "counters")[::LINE] == per_step * np.uint32((epoch + 3) % 2**32)).all()


def test_stop_ids_across_a_wrap(mutants: Mutants, per_step: NDArray[np.uint32]) -> None:
    engine = mutants.engine
    assert isinstance(engine.device, EmulatorDevice)
    engine.device.configure(seed=0)
    engine.session.reset()
    tokens = engine.generate(PROMPT, 8, stop_ids=()).tokens
    for epoch in (2**32 - 1, 2**32 - 4):
        start_at(engine, epoch, per_step)
        result = engine.generate(PROMPT, 8, stop_ids=[tokens[5]])
        assert result.tokens == tokens[: tokens.index(tokens[5])] and result.stopped == "stop"


def test_comparison_that_does_not_wrap_is_reported(mutants: Mutants, per_step: NDArray[np.uint32]) -> None:
    engine = mutants.engine
    with selected(engine, list(ALL).index(NAME) + 1, ALL[NAME]):
        engine.session.reset()
        found, _ = decode(engine, 0, detect=DETECT_RACES)
        assert not found  # far from the wrap it is as good as the other
    for seed in range(2):
        found = findings_at_wrap(mutants, per_step, NAME, seed)
        assert reported(mutants, found), (seed, found)
