"""The machine of the micro-benchmarks on the emulator: all detectors, adversarial schedules, tiny sizes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.device import COUNTER_BYTES, MODES, POISON, STATUS_WORDS, THREADS, Params, Run, words
from tests.emulator.harness import (
    CONFIGS,
    INITIALISED,
    READ_ONLY,
    UNINITIALISED,
    Buffer,
    EmulatorLibrary,
    LaunchOptions,
    aligned,
)
from tilecc.build.emulator import DEVICE_HEADERS, build_emulator_kernel
from tilecc.runtime.devices.emu_lib import DETECT_PARITY, DETECT_RACES, DETECT_UNINIT

MICRO = Path(__file__).resolve().parents[2] / "benchmarks" / "micro"


class Emulated:
    """`Machine` of benchmarks/micro/device.py. Launch i runs under schedule i of CONFIGS, round and round."""

    def __init__(self, sms: int = 3, data_bytes: int = 256 << 10, work_bytes: int = 256 << 10) -> None:
        self.sms, self.smem = sms, 232448
        self.data_bytes, self.work_bytes = data_bytes, work_bytes
        self._data, self._work = aligned(data_bytes), aligned(work_bytes)
        self._data.view(np.uint32)[:] = words(0, data_bytes // 4)
        self._libraries: dict[str, EmulatorLibrary] = {}
        self.launched: list[tuple[str, str]] = []

    def library(self, kernel: str) -> EmulatorLibrary:
        if kernel not in self._libraries:
            path = build_emulator_kernel(MICRO / f"{kernel}.cu", DEVICE_HEADERS, f"micro_{kernel}")
            self._libraries[kernel] = EmulatorLibrary(path)
        return self._libraries[kernel]

    def launch(
        self,
        kernel: str,
        mode: str,
        *,
        grid: int,
        smem: int,
        cooperative: bool = False,
        upload: NDArray[np.uint32] | None = None,
        keep: bool = False,
        rows: int = 0,
        read: int = 0,
        nbytes: int = 0,
        samples: int = 1,
        **fields: int,
    ) -> Run:
        rows = rows or grid
        if not keep:
            self._work[:] = POISON
        known = keep or upload is not None
        if upload is not None:
            raw = np.ascontiguousarray(upload).view(np.uint8).reshape(-1)
            self._work[: raw.size] = raw
        counters, times, status = (
            aligned(COUNTER_BYTES),
            aligned(4 * rows * samples),
            aligned(4 * STATUS_WORDS),
        )
        sums, spans = aligned(32 * grid), aligned(32 * grid)
        times[:] = spans[:] = POISON
        config = CONFIGS[len(self.launched) % len(CONFIGS)]
        params = Params(
            data=self._data.ctypes.data,
            work=self._work.ctypes.data,
            counters=counters.ctypes.data,
            times=times.ctypes.data,
            sums=sums.ctypes.data,
            spans=spans.ctypes.data,
            status=status.ctypes.data,
            bytes=nbytes,
            mode=MODES[kernel].index(mode),
            samples=samples,
            **fields,
        )
        buffers = [
            Buffer("data", self._data, READ_ONLY),
            Buffer("work", self._work, INITIALISED if known else UNINITIALISED),
            Buffer("counters", counters),
            Buffer("times", times, UNINITIALISED),
            Buffer("sums", sums),
            Buffer("spans", spans, UNINITIALISED),
            Buffer("status", status),
        ]
        options = LaunchOptions(
            grid,
            THREADS[kernel],
            smem,
            schedule=config[0],
            landing=config[1],
            preempt=config[2],
            detect=DETECT_RACES | DETECT_UNINIT | DETECT_PARITY,
            seed=len(self.launched),
        )
        self.launched.append((kernel, mode))
        result = self.library(kernel).launch(bytes(params), buffers, options)
        assert result.ok, f"{kernel}/{mode} {fields}\n{result.report}"
        first = times.view(np.uint32)[:samples]
        assert mode == "read_only" or mode == "stream" or (first != POISON * 0x01010101).all(), (
            f"{mode}: no times"
        )
        work = self._work[:read].view(np.uint32).copy()
        return Run(
            times.view(np.uint32).reshape(rows, samples),
            sums.view(np.uint32).reshape(grid, 8),
            1e-3,
            1e9,
            1e-3,
            work,
        )


assert ctypes.sizeof(Params) == 9 * 8 + 8 * 4
