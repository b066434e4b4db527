"""The tile bodies compiled for the host."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilecc.emit.bodies import (
    COMMON_BODIES,
    BodySpec,
    lower_bodies,
    router_topk,
    softmax_combine,
    softmax_merge,
)

HERE = Path(__file__).parent
ROUTERS = ((1, 1), (8, 8), (10, 3), (16, 4), (40, 8), (384, 8))
MERGES = (1, 4, 8)
SPECS: tuple[BodySpec, ...] = (
    *COMMON_BODIES,
    *(router_topk(e, k) for e, k in ROUTERS),
    *(softmax_merge(n) for n in MERGES),
    *(softmax_combine(n) for n in MERGES),
)


@pytest.fixture(scope="session")
def bodies_text() -> str:
    """All bodies under test as emitted."""
    return lower_bodies(SPECS)


@pytest.fixture(scope="session")
def bodies(bodies_text: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return ``call(name, *arguments)``, which runs a function of bodies_driver.cpp on contiguous arrays."""
    cxx = os.environ.get("CXX") or shutil.which("g++")
    if cxx is None:
        pytest.skip("no g++ on PATH")
    directory = tmp_path_factory.mktemp("bodies")
    (directory / "bodies.inc").write_text(bodies_text)
    library = directory / "bodies.so"
    # No contraction to fma: then f32 arithmetic is the same as numpy's, and equality can be asked for.
    subprocess.run(
        [
            cxx, "-std=c++20", "-O2", "-shared", "-fPIC", "-ffp-contract=off",
            "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-unused-function",
            f'-DBODIES_FILE="{directory}/bodies.inc"', "-o", str(library), str(HERE / "bodies_driver.cpp"),
        ],
        check=True,
    )  # fmt: skip
    loaded = ctypes.CDLL(str(library))

    def call(name: str, *arguments: Any) -> Any:
        converted: list[Any] = []
        for a in arguments:
            if isinstance(a, np.ndarray):
                assert a.flags["C_CONTIGUOUS"] and a.dtype in (np.float32, np.int32)
                converted.append(ctypes.c_void_p(a.ctypes.data))
            elif isinstance(a, float):
                converted.append(ctypes.c_float(a))
            else:
                converted.append(ctypes.c_int(a))
        return getattr(loaded, name)(*converted)

    return call
