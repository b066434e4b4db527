"""Runs a case in the emulator."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tests.conformance.case import THREADS, Case, Launch, Verdict, pack_params
from tests.conformance.registry import KERNELS
from tilecc.build.emulator import DEVICE_HEADERS, build_emulator_kernel
from tilecc.runtime.devices.emu_lib import (
    INITIALISED,
    READ_ONLY,
    UNINITIALISED,
    Buffer,
    EmulatorLibrary,
    LaunchOptions,
    LaunchResult,
    aligned,
)


@cache
def library(kernel: str) -> EmulatorLibrary:
    """``kernels/<kernel>.cu`` with the headers; conformance.h is found next to the file."""
    return EmulatorLibrary(
        build_emulator_kernel(KERNELS / f"{kernel}.cu", DEVICE_HEADERS, f"conformance_{kernel}")
    )


def run_case(case: Case, launch: Launch, **options: Any) -> tuple[LaunchResult, Verdict, np.ndarray]:
    """Returns (launch result, verdict on the output, output bytes)."""
    inp = aligned(max(launch.inp.nbytes, 16))
    inp[: launch.inp.nbytes] = launch.inp
    out = aligned(launch.out_bytes)
    out[:] = 0xFF
    work = aligned(max(launch.work.nbytes if launch.work is not None else 0, 16))
    if launch.work is not None:
        work[: launch.work.nbytes] = launch.work
    status = aligned(256)
    arrays = {"in": inp, "out": out, "work": work, "status": status}
    modes = {"in": READ_ONLY, "out": UNINITIALISED, "work": INITIALISED, "status": INITIALISED}
    addresses = {name: int(a.ctypes.data) for name, a in arrays.items()}
    maps = [library(case.kernel).encode_map(m.spec(addresses[m.buffer])) for m in launch.maps]
    params = pack_params(launch, addresses, maps)
    chosen = LaunchOptions(
        launch.grid,
        THREADS[case.kernel],
        launch.smem,
        cluster=launch.cluster,
        max_switches=20_000_000,
        **options,
    )
    buffers = [Buffer(name, a, modes[name]) for name, a in arrays.items()]
    result = library(case.kernel).launch(params, buffers, chosen)
    return result, launch.check(out, work[: launch.work.nbytes] if launch.work is not None else work), out
