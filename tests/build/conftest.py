"""A package around sample.cu: a kernel of a few lines with the launch ABI of emitted ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecc.package import Manifest, Region

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def make_package() -> Callable[[Path], Path]:
    """Return a function that writes the package of sample.cu into a directory."""

    def make(directory: Path) -> Path:
        (directory / "kernels").mkdir(parents=True)
        shutil.copytree(ROOT / "templates" / "include", directory / "include")
        shutil.copy(Path(__file__).parent / "sample.cu", directory / "kernels" / "sample.cu")
        (directory / "tables.bin").write_bytes(bytes(16))
        Manifest(
            name="sample",
            model_file="sample.py",
            target="sm_90a",
            tilecc_version="0",
            config={},
            kernel="tilecc_sample",
            source="kernels/sample.cu",
            threads=64,
            smem_bytes=1024,
            default_grid=4,
            max_context=40,
            max_seqs=2,
            vocab=64,
            hidden=32,
            image_bytes=256,
            image=[],
            workspace_bytes=384,
            workspace=[Region("epoch", 0, 128), Region("ready", 128, 128), Region("finished", 256, 128)],
            kv_bytes=2 * 40 * 4,
            tables_bytes=16,
        ).save(directory)
        return directory

    return make
