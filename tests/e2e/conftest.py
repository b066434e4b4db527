"""One compiled package and one engine for all end-to-end tests."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilecc.emit.compiler import compile_model
from tilecc.runtime.engine import Engine
from tilecc.runtime.text import Tokenizer

MODELS = Path(__file__).resolve().parents[2] / "models"
CHECKPOINT = MODELS / "mimo_tiny"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/mimo_tiny.py for sm_90a, context 256, eight sequences."""
    out = tmp_path_factory.mktemp("package") / "mimo_tiny"
    compile_model(MODELS / "mimo_tiny.py", target="sm_90a", out=out, max_context=256, max_seqs=8)
    return out


@pytest.fixture
def engine(package: Path) -> Iterator[Engine]:
    """An engine with 3 CTAs and an empty session."""
    with Engine.open(package, CHECKPOINT, grid=3) as opened:
        yield opened


@pytest.fixture(scope="session")
def held_out_ids() -> list[int]:
    """96 tokens of a file that training never saw (models/mimo_tiny/training.json)."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "bisect.py").read_text()
    return list(Tokenizer(CHECKPOINT).encode(text))[:96]
