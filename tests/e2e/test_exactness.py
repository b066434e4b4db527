"""Row invariance and determinism, as equality of bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import CHECKPOINT
from tests.e2e.harness import Floats
from tilecc.runtime.engine import Engine

Rows = list[tuple[int, int, int]]


def same_bits(a: Floats, b: Floats) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def run(engine: Engine, *steps: Rows) -> list[Floats]:
    _, logits = engine.run_steps(list(steps))
    assert logits is not None
    return logits


def test_a_row_does_not_depend_on_its_column_or_its_neighbours(
    engine: Engine, held_out_ids: list[int]
) -> None:
    ids = held_out_ids[:48]
    alone = np.concatenate(run(engine, *[[(t, p, 0)] for p, t in enumerate(ids)]))
    for chunk in (8, 3, 5):
        assert same_bits(alone, engine.logits(ids, chunk=chunk, seq=1)), f"chunks of {chunk}"
    # The last position again, in every column, among rows of other texts at other positions. Sequences 2 to 7
    # hold different prefixes, so nearly all experts are active.
    others = {seq: [(7 * seq + 13 * p) % 4096 for p in range(16)] for seq in range(2, 8)}
    for seq, tokens in others.items():
        engine.logits(tokens, seq=seq)
    for column in range(7):
        rows: Rows = [((31 * seq) % 4096, 16, seq) for seq in range(2, 8)]
        rows.insert(column if column < 6 else 6, (ids[47], 47, 1))
        logits = run(engine, rows)[0]
        at = next(i for i, row in enumerate(rows) if row[2] == 1)
        assert same_bits(alone[47:48], logits[at : at + 1]), f"column {column}"


@pytest.mark.parametrize("grid", [2, 5, 8])
def test_bits_do_not_depend_on_the_number_of_ctas(
    package: Path, engine: Engine, held_out_ids: list[int], grid: int
) -> None:
    ids = held_out_ids[:40]
    with Engine.open(package, CHECKPOINT, grid=grid) as other:
        assert same_bits(engine.logits(ids), other.logits(ids))


@pytest.mark.parametrize(
    ("schedule", "landing", "seed", "grid"),
    [
        ("random", "random", 1, 3),
        ("random", "last", 2, 3),
        ("pct", "last", 3, 3),
        ("pct", "random", 4, 3),
        ("round_robin", "last", 5, 3),
        # More CTAs than the small ops have tasks: an idle CTA must not arrive a lap ahead of the others.
        ("pct", "last", 6, 9),
        ("random", "random", 7, 9),
    ],
)
def test_bits_do_not_depend_on_the_schedule(
    package: Path, engine: Engine, held_out_ids: list[int], schedule: str, landing: str, seed: int, grid: int
) -> None:
    ids = held_out_ids[:16]
    with Engine.open(package, CHECKPOINT, grid=grid, seed=seed, schedule=schedule, landing=landing) as other:
        assert same_bits(engine.logits(ids), other.logits(ids))


def test_running_twice_gives_the_same_bits(engine: Engine, held_out_ids: list[int]) -> None:
    ids = held_out_ids[:24]
    assert same_bits(engine.logits(ids, seq=0), engine.logits(ids, seq=1))
