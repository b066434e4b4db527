"""The emitted kernel on the emulator answers what PyTorch answers."""

from __future__ import annotations

import numpy as np

import tilecc.models.mimo_tiny as mimo_tiny
from tests.e2e.conftest import CHECKPOINT
from tests.e2e.harness import BF16_BOUND, F32_BOUND, answer, compare, order_noise
from tilecc.runtime.engine import Engine


def test_logits_of_held_out_text(engine: Engine, held_out_ids: list[int]) -> None:
    got = answer(engine, held_out_ids)
    noise = order_noise(mimo_tiny, CHECKPOINT, held_out_ids, got)
    print(f"order of float32 sums alone: {noise:.2e}")
    for rounding, bound in (("bf16", max(BF16_BOUND, 2 * noise)), ("f32", F32_BOUND)):
        found = compare(mimo_tiny, CHECKPOINT, held_out_ids, got, rounding)
        print(found.text(rounding))
        assert found.forced.max() <= bound, found.text(rounding)
        # A flip must be a near tie, not a wrong router: bf16 inputs move a score by some 1e-3.
        assert max(found.flips.values(), default=0.0) < 1e-2
        top2 = np.sort(found.forced_reference, axis=1)[:, -2:]
        sure = (top2[:, 1] - top2[:, 0]) > 2 * np.abs(got.logits - found.forced_reference).max(axis=1)
        same = got.logits.argmax(axis=1) == found.forced_reference.argmax(axis=1)
        assert same[sure].all() and sure.mean() > 0.5


def test_generate_is_the_argmax_of_its_own_logits(engine: Engine, held_out_ids: list[int]) -> None:
    prompt = held_out_ids[:21]
    made = engine.generate(prompt, 12, stop_ids=())
    logits = engine.logits(prompt + made.tokens[:-1], seq=1)
    assert made.tokens == [int(t) for t in logits[len(prompt) - 1 :].argmax(axis=1)]


def test_stop_token_ends_the_launch(engine: Engine, held_out_ids: list[int]) -> None:
    prompt = held_out_ids[:21]
    free = engine.generate(prompt, 12, stop_ids=()).tokens
    stop = free[5]
    stopped = engine.generate(prompt, 12, stop_ids=(stop,), seq=2)
    assert stopped.tokens == free[: free.index(stop)] and stopped.stopped == "stop"
    # The epoch counts only the steps that ran, so the session goes on.
    assert engine.generate(prompt, 12, stop_ids=(), seq=3).tokens == free
