"""Tests that need a GPU. Without one they are skipped with the reason; on one they take

    TILECC_GPU_PACKAGE=DIR   a package of models/mimo_tiny.py made by `tilecc compile --max-seqs 8 --build`

or compile the model there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilecc.diag import TileccError
from tilecc.runtime.engine import Engine

MODELS = Path(__file__).resolve().parents[2] / "models"
CHECKPOINT = MODELS / "mimo_tiny"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built package of the tiny model, eight sequences."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is false")
    given = os.environ.get("TILECC_GPU_PACKAGE")
    if given:
        return Path(given)
    from tilecc.build.nvcc import build_cuda
    from tilecc.emit.compiler import compile_model

    out = tmp_path_factory.mktemp("package") / "mimo_tiny"
    compile_model(MODELS / "mimo_tiny.py", target="sm_90a", out=out, max_seqs=8)
    build_cuda(out, ["sm_90a"])
    return out


@pytest.fixture
def engine(package: Path) -> Iterator[Engine]:
    """The tiny model on the GPU, one CTA per SM."""
    try:
        opened = Engine.open(package, CHECKPOINT, device="cuda")
    except TileccError as reason:
        pytest.skip(f"no usable CUDA device: {reason}")
    with opened:
        yield opened
