"""NVIDIA GPUs: torch for memory and streams, the package's plain C interface for launches.

Needs torch with CUDA, a driver, and a library built for this GPU; nothing else of tilecc's compiler. The
status record lies in pinned host memory, so what the watchdog wrote survives the kernel's trap.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.diag import TileccError, error
from tilecc.package import ABI_VERSION, Manifest, Region
from tilecc.runtime.abi import STATUS_WORDS, Params
from tilecc.runtime.devices.base import Access, Buffer, Bytes, Launch, Stats
from tilecc.runtime.devices.status import describe_status

HOST_ABI_VERSION = 1
BAD_ARGUMENT, NO_DEVICE = -1, -2

_INFO_FIELDS = (
    "threads smem_bytes default_grid max_rows max_context max_seqs vocab hidden "
    "image_bytes tables_bytes kv_bytes workspace_bytes"
).split()


class Info(ctypes.Structure):
    """``struct tilecc_info`` of templates/host/tilecc.h."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("params_version", ctypes.c_uint32),
        *((name, ctypes.c_uint32) for name in _INFO_FIELDS[:8]),
        *((name, ctypes.c_uint64) for name in _INFO_FIELDS[8:]),
    ]


class LaunchArguments(ctypes.Structure):
    """``struct tilecc_launch`` of templates/host/tilecc.h."""

    _fields_ = [("size", ctypes.c_uint32), ("grid", ctypes.c_uint32), ("params", Params)]


class Library:
    """A built ``lib<name>.so``. Loading it needs no driver."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.name = path, manifest.name
        try:
            self._lib = ctypes.CDLL(str(path.resolve()))
            self._launch = self._function(
                "launch", ctypes.c_int32, ctypes.POINTER(LaunchArguments), ctypes.c_void_p
            )
            pointer = ctypes.POINTER(ctypes.c_int32)
            self._occupancy = self._function("occupancy", ctypes.c_int32, pointer, pointer)
            self._last_error = self._function("last_error", ctypes.c_char_p)
            version = self._function("abi_version", ctypes.c_uint32)()
            info = Info(size=ctypes.sizeof(Info))
            self._function("info", ctypes.c_int32, ctypes.POINTER(Info))(ctypes.byref(info))
        except (OSError, AttributeError) as reason:
            raise self._stale(str(reason)) from None
        if (version, info.params_version) != (HOST_ABI_VERSION, ABI_VERSION):
            raise self._stale(
                f"it has ABI {version}.{info.params_version}, not {HOST_ABI_VERSION}.{ABI_VERSION}"
            )
        for field in _INFO_FIELDS:
            built, said = getattr(info, field), getattr(manifest, field)
            if built != said:
                raise self._stale(f"{field}: library {built}, manifest {said}")

    def occupancy(self) -> tuple[int, int]:
        """Return (CTAs per SM, SMs) of the current GPU. Raises TC0402 without a usable one."""
        ctas, sms = ctypes.c_int32(), ctypes.c_int32()
        self._check(self._occupancy(ctypes.byref(ctas), ctypes.byref(sms)))
        return ctas.value, sms.value

    def launch(self, params: Params, grid: int, stream: int) -> None:
        """Launch on a CUDA stream (asynchronous). Raises TC0402, TC0404, TC0407."""
        arguments = LaunchArguments(ctypes.sizeof(LaunchArguments), grid, params)
        self._check(self._launch(ctypes.byref(arguments), stream))

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._lib, f"tilecc_{self.name}_{name}")
        function.restype, function.argtypes = result, arguments
        return function

    def _check(self, code: int) -> None:
        if code == 0:
            return
        text = (self._last_error() or b"").decode()
        if code == NO_DEVICE:
            raise _no_device(text)
        raise error("TC0407" if code == BAD_ARGUMENT else "TC0404", f"the launch was refused: {text}")

    def _stale(self, why: str) -> TileccError:
        return error(
            "TC0603",
            f"`{self.path.name}` does not belong to this package",
            note=why,
            help="build it again: `tilecc compile MODEL --target sm_90a --build`",
        )


class CudaDevice:
    """The current CUDA device of torch."""

    name = "cuda"
    note = "one GPU, greedy decode; this run's tokens were not compared with the reference"

    def __init__(self, package: Path, manifest: Manifest, grid: int | None = None) -> None:
        """Open ``lib<name>.so``, building it when it is not there. Raises TC0402, TC0407, TC0603, TC05xx."""
        self._manifest = manifest
        path = package / f"lib{manifest.name}.so"
        if path.is_file():
            self._library = Library(path, manifest)
            room = self._library.occupancy()
            self._torch = _torch()
        else:
            # Without a GPU there is nothing to build for.
            self._torch = _torch()
            from tilecc.build.nvcc import build_cuda

            build_cuda(package)
            self._library = Library(path, manifest)
            room = self._library.occupancy()
        most = room[0] * room[1]
        self.grid = grid if grid is not None else min(manifest.default_grid, most)
        if not 1 <= self.grid <= most:
            raise error(
                "TC0407",
                f"a grid of {self.grid} CTAs cannot be resident at once",
                note=f"this GPU holds {room[1]} SMs x {room[0]} CTAs of this kernel",
                help=f"--grid {most} or fewer",
            )
        self._status = self._torch.zeros(STATUS_WORDS, dtype=self._torch.int32).pin_memory()
        self._failed = False

    def host_array(self, nbytes: int) -> Bytes:
        return np.zeros(nbytes, np.uint8)

    def upload(self, name: str, data: Bytes) -> Buffer:
        # A buffer is never empty: an address is needed even where nothing is read.
        tensor = self._torch.from_numpy(data if data.size else np.zeros(16, np.uint8)).to("cuda")
        return Buffer(name, data.size, "read", tensor)

    def alloc_zeroed(
        self, name: str, nbytes: int, access: Access = "state", regions: tuple[Region, ...] = ()
    ) -> Buffer:
        tensor = self._torch.zeros(max(nbytes, 16), dtype=self._torch.uint8, device="cuda")
        return Buffer(name, nbytes, access, tensor, regions)

    def write(self, buffer: Buffer, data: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        buffer.handle[: raw.size].copy_(self._torch.from_numpy(raw))

    def zero(self, buffer: Buffer) -> None:
        buffer.handle.zero_()

    def download(self, buffer: Buffer, dtype: Any, count: int) -> NDArray[Any]:
        nbytes = count * np.dtype(dtype).itemsize
        raw: Bytes = buffer.handle[:nbytes].cpu().numpy()
        return raw.view(dtype)

    def launch(self, launch: Launch) -> Stats:
        torch = self._torch
        if self._failed:
            raise error(
                "TC0404",
                "an earlier launch stopped the GPU's context",
                help="start a new process; CUDA cannot continue after a trap",
            )
        self._status.zero_()
        params = Params(
            image=launch.image.handle.data_ptr(),
            tables=launch.tables.handle.data_ptr(),
            kv=launch.kv.handle.data_ptr(),
            workspace=launch.workspace.handle.data_ptr(),
            steps=launch.steps.handle.data_ptr(),
            tokens_out=launch.tokens_out.handle.data_ptr(),
            logits=launch.logits.handle.data_ptr() if launch.logits is not None else None,
            stop_ids=launch.stop_ids.handle.data_ptr(),
            status=self._status.data_ptr(),
            n_steps=launch.n_steps,
            n_stop=launch.n_stop,
            flags=launch.flags,
        )
        stream = torch.cuda.current_stream()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(stream)
        self._library.launch(params, self.grid, stream.cuda_stream)
        ended.record(stream)
        try:
            stream.synchronize()
        except RuntimeError as reason:
            self._failed = True
            text = str(reason).strip().partition("\n")[0]
            raise error(
                "TC0404",
                "the kernel stopped without finishing",
                note=[
                    *describe_status(self._status.tolist(), self._manifest, params.workspace),
                    f"CUDA: {text}",
                ],
                help="run the same prompt with `--device emulator`, and report this with the package",
            ) from None
        return {"kernel_ms": float(began.elapsed_time(ended))}

    def close(self) -> None:
        self._failed = True


def _torch() -> Any:
    """torch with a usable GPU, or TC0402 with the reason."""
    try:
        import torch
    except ImportError as reason:
        raise _no_device(f"torch cannot be imported ({reason})") from None
    if not torch.version.cuda:
        raise _no_device("this torch was built without CUDA")
    if not torch.cuda.is_available():
        raise _no_device("torch finds no NVIDIA driver or GPU")
    return torch


def _no_device(why: str) -> TileccError:
    return error(
        "TC0402",
        "no usable CUDA device",
        note=why,
        help="`--device emulator` runs the same kernel text on the CPU",
    )
