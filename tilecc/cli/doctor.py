"""`tilecc doctor`: what this machine has, what is missing and how to get it. Without torch and tvm."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated, Literal

import typer

from tilecc.cli.console import emit, emit_json, table
from tilecc.cli.packages import cache_dir
from tilecc.diag import TileccError

Level = Literal["ok", "warn", "fail"]

PYTHON = (3, 11)
GXX = 12
FREE_BYTES = 2 << 30

PACKAGES = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy", "tokenizers", "clang-format")


@dataclass(frozen=True)
class Check:
    """One line: ``warn`` means that something optional is missing, ``fail`` that tilecc cannot work."""

    name: str
    level: Level
    found: str
    fix: str = ""


def doctor_command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check Python, libraries, compilers, GPU and cache. Exit 3 if something needed is missing."""
    checks = [one for probe in PROBES for one in probe()]
    if json:
        emit_json([asdict(c) for c in checks])
    else:
        rows = [(c.level, c.name, c.found) for c in checks]
        for line, c in zip(table(rows).splitlines(), checks, strict=True):
            emit(line)
            if c.fix:
                emit(f"      fix: {c.fix}")
    if any(c.level == "fail" for c in checks):
        raise typer.Exit(3)


def _python() -> list[Check]:
    version = platform.python_version()
    if sys.version_info < PYTHON:
        return [Check("python", "fail", version, "use Python 3.11 or newer")]
    return [Check("python", "ok", version)]


def _libraries() -> list[Check]:
    found = []
    for name in PACKAGES:
        try:
            found.append(Check(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append(Check(name, "fail", "not installed", f"pip install {name}"))
    return found


def _gxx() -> list[Check]:
    named = os.environ.get("TILECC_CXX") or os.environ.get("CXX") or "g++"
    path = shutil.which(named)
    fix = "install g++ 12 or newer, or set TILECC_CXX"
    if path is None:
        return [Check("g++", "fail", f"`{named}` not found; the emulator needs it", fix)]
    version = _output([path, "-dumpfullversion", "-dumpversion"])
    major = version.split(".")[0]
    old = major.isdigit() and int(major) < GXX
    return [
        Check("g++", "fail" if old else "ok", f"{version or 'unknown version'} ({path})", fix if old else "")
    ]


def _nvcc() -> list[Check]:
    from tilecc.build.nvcc import find_nvcc, nvcc_version

    try:
        path = find_nvcc()
    except TileccError as missing:
        first = missing.diagnostics[0]
        note = "; needed only for `compile --build`"
        return [Check("nvcc", "warn", first.message + note, "; ".join(first.help))]
    return [Check("nvcc", "ok", f"{nvcc_version(path)} ({path})")]


def _gpu() -> list[Check]:
    fix = "`--device emulator` runs the same kernel text on the CPU"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [Check("gpu", "warn", "no NVIDIA driver", fix)]
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value == 0:
        return [Check("gpu", "warn", f"driver found, no usable GPU (CUDA error {status})", fix)]
    names = []
    for number in range(count.value):
        text = ctypes.create_string_buffer(128)
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        driver.cuDeviceGetName(text, 128, number)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, number)  # COMPUTE_CAPABILITY_MAJOR
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, number)  # COMPUTE_CAPABILITY_MINOR
        names.append(f"{text.value.decode(errors='replace')} (sm_{major.value}{minor.value})")
    return [Check("gpu", "ok", ", ".join(names))]


def _cache() -> list[Check]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as reason:
        fix = "set TILECC_CACHE_DIR to a directory that can be written"
        return [Check("cache", "fail", f"{folder}: {reason.strerror}", fix)]
    free = shutil.disk_usage(folder).free
    text = f"{folder} ({free / (1 << 30):.1f} GiB free)"
    if free < FREE_BYTES:
        return [Check("cache", "warn", text, "free some space, or set TILECC_CACHE_DIR")]
    return [Check("cache", "ok", text)]


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


PROBES: tuple[Callable[[], list[Check]], ...] = (_python, _libraries, _gxx, _nvcc, _gpu, _cache)
