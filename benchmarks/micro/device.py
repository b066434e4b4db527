"""The kernels of this folder on a GPU: a ctypes view of ``host.cu``. Needs the built library and numpy only.

Every launch zeroes the counters, poisons what the kernel must write, and checks return codes; a kernel that
does not end is reported with the record that its watchdog left.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

KERNELS = ("sync", "copy", "rates")
THREADS = {"sync": 128, "copy": 256, "rates": 512}
POISON = 0xA5
COUNTER_BYTES = 1024 * 128
STATUS_WORDS = 64
FLAG_POISON = 0x7FA57FA5
FIRST_WORD, STEP = 0x7F4A7C15, 0x9E3779B1
MODES = {
    "sync": (
        "mbar_lane mbar_warp mbar_passed warp_to_warp named_barrier cta_sync syncwarp shuffle fence_gpu "
        "fence_proxy counter counter_store counter_data counter_fence counter_bulk flag32 flag64 flag512 "
        "grid grid_stored grid_data grid_flags"
    ).split(),
    "copy": "fill latency stream activations prefetch chase staged".split(),
    "rates": (
        "lop3 shift prmt imad ffma fadd bf16_mul bf16_fma cvt lds128 lds64 lds32 mma exp2 read_only"
    ).split(),
}
"""The enums of the kernels, in their order."""


class Params(ctypes.Structure):
    """``struct MicroParams`` of params.cuh."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in "data work counters times sums spans status offset bytes".split()
        ),
        *((name, ctypes.c_uint32) for name in "mode rounds samples size stages a b c".split()),
    ]


@dataclass(frozen=True)
class Run:
    """One launch. ``times`` [rows, samples] clocks; ``sums`` [grid, 8]; ``seconds`` from the first CTA's
    begin to the last one's end; ``hertz``: SM clock; ``event_seconds`` by the events around it; ``work``:
    what was asked for."""

    times: NDArray[np.uint32]
    sums: NDArray[np.uint32]
    seconds: float
    hertz: float
    event_seconds: float
    work: NDArray[np.uint32]


class Machine(Protocol):
    """Where the kernels run: a GPU, or the emulator with tiny sizes."""

    sms: int
    smem: int
    data_bytes: int
    work_bytes: int

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
        """Run once. ``fields`` go into the parameters. ``upload`` is written to `work` before; without
        ``keep`` the begin of `work` was poisoned. ``rows``: rows of `times` (default: grid); ``read``: bytes
        of `work` to return."""
        ...


def words(first: int, count: int) -> NDArray[np.uint32]:
    """Words [first, first + count) of the data pattern, as ``pattern()`` of params.cuh."""
    i = np.arange(first, first + count, dtype=np.uint64)
    return ((i * STEP + FIRST_WORD) & 0xFFFFFFFF).astype(np.uint32)


def sum_of_words(first: int, count: int) -> int:
    """Their sum modulo 2**32, in closed form."""
    return (STEP * (count * first + count * (count - 1) // 2) + FIRST_WORD * count) % 2**32


class CudaError(RuntimeError):
    """A call of the runtime or a kernel failed; the text says which, and what the watchdog saw."""


class _Device(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 256),
        *(
            (n, ctypes.c_int)
            for n in "driver runtime sms l2_bytes clock_khz memory_clock_khz smem_per_cta cooperative".split()
        ),
        ("memory_bytes", ctypes.c_uint64),
        ("free_bytes", ctypes.c_uint64),
    ]


class Gpu:
    """Device 0. ``data_bytes`` of pattern and ``work_bytes`` of scratch are allocated at once."""

    def __init__(self, library: Path, data_bytes: int = 4 << 30, work_bytes: int = 1 << 30) -> None:
        self._lib = ctypes.CDLL(str(library.resolve()))
        self._lib.micro_error.restype = ctypes.c_char_p
        self._lib.micro_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]
        for name in ("micro_to_device", "micro_to_host"):
            getattr(self._lib, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
        self._lib.micro_launch.argtypes = [
            ctypes.c_int,
            ctypes.POINTER(Params),
            *[ctypes.c_int] * 3,
            ctypes.c_double,
            ctypes.POINTER(ctypes.c_float),
        ]
        self._lib.micro_copy_rate.argtypes = [
            *[ctypes.c_void_p] * 2,
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_float),
        ]
        self._status: Any = None
        self._hertz = 0.0
        self.info = _Device()
        self._check("open", self._lib.micro_open(ctypes.byref(self.info)))
        self.name = self.info.name.decode()
        self.sms, self.smem = self.info.sms, self.info.smem_per_cta
        self.data_bytes, self.work_bytes = data_bytes, work_bytes
        self._data, self._work = self._alloc(data_bytes), self._alloc(work_bytes)
        self._counters, self._times = self._alloc(COUNTER_BYTES), self._alloc(16 << 20)
        self._sums, self._spans = self._alloc(self.sms * 32), self._alloc(self.sms * 32)
        status = ctypes.c_void_p()
        self._check(
            "alloc", self._lib.micro_alloc_host(ctypes.c_uint64(4 * STATUS_WORDS), ctypes.byref(status))
        )
        assert status.value is not None
        self._status_address = status.value
        self._status = (ctypes.c_uint32 * STATUS_WORDS).from_address(status.value)
        self._fill()

    def _fill(self) -> None:
        self.launch("copy", "fill", grid=self.sms, smem=1024, work=self._data, nbytes=self.data_bytes)
        for at in (0, self.data_bytes // 2 + 4096, self.data_bytes - 4096):
            got = self._download(self._data + at, 1024)
            if not np.array_equal(got, words(at // 4, 1024)):
                raise CudaError(f"the data pattern is wrong at byte {at}")

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
        work: int = 0,
        samples: int = 1,
        timeout: float = 20.0,
        **fields: int,
    ) -> Run:
        rows = rows or grid
        if grid >= self.sms:  # one CTA per SM
            smem = max(smem, self.smem // 2 + 1024)
        if rows * samples * 4 > 16 << 20:
            raise ValueError(f"{rows} x {samples} times do not fit")
        self._set(self._counters, 0, COUNTER_BYTES)
        self._set(self._times, POISON, rows * samples * 4)
        self._set(self._sums, 0, self.sms * 32)
        self._set(self._spans, POISON, self.sms * 32)
        ctypes.memset(self._status_address, 0, 4 * STATUS_WORDS)
        if not keep:
            self._set(self._work, POISON, 1 << 20)
        if upload is not None:
            raw = np.ascontiguousarray(upload)
            self._check("upload", self._lib.micro_to_device(self._work, raw.ctypes.data, raw.nbytes))
        params = Params(
            data=self._data,
            work=work or self._work,
            counters=self._counters,
            times=self._times,
            sums=self._sums,
            spans=self._spans,
            status=self._status_address,
            bytes=nbytes,
            mode=MODES[kernel].index(mode),
            samples=samples,
            **fields,
        )
        ms = ctypes.c_float()
        code = self._lib.micro_launch(
            KERNELS.index(kernel),
            ctypes.byref(params),
            grid,
            smem,
            int(cooperative),
            timeout,
            ctypes.byref(ms),
        )
        self._check(f"{kernel}/{mode}", code)
        times = self._download(self._times, rows * samples).reshape(rows, samples)
        sums = self._download(self._sums, grid * 8).reshape(grid, 8)
        spans = self._download(self._spans, grid * 8).reshape(grid, 8)
        begin, end = (spans[:, k].astype(np.uint64) | spans[:, k + 1].astype(np.uint64) << 32 for k in (0, 2))
        lasted = (end - begin).astype(np.float64)
        clocks = (spans[:, 5] - spans[:, 4]).astype(np.float64)
        if lasted.max() > 1e5 or not self._hertz:  # the global timer is too coarse for a shorter run
            self._hertz = (
                float(np.median((clocks / np.maximum(lasted, 1.0))[lasted > lasted.max() / 2])) * 1e9
            )
        seconds = float(int(end.max()) - int(begin.min())) * 1e-9
        back = self._download(self._work, read // 4)
        return Run(times, sums, seconds, self._hertz, ms.value * 1e-3, back)

    def copy_rate(self, nbytes: int, n: int) -> float:
        """Bytes read plus bytes written per second of the runtime's device-to-device copy."""
        ms = ctypes.c_float()
        code = self._lib.micro_copy_rate(self._work, self._data, nbytes, n, ctypes.byref(ms))
        self._check("copy", code)
        got = self._download(self._work + nbytes - 4096, 1024)
        if not np.array_equal(got, words((nbytes - 4096) // 4, 1024)):
            raise CudaError("the device-to-device copy did not arrive")
        return 2.0 * nbytes * n / (ms.value * 1e-3)

    def launches(self, kind: int, smem: int, n: int) -> tuple[float, float]:
        """Seconds (per kernel back to back, of one from the call to its end) of an empty kernel on all
        SMs."""
        device, host = ctypes.c_float(), ctypes.c_double()
        code = self._lib.micro_launches(kind, self.sms, smem, n, ctypes.byref(device), ctypes.byref(host))
        self._check("launches", code)
        return device.value * 1e-6, host.value * 1e-6

    def _alloc(self, nbytes: int) -> int:
        p = ctypes.c_void_p()
        self._check("alloc", self._lib.micro_alloc(ctypes.c_uint64(nbytes), ctypes.byref(p)))
        assert p.value is not None
        return p.value

    def _set(self, p: int, byte: int, nbytes: int) -> None:
        self._check("set", self._lib.micro_set(p, byte, nbytes))

    def _download(self, p: int, count: int) -> NDArray[np.uint32]:
        out = np.empty(count, np.uint32)
        if count:
            self._check("download", self._lib.micro_to_host(out.ctypes.data, p, out.nbytes))
        return out

    def _check(self, what: str, code: int) -> None:
        if code == 0:
            return
        text = f"{what}: {self._lib.micro_error(code).decode()} (code {code})"
        record: Sequence[int] = list(self._status)[:11] if self._status is not None else []
        if record and record[0]:
            names = "cta role op layer item object expected seen kind warp".split()
            seen = ", ".join(f"{n} {v}" for n, v in zip(names, record[1:], strict=True))
            text += f"; the watchdog saw: {seen}"
        raise CudaError(text)
