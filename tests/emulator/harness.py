"""Shared parts of the emulator tests: building kernels, number formats, fragment orders. numpy only."""

from __future__ import annotations

import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilecc.build.emulator import DEVICE_HEADERS, build_emulator_kernel
from tilecc.runtime.devices.emu_lib import (
    INITIALISED,
    LAND_AT_ONCE,
    LAND_LAST,
    LAND_RANDOM,
    PCT,
    RANDOM,
    READ_ONLY,
    ROUND_ROBIN,
    UNINITIALISED,
    Buffer,
    EmulatorLibrary,
    Finding,
    LaunchOptions,
    LaunchResult,
    aligned,
)

KERNELS = Path(__file__).parent / "kernels"
BF16 = ml_dtypes.bfloat16

# (schedule, landing, preemption percent): friendly, then three adversaries.
CONFIGS = [
    (ROUND_ROBIN, LAND_AT_ONCE, 0),
    (RANDOM, LAND_LAST, 10),
    (PCT, LAND_RANDOM, 10),
    (PCT, LAND_LAST, 0),
]


@cache
def library(name: str) -> EmulatorLibrary:
    """Build ``kernels/<name>.cu`` (or take it from the cache) and load it."""
    return EmulatorLibrary(build_emulator_kernel(KERNELS / f"{name}.cu", DEVICE_HEADERS, name))


def build_text(text: str, name: str, directory: Path) -> EmulatorLibrary:
    """Build kernel text, for instance a mutated copy of a file."""
    source = directory / f"{name}.cu"
    source.write_text(text)
    return EmulatorLibrary(build_emulator_kernel(source, DEVICE_HEADERS, name))


def mutated(name: str, *edits: tuple[str, str]) -> str:
    """Return the text of ``kernels/<name>.cu`` with each (old, new) replaced exactly once."""
    text = (KERNELS / f"{name}.cu").read_text()
    for old, new in edits:
        assert text.count(old) == 1, (text.count(old), old)
        text = text.replace(old, new)
    return text


def places(finding: Finding) -> list[tuple[str, int]]:
    """(file, line) of every place that a finding names, also in the middle of a sentence."""
    text = "\n".join([finding.place, finding.message, *finding.notes])
    return [(file, int(line)) for file, line in re.findall(r"([^\s(]+\.(?:cu|cuh|h)):(\d+):\d+", text)]


_LANE = np.arange(32)
_G, _T = _LANE >> 2, _LANE & 3
A_ROWS = np.stack([_G, _G, _G + 8, _G + 8] * 2, 1)
A_COLS = np.stack([2 * _T, 2 * _T + 1] * 2 + [2 * _T + 8, 2 * _T + 9] * 2, 1)
B_K = np.stack([2 * _T, 2 * _T + 1, 2 * _T + 8, 2 * _T + 9], 1)
B_N = np.stack([_G] * 4, 1)


def a_fragments(blocks: NDArray[Any]) -> NDArray[Any]:
    """[..., 16, 16] -> [..., 32 lanes, 8] in the element order of mma.m16n8k16's A."""
    return blocks[..., A_ROWS, A_COLS]


def b_fragments(x: NDArray[Any]) -> NDArray[Any]:
    """[n 8, K] -> [K/16, 32 lanes, 4] in the element order of mma.m16n8k16's B."""
    steps = x.reshape(8, -1, 16).transpose(1, 2, 0)
    return steps[:, B_K, B_N]


def from_b_fragments(fragments: NDArray[Any]) -> NDArray[Any]:
    """The inverse of :func:`b_fragments`."""
    steps = np.zeros((len(fragments), 16, 8), fragments.dtype)
    steps[:, B_K, B_N] = fragments
    return steps.transpose(2, 0, 1).reshape(8, -1)


class Chain:
    """The problem of ``kernels/chain.cu``: ``n_ops`` square GEMVs of size ``dim`` on 8 columns."""

    SMEM = 1024 + 3 * 4 * 2048 + 32 * 256 + 1024
    THREADS = 7 * 32

    def __init__(self, dim: int = 128, n_ops: int = 3, grid: int = 2, activate: bool = True, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.dim, self.n_ops, self.grid, self.activate = dim, n_ops, grid, activate
        self.tiles, self.k16 = dim // 64, dim // 16
        scale = 2.0 / np.sqrt(dim)
        self.weights = (rng.standard_normal((n_ops, dim, dim)) * scale).astype(BF16)
        self.x = rng.standard_normal((8, dim)).astype(BF16)
        blocks = self.weights.reshape(n_ops, self.tiles, 4, 16, self.k16, 16).transpose(0, 1, 4, 2, 3, 5)
        image = np.ascontiguousarray(a_fragments(blocks)).view(np.uint8).reshape(-1)
        self.image = aligned(image.size)
        self.image[:] = image

    def reference(self) -> NDArray[np.float64]:
        """float64 products, activations rounded to bf16 after each op as the kernel does. [8, dim]."""
        h = self.x.astype(np.float64)
        for w in self.weights.astype(np.float64):
            y = h @ w.T
            if self.activate:
                y = y / (1.0 + np.exp(-y))
            h = y.astype(np.float32).astype(BF16).astype(np.float64)
        return h

    def launch(self, lib: EmulatorLibrary, **options: Any) -> tuple[LaunchResult, NDArray[Any]]:
        """Run once; returns (result, output [8, dim] as bf16)."""
        step_bytes = self.dim * 8 * 2
        acts = aligned((self.n_ops + 1) * step_bytes)
        acts[:] = 0xFF
        acts[:step_bytes] = np.ascontiguousarray(b_fragments(self.x)).view(np.uint8).reshape(-1)
        counters = aligned((self.n_ops + 1) * 128)
        status = aligned(256)
        split = [Buffer("input", acts[:step_bytes]), Buffer("acts", acts[step_bytes:], UNINITIALISED)]
        buffers = [
            Buffer("weights", self.image, READ_ONLY),
            *split,
            Buffer("counters", counters, INITIALISED),
            Buffer("status", status, INITIALISED),
        ]
        addresses = [self.image.ctypes.data, acts.ctypes.data, counters.ctypes.data, status.ctypes.data]
        params = struct.pack("4Q4I", *addresses, self.n_ops, self.tiles, self.k16, int(self.activate))
        chosen = {"grid": self.grid, "threads": self.THREADS, "smem_bytes": self.SMEM, **options}
        self.status = status.view(np.uint32)
        result = lib.launch(params, buffers, LaunchOptions(**chosen))
        out = acts[self.n_ops * step_bytes :].view(BF16).reshape(-1, 32, 4)
        return result, from_b_fragments(out)
