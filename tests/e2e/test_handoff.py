"""Words as flags and counters hand over the same bits, also when a step has more row tiles than the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tilecc.emit.compiler import compile_model
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.devices.emulator import EmulatorDevice
from tilecc.runtime.engine import Engine

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny"
COUNTERS = """
def schedule(s):
    for source, op in (("o_proj", "attn"), ("down", "mlp"), ("experts_down", "moe")):
        s.edge(source, f"{op}_reduce", kind="counter")
    s.edge("router", "route", kind="counter")
"""


def logits(package: Path, max_rows: int) -> NDArray[np.float32]:
    """Of five launches of one step whose rows come and go; under an adversary with all detectors."""
    with Engine.open(package, CHECKPOINT, grid=3) as engine:
        assert isinstance(engine.device, EmulatorDevice)
        engine.device.configure(seed=5, schedule="random", landing="last", preempt=10, detect=DETECT_ALL)
        found, at = [], 0
        for count in (max_rows, 3, 1, max_rows, 2):
            rows = [(300 + 7 * i, at + i, 0) for i in range(count)]
            at += count
            found += engine.run_steps([rows])[1] or []
        return np.concatenate(found)


@pytest.mark.parametrize("max_rows", [8, pytest.param(16, marks=pytest.mark.nightly)])
def test_flags_and_counters_give_the_same_bits(max_rows: int, tmp_path: Path) -> None:
    schedule = tmp_path / "counters.py"
    schedule.write_text(COUNTERS)
    made = []
    for name, pins in (("flags", None), ("counters", schedule)):
        result = compile_model(
            CHECKPOINT.with_suffix(".py"), target="sm_90a", out=tmp_path / name, max_context=128,
            max_rows=max_rows, schedule=pins,
        )  # fmt: skip
        assert ("poison_word" in result.texts["step.cu"]) == (pins is None)
        made.append(logits(tmp_path / name, max_rows))
    np.testing.assert_array_equal(*(m.view(np.uint32) for m in made))
    assert np.abs(made[0]).max() > 1.0
