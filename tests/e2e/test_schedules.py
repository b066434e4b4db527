"""Under every schedule the kernel answers what PyTorch answers, and its bits depend on nothing but the
schedule: all that ship with the project, and random legal ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilecc.models.mimo_tiny as mimo_tiny
from tests.e2e.conftest import CHECKPOINT, MODELS
from tests.e2e.harness import BF16_BOUND, F32_BOUND, answer, compare, order_noise
from tests.e2e.test_exactness import same_bits
from tests.passes.helpers import context, tiny_graph
from tilecc.diag import TileccError
from tilecc.emit.compiler import compile_model
from tilecc.passes.draw import draw_schedule
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.engine import Engine

SCHEDULES = sorted(p for p in (MODELS.parent / "schedules").glob("*.py") if p.name != "__init__.py")
DRAWN = 30
TOKENS = 24

_noise: dict[int, float] = {}


def meets_the_bars(file: Path, folder: Path, ids: list[int], target: str) -> None:
    """The bounds of test_accuracy, the equalities of test_exactness, and no finding of the emulator."""
    package = folder / "package"
    compile_model(
        MODELS / "mimo_tiny.py", target=target, out=package, max_context=256, max_seqs=2, schedule=file
    )
    with Engine.open(package, CHECKPOINT, grid=3) as engine:
        got = answer(engine, ids)
        assert same_bits(got.logits, engine.logits(ids, chunk=3, seq=1)), "rows of any chunk"
    adverse = {"schedule": "random", "landing": "last", "seed": 5, "detect": DETECT_ALL}
    with Engine.open(package, CHECKPOINT, grid=4, **adverse) as engine:
        assert same_bits(got.logits[:11], engine.logits(ids[:11])), "another grid, an adverse schedule"
    if not _noise:
        _noise[0] = order_noise(mimo_tiny, CHECKPOINT, ids, got)
    for rounding, bound in (("bf16", max(BF16_BOUND, 2 * _noise[0])), ("f32", F32_BOUND)):
        found = compare(mimo_tiny, CHECKPOINT, ids, got, rounding)
        assert found.forced.max() <= bound, found.text(rounding)
        assert max(found.flips.values(), default=0.0) < 1e-2
        top2 = np.sort(found.forced_reference, axis=1)[:, -2:]
        sure = (top2[:, 1] - top2[:, 0]) > 2 * np.abs(got.logits - found.forced_reference).max(axis=1)
        same = got.logits.argmax(axis=1) == found.forced_reference.argmax(axis=1)
        assert same[sure].all() and sure.mean() > 0.5


def drawn(seed: int) -> str:
    """A random legal schedule; a draw whose choices do not fit together is drawn again."""
    for again in range(20):
        try:
            return draw_schedule(tiny_graph(), context(max_context=256, max_seqs=2), seed + 1000 * again)
        except TileccError:
            continue
    raise AssertionError(f"no draw of seed {seed} fits")


@pytest.mark.parametrize("file", SCHEDULES, ids=lambda p: p.stem)
def test_shipped_schedules(file: Path, tmp_path: Path, held_out_ids: list[int]) -> None:
    target = "sm_100a" if "b200" in file.stem else "sm_90a"
    meets_the_bars(file, tmp_path, held_out_ids[:TOKENS], target)


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.nightly if n > 0 else ()) for n in range(DRAWN)]
)
def test_random_legal_schedules(seed: int, tmp_path: Path, held_out_ids: list[int]) -> None:
    file = tmp_path / "drawn.py"
    file.write_text(drawn(seed))
    meets_the_bars(file, tmp_path, held_out_ids[:TOKENS], "sm_90a")


def test_draws_differ_and_repeat() -> None:
    texts = [drawn(seed) for seed in range(6)]
    assert len(set(texts)) == len(texts) and drawn(3) == texts[3]
