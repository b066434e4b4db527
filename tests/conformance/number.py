"""Exact rounding to small formats with integers, the reference of the two-lane arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conformance.case import Array


@dataclass(frozen=True)
class Format:
    """16-bit format: ``mantissa`` bits behind the point, smallest normal 2^``lowest``, largest exponent."""

    dtype: np.dtype
    mantissa: int
    lowest: int
    highest: int


F16 = Format(np.dtype(np.float16), 10, -14, 15)
BF16 = Format(np.dtype(ml_dtypes.bfloat16), 7, -126, 127)


def round_exact(value: Fraction, fmt: Format) -> float:
    """Nearest even, with subnormals and overflow to infinity; the result is exact in float64."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, fmt.lowest) - fmt.mantissa)
    rounded = float(round(magnitude / unit) * unit)  # Fraction rounds ties to even
    if rounded >= 2.0 ** (fmt.highest + 1):
        rounded = float("inf")
    return rounded if value > 0 else -rounded


def fma16(a: Array, b: Array, c: Array, fmt: Format) -> NDArray[np.uint16]:
    """a * b + c of 16-bit patterns with one rounding; NaN is 0x7fff."""
    out = np.empty(a.shape, np.uint16)
    with np.errstate(invalid="ignore", over="ignore"):
        fa, fb, fc = (
            np.ascontiguousarray(v, np.uint16).view(fmt.dtype).astype(np.float64) for v in (a, b, c)
        )
        rough = fa * fb + fc
    for i in range(a.size):
        if not np.isfinite(rough[i]):
            value = rough[i]
        else:
            exact = Fraction(fa[i]) * Fraction(fb[i]) + Fraction(fc[i])
            # A zero takes its sign from IEEE arithmetic, which float64 follows.
            value = round_exact(exact, fmt) if exact else rough[i]
            if exact and value == 0.0:
                value = -0.0 if exact < 0 else 0.0
        out[i] = 0x7FFF if np.isnan(value) else np.array([value]).astype(fmt.dtype).view(np.uint16)[0]
    return out


def halves(w: Array) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """(low, high) 16-bit patterns of words."""
    return (w & 0xFFFF).astype(np.uint16), (w >> 16).astype(np.uint16)


def joined(lo: Array, hi: Array) -> NDArray[np.uint32]:
    return lo.astype(np.uint32) | hi.astype(np.uint32) << 16


def to_bits(x: Array, dtype: np.dtype | type, nan: int) -> NDArray[np.unsignedinteger]:
    """float32 -> bits of a narrower format, nearest even, NaN as given."""
    with np.errstate(invalid="ignore", over="ignore"):
        narrow = np.asarray(x, np.float32).astype(dtype)
    bits = narrow.view(np.dtype(f"u{narrow.dtype.itemsize}"))
    return np.where(np.isnan(np.asarray(x, np.float32)), np.array(nan, bits.dtype), bits)


def to_fp8(x: Array, dtype: type) -> NDArray[np.uint8]:
    """float32 -> fp8 codes, saturating to the largest finite; NaN is 0x7f."""
    x = np.asarray(x, np.float32)
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    return to_bits(np.clip(x, -largest, largest), dtype, 0x7F).astype(np.uint8)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of the e2m1 codes."""
