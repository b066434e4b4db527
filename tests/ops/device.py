"""Where the op tests run: on the emulator, or on a GPU with packages that were made on another machine.

    TILECC_OPS_PACKAGES=DIR pytest tests/ops                          also builds every package into DIR
    TILECC_OPS_PACKAGES=DIR TILECC_OPS_DEVICE=cuda pytest tests/ops   runs these, without TVM and nvcc

On a GPU there are no detectors and no schedules to choose: what stays is every number and every equality.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tilecc.build.emulator import TEMPLATES
from tilecc.emit.single import SinglePackage
from tilecc.ir.program import Program
from tilecc.package import Manifest
from tilecc.runtime.bare import BareKernel
from tilecc.runtime.devices.base import Bytes, Device
from tilecc.runtime.devices.cuda import CudaDevice
from tilecc.runtime.devices.emulator import EmulatorDevice

PACKAGES = os.environ.get("TILECC_OPS_PACKAGES")
ON_GPU = os.environ.get("TILECC_OPS_DEVICE") == "cuda"
TARGET = "sm_90a"


def packaged(out: Path, what: object, make: Callable[[], SinglePackage]) -> SinglePackage:
    """`make()`, which writes the package of `what` to `out`; with a folder of packages it is built into that
    folder, or on a GPU taken from there."""
    if PACKAGES is None:
        return make()
    place = Path(PACKAGES) / hashlib.sha256(f"{what}{_version()}".encode()).hexdigest()[:16]
    if ON_GPU:
        if not place.is_dir():
            pytest.skip(f"not among the packages, or of another version: {what}")
        program = Program.from_text((place / "ir" / "20-program.txt").read_text())
        return SinglePackage(place, Manifest.load(place), program)
    from tilecc.build.nvcc import build_cuda

    package = make()
    if not place.is_dir():
        build_cuda(out, [TARGET])
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=place.parent, prefix=".new-"))
        shutil.copytree(
            out, work, ignore=shutil.ignore_patterns("include", "host", "*.log"), dirs_exist_ok=True
        )
        os.replace(work, place)
    return package


def open_kernel(package: SinglePackage, image: Bytes, grid: int, **options: Any) -> BareKernel:
    """The package on the device of this run; `options` are the emulator's."""
    directory, manifest = package.directory, package.manifest
    device: Device
    if ON_GPU:
        device = CudaDevice(directory, manifest, grid)
    else:
        device = EmulatorDevice(directory, manifest, grid, **options)
    return BareKernel.open(directory, device, image)


def _version() -> str:
    files = sorted(p for p in (TEMPLATES / "include").iterdir() if not p.name.startswith("tk_emu"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()
