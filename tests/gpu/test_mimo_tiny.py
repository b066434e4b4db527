"""The emitted kernel on a GPU: the references' answers, and bits that depend on nothing but the text."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import tilecc.models.mimo_tiny as mimo_tiny
from tests.e2e.harness import BF16_BOUND, F32_BOUND, answer, compare, order_noise
from tests.gpu.conftest import CHECKPOINT
from tilecc.runtime.engine import Engine
from tilecc.runtime.text import Tokenizer

TEXT = '''def insort_right(a, x, lo=0, hi=None, *, key=None):
    """Insert item x in list a, and keep it sorted assuming a is sorted.

    If x is already in a, insert it to the right of the rightmost x.
    """
    if key is None:
        lo = bisect_right(a, x, lo, hi)
    else:
        lo = bisect_right(a, key(x), lo, hi, key=key)
    a.insert(lo, x)
'''


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return list(Tokenizer(CHECKPOINT).encode(TEXT))[:96]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_logits_against_both_references(engine: Engine, ids: list[int]) -> None:
    got = answer(engine, ids)
    noise = order_noise(mimo_tiny, CHECKPOINT, ids, got)
    print(f"order of float32 sums alone: {noise:.2e}")
    for rounding, bound in (("bf16", max(BF16_BOUND, 2 * noise)), ("f32", F32_BOUND)):
        found = compare(mimo_tiny, CHECKPOINT, ids, got, rounding)
        print(found.text(rounding))
        assert found.forced.max() <= bound, found.text(rounding)


def test_against_the_emulator(package: Path, engine: Engine, ids: list[int]) -> None:
    mine = engine.logits(ids)
    with Engine.open(package, CHECKPOINT, device="emulator", grid=4) as emulator:
        theirs = emulator.logits(ids)
    error = np.abs(mine - theirs).max(axis=1) / np.abs(theirs).max()
    print(f"GPU against emulator: max {error.max():.2e}, median {np.median(error):.2e}")
    assert np.median(error) <= BF16_BOUND


@pytest.mark.parametrize("grid", [1, 7, 64, 131])
def test_bits_do_not_depend_on_the_grid(package: Path, engine: Engine, ids: list[int], grid: int) -> None:
    with Engine.open(package, CHECKPOINT, device="cuda", grid=grid) as other:
        assert same_bits(engine.logits(ids), other.logits(ids))


def test_rows_are_invariant(engine: Engine, ids: list[int]) -> None:
    alone = engine.logits(ids, chunk=1)
    for chunk in (2, 3, 5, 8):
        assert same_bits(alone, engine.logits(ids, chunk=chunk, seq=chunk - 1)), f"chunks of {chunk}"


def test_a_thousand_launches(engine: Engine, ids: list[int]) -> None:
    first = engine.generate(ids[:20], 40, stop_ids=())
    began = time.perf_counter()
    for _ in range(25):
        assert engine.generate(ids[:20], 40, stop_ids=()).tokens == first.tokens
    print(f"{first.stats}, 25 more in {time.perf_counter() - began:.2f} s")
    one = engine.logits(ids, chunk=1)
    for _ in range(10):
        assert same_bits(one, engine.logits(ids, chunk=1))
