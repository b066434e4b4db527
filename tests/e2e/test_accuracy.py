"""The emitted kernel on the emulator answers what PyTorch answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tilecc.models.mimo_tiny as mimo_tiny
from tests.e2e.conftest import CHECKPOINT, MODELS
from tests.e2e.harness import BF16_BOUND, F32_BOUND, answer, compare, order_noise
from tilecc.emit.compiler import compile_model
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


def test_an_fp8_cache(tmp_path: Path, held_out_ids: list[int]) -> None:
    """Both references store keys and values as e4m3 too, so the bounds are made like those of a bf16 cache.
    The order of sums costs more here: it flips roundings of 2^-4. The format shows in the median."""
    package = tmp_path / "fp8"
    compiled = compile_model(
        MODELS / "mimo_tiny.py", target="sm_90a", out=package, max_context=256, max_seqs=2, kv="fp8"
    )
    assert compiled.manifest is not None and compiled.manifest.kv_format == "fp8"
    ids = held_out_ids[:32]
    with Engine.open(package, CHECKPOINT, grid=3) as opened:
        got = answer(opened, ids)
        again = opened.logits(ids, chunk=3, seq=1)
    assert np.array_equal(got.logits.view(np.uint32), again.view(np.uint32))  # rows of any chunk
    noise = order_noise(mimo_tiny, CHECKPOINT, ids, got, kv="fp8")
    for rounding, bound in (("bf16", max(BF16_BOUND, 2 * noise)), ("f32", F32_BOUND)):
        found = compare(mimo_tiny, CHECKPOINT, ids, got, rounding, kv="fp8")
        print(f"fp8, order noise {noise:.2e}, {found.text(rounding)}")
        assert found.forced.max() <= bound, found.text(rounding)
        if rounding == "bf16":
            own = float(np.median(found.forced))
    other = float(np.median(compare(mimo_tiny, CHECKPOINT, ids, got, "bf16").forced))
    print(f"median {own:.2e}, against a bf16 cache {other:.2e}")
    assert other > 1.5 * own
