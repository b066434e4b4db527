"""Programs for up to 16, 32 and 64 rows: every row of every batch has the bits of the 8-row program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import CHECKPOINT, MODELS
from tests.e2e.harness import Floats
from tests.e2e.test_exactness import same_bits
from tilecc.check import check
from tilecc.emit.compiler import compile_model
from tilecc.ir.program import Program
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.engine import Engine
from tilecc.target import find_target

Rows = list[tuple[int, int, int]]
LENGTHS = (70, 37, 1, 50)


@pytest.fixture(scope="module")
def texts(held_out_ids: list[int]) -> list[list[int]]:
    """Independent sequences: a long prompt, shorter ones, a single token."""
    return [[(t + 17 * seq) % 4096 for t in held_out_ids[:n]] for seq, n in enumerate(LENGTHS)]


def pairs(rows: Rows, values: Floats) -> Iterator[tuple[tuple[int, int, int], Floats]]:
    return zip(rows, values, strict=True)


def logits(engine: Engine, steps: list[Rows]) -> dict[tuple[int, int], Floats]:
    """Logits of every (sequence, position)."""
    _, found = engine.run_steps(steps)
    assert found is not None
    return {(s, p): v for rows, step in zip(steps, found, strict=True) for (_, p, s), v in pairs(rows, step)}


def batches(texts: list[list[int]], most: int, seed: int) -> list[Rows]:
    """Steps that mix chunks of prefill of all sequences, in random order and lengths; some are full."""
    rng, at, steps = np.random.default_rng(seed), [0] * len(texts), []
    while any(at[s] < len(text) for s, text in enumerate(texts)):
        step: Rows = []
        for s in map(int, rng.permutation(len(texts))):
            n = min(int(rng.integers(1, most)), most - len(step), len(texts[s]) - at[s])
            step += [(texts[s][at[s] + i], at[s] + i, s) for i in range(n)]
            at[s] += n
        steps.append(step)
    return steps


@pytest.fixture(scope="module")
def eight(package: Path, texts: list[list[int]]) -> dict[tuple[int, int], Floats]:
    """One sequence after the other, eight rows a step."""
    rows = [[(t, p, s) for p, t in enumerate(text)] for s, text in enumerate(texts)]
    with Engine.open(package, CHECKPOINT, grid=3) as engine:
        return logits(engine, [r[i : i + 8] for r in rows for i in range(0, len(r), 8)])


@pytest.mark.parametrize(
    "most", [16, pytest.param(32, marks=pytest.mark.nightly), pytest.param(64, marks=pytest.mark.nightly)]
)
def test_batches_have_the_bits_of_the_program_of_eight_rows(
    tmp_path: Path, texts: list[list[int]], eight: dict[tuple[int, int], Floats], most: int
) -> None:
    out = tmp_path / "mimo_tiny"
    made = compile_model(
        MODELS / "mimo_tiny.py", target="sm_90a", out=out, max_context=256, max_seqs=8, max_rows=most
    )
    assert made.manifest is not None and made.manifest.max_rows == most
    assert not check(Program.from_text(made.texts["20-program.txt"]), find_target("sm_90a")).diagnostics
    with Engine.open(out, CHECKPOINT, grid=5) as engine:
        for seed in (1, 2):
            steps = batches(texts, most, seed)
            assert max(len(step) for step in steps) > most - 8
            found = logits(engine, steps)
            assert found.keys() == eight.keys()
            assert all(same_bits(found[key], eight[key]) for key in eight)
            engine.session.reset()
        tokens = engine.generate(texts[0], 4, stop_ids=()).tokens
    assert tokens[0] == int(np.argmax(eight[0, len(texts[0]) - 1]))
    options = {"schedule": "random", "landing": "last", "seed": 3, "detect": DETECT_ALL}
    with Engine.open(out, CHECKPOINT, grid=3, **options) as engine:
        step = batches(texts, most, 3)[:1]
        found = logits(engine, step)
        assert all(same_bits(value, eight[key]) for key, value in found.items())
