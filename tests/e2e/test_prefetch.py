"""Prefetches into L2 and another number of activation warps change no bit, and the emulator finds nothing."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import CHECKPOINT, MODELS
from tests.e2e.test_exactness import same_bits
from tilecc.emit.compiler import compile_model
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.engine import Engine

SCHEDULE = """
def schedule(s):
    s.op("qkv", prefetch=2)
    s.op("experts_up", prefetch=1)
    s.roles(activations=1, consumer=4)
"""
ADVERSE = {"schedule": "random", "landing": "last", "seed": 3, "detect": DETECT_ALL}


def test_the_bits_are_those_without(tmp_path: Path) -> None:
    file = tmp_path / "ahead.py"
    file.write_text(SCHEDULE)
    found = []
    for name, schedule in (("plain", None), ("ahead", file)):
        out = tmp_path / name
        compile_model(MODELS / "mimo_tiny.py", target="sm_90a", out=out, max_context=128, schedule=schedule)
        calls = (out / "kernels" / "mimo_tiny.cu").read_text().count("::prefetch<")
        assert (calls > 0) == (schedule is not None)
        with Engine.open(out, CHECKPOINT, grid=3, **ADVERSE) as engine:
            found.append(engine.logits([1, 2, 3, 4]))
    assert same_bits(*found)
