"""A case: one launch of a conformance kernel, and what its output must be.

Inputs come from numpy generators with fixed seeds; the expected result is computed here in numpy, never by
the emulator. ``Verdict.rule`` says what was asked: equality, or a bound with its reason.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Check = Callable[[NDArray[np.uint8], NDArray[np.uint8]], "Verdict"]
"""(out, work) after the launch, as bytes -> verdict."""

THREADS = {
    "math": 256,
    "matrix": 128,
    "memory": 32,
    "sync": 256,
    "copy": 128,
    "tma": 32,
    "cluster": 64,
    "wgmma": 128,
}
"""Threads per CTA of each ``kernels/<name>.cu``."""

PARAMS_BYTES = 2 * 128 + 4 * 8 + 8 * 4
"""``struct ConformanceParams``, padded to the alignment of a tensor map."""


@dataclass(frozen=True)
class Verdict:
    """``figures`` are measurements worth keeping, for instance the largest error in ulp."""

    ok: bool
    rule: str
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)


ELEMENT_BYTES = {"u8": 1, "u16": 2, "u32": 4, "f16": 2, "bf16": 2, "f32": 4}
"""In the order of the constants of ``tilecc_tensor.h``."""


class TensorSpec(ctypes.Structure):
    """``struct tilecc_tensor``."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("dims", ctypes.c_uint64 * 3),
        ("strides", ctypes.c_uint64 * 2),
        ("box", ctypes.c_uint32 * 3),
        ("rank", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("swizzle", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class TensorMap:
    """A tensor map over ``buffer`` ("in", "out" or "work"): sizes innermost first, strides in bytes of all
    dimensions but the innermost, element type by its name in ELEMENT_BYTES."""

    buffer: str
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    offset: int = 0
    """Bytes from the start of the buffer."""

    def spec(self, address: int) -> TensorSpec:
        """For the encoders; ``address`` is that of the buffer."""
        spec = TensorSpec(address=address + self.offset, rank=len(self.dims), swizzle=self.swizzle)
        spec.type = list(ELEMENT_BYTES).index(self.dtype)
        for d, (size, box) in enumerate(zip(self.dims, self.box, strict=True)):
            spec.dims[d], spec.box[d] = size, box
        for d, stride in enumerate(self.strides):
            spec.strides[d] = stride
        return spec


@dataclass(frozen=True)
class Launch:
    """``inp`` is read-only, ``out`` starts as 0xff and is written everywhere, ``work`` starts as given."""

    inp: Array
    out_bytes: int
    check: Check
    op: int = 0
    n: int = 0
    args: tuple[int, ...] = ()
    work: Array | None = None
    grid: int = 1
    cluster: int = 1
    smem: int = 0
    maps: tuple[TensorMap, ...] = ()
    gpu_grid: int = 0
    """Another grid on the GPU, where the answer does not depend on it (0: the same)."""


@dataclass(frozen=True)
class Case:
    """``primitives``: names of namespace tk that this case judges. ``make`` builds inputs on demand.
    ``arches``: the architectures that have the instruction."""

    name: str
    kernel: str
    primitives: tuple[str, ...]
    make: Callable[[], Launch]
    arches: tuple[str, ...] = ("90a", "100a")


def pack_params(launch: Launch, addresses: dict[str, int], maps: list[bytes]) -> bytes:
    """``addresses``: of in, out, work and status."""
    encoded = b"".join(maps).ljust(256, b"\0")
    pointers = struct.pack("<4Q", *(addresses[name] for name in ("in", "out", "work", "status")))
    args = (*launch.args, *([0] * (6 - len(launch.args))))
    return encoded + pointers + struct.pack("<2I6I", launch.op, launch.n, *args)


# ---- inputs ---------------------------------------


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([20251125, seed])


def words(seed: int, *shape: int) -> NDArray[np.uint32]:
    """Random bit patterns."""
    return rng(seed).integers(0, 1 << 32, shape, dtype=np.uint32)


def raw(a: Array) -> NDArray[np.uint8]:
    """The bytes of an array."""
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)


# ---- checks ---------------------------------------


def exact(want: Array, got: Array, rule: str = "bit for bit") -> Verdict:
    """Equality of words; both are viewed as unsigned integers of the type of ``want``."""
    unsigned = np.dtype(f"u{want.dtype.itemsize}")
    w, g = np.ascontiguousarray(want).view(unsigned).reshape(-1), np.ascontiguousarray(got).reshape(-1)
    g = g.view(unsigned).reshape(-1)
    if w.shape != g.shape:
        return Verdict(False, rule, f"{g.size} words, {w.size} expected")
    bad = np.flatnonzero(w != g)
    if not bad.size:
        return Verdict(True, rule, f"{w.size} words")
    i = int(bad[0])
    return Verdict(
        False, rule, f"{bad.size} of {w.size} words differ, first [{i}]: {g[i]:#x}, expected {w[i]:#x}"
    )


def both(*verdicts: Verdict) -> Verdict:
    """All must hold."""
    figures = {k: v for verdict in verdicts for k, v in verdict.figures.items()}
    rules = list(dict.fromkeys(v.rule for v in verdicts))
    bad = [v.detail for v in verdicts if not v.ok]
    detail = "; ".join(bad) if bad else "; ".join(v.detail for v in verdicts)
    return Verdict(not bad, "; ".join(rules), detail, figures)


def ulp_of(w: Array) -> NDArray[np.float64]:
    """Unit in the last place of float32 at float64 values; of the largest float32 beyond it."""
    magnitude = np.where(np.isfinite(w), np.minimum(np.abs(w), 3e38), 1.0)
    return np.spacing(magnitude.astype(np.float32)).astype(np.float64)


def within(want: Array, got: Array, allowed: Array, rule: str, name: str = "") -> Verdict:
    """|got - want| <= allowed, in float64; NaN must be the canonical 0x7fffffff; infinities must agree."""
    bits = np.ascontiguousarray(got, np.float32).view(np.uint32).reshape(-1)
    g = np.asarray(got, np.float64).reshape(-1)
    w, a = (
        np.asarray(want, np.float64).reshape(-1),
        np.broadcast_to(np.asarray(allowed, np.float64), np.shape(want)),
    )
    a = a.reshape(-1)
    nan = np.isnan(w)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(g - w)
        fine = np.where(nan, bits == 0x7FFFFFFF, (error <= a) | (g == w))
        ulps = np.where(nan | np.isinf(w) | np.isinf(g), 0, error / ulp_of(w))
    worst = float(np.max(np.nan_to_num(ulps), initial=0.0))
    prefix = f"{name}_" if name else ""
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.where(nan, np.float32(np.nan), w.astype(np.float32))
    differ = int(np.count_nonzero((bits != rounded.view(np.uint32)) & ~nan))
    figures = {f"{prefix}max_ulp": round(worst, 3), f"{prefix}not_nearest": differ}
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where((a > 0) & np.isfinite(error), error / a, 0.0)
    if np.any(a > 0):
        figures[f"{prefix}share_of_bound"] = round(float(share.max(initial=0.0)), 4)
    bad = np.flatnonzero(~fine)
    if bad.size:
        i = int(bad[0])
        text = f"{name} {bad.size} of {w.size} outside, first [{i}]: {g[i]!r} ({bits[i]:#x}), "
        text += f"expected {w[i]!r} +- {a[i]:.3g}"
        return Verdict(False, rule, text.strip(), figures)
    return Verdict(
        True, rule, f"{name} {w.size} values, max {worst:.2f} ulp, {differ} not nearest".strip(), figures
    )
