"""Number formats of the official checkpoints: block FP8 and MXFP4, in numpy.

FP8 block: ``W[n, k] = e4m3(code[n, k]) * scale_inv[n div 128, k div 128]``; in the fused QKV matrix the row
blocks restart at every chunk (mimo.md 3.2, 3.3). MXFP4: ``W[n, k] = e2m1(code) * 2**(scale[n, k div 32] -
127)``, two codes per byte with the even column in the low nibble (mimo.md 3.4, OCP Microscaling Formats 1.0).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilecc.weights.spec import FP8_BLOCK, MXFP4_GROUP, fp8_scale_shape

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

FP8_MAX = 448.0
"""Largest finite E4M3 value."""

MXFP4_VALUES: F32 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Value of each E2M1 code; bit 3 is the sign."""

MXFP4_MAX_SCALE = 224
"""Largest E8M0 byte of the weight image: the kernel multiplies by 2^(byte - 97), a finite float32
(templates/include/mma_formats.cuh). It stands for 2^97, far beyond any weight."""


def round_bf16(x: NDArray[Any]) -> F32:
    """Round to bf16 (nearest, ties to even) and widen again to float32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def fp8_scale_rows(rows: int, chunks: int = 1) -> NDArray[np.int64]:
    """Scale row of every matrix row: row r of chunk c uses ``c * ceil(rows_per_chunk / 128) + r div 128``."""
    if rows % chunks:
        raise ValueError(f"{rows} rows do not split into {chunks} chunks")
    per_chunk = rows // chunks
    row = np.arange(rows, dtype=np.int64)
    return (row // per_chunk) * -(-per_chunk // FP8_BLOCK) + (row % per_chunk) // FP8_BLOCK


def fp8_block_quantize(w: F32, chunks: int = 1) -> tuple[NDArray[Any], F32]:
    """Quantise float32 [N, K] to (codes float8_e4m3fn [N, K], scale_inv float32 [row blocks, ceil(K/128)]).

    The scale of a block is amax / 448 (1 for a block of zeros); codes are rounded to nearest, ties to even.
    """
    w = np.asarray(w, np.float32)
    rows, cols = w.shape
    row_block = fp8_scale_rows(rows, chunks)
    shape = fp8_scale_shape(rows, cols, chunks)
    padded = np.zeros((rows, shape[1] * FP8_BLOCK), np.float32)
    padded[:, :cols] = np.abs(w)
    per_row = padded.reshape(rows, shape[1], FP8_BLOCK).max(axis=2)
    amax = np.zeros(shape, np.float32)
    np.maximum.at(amax, row_block, per_row)
    scale = np.where(amax > 0, amax / np.float32(FP8_MAX), np.float32(1)).astype(np.float32)
    # A block of subnormals can underflow its scale to zero; the smallest normal keeps codes finite.
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    full = np.repeat(scale[row_block], FP8_BLOCK, axis=1)[:, :cols]
    codes = np.clip(w / full, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return codes, scale


def fp8_block_dequantize(codes: NDArray[Any], scale: F32, chunks: int = 1) -> F32:
    """Inverse of :func:`fp8_block_quantize`: float32 [N, K], one float32 rounding per element."""
    rows, cols = codes.shape
    expected = fp8_scale_shape(rows, cols, chunks)
    if tuple(scale.shape) != expected:
        raise ValueError(f"FP8 scales of shape {tuple(scale.shape)}, expected {expected}")
    full = np.repeat(np.asarray(scale, np.float32)[fp8_scale_rows(rows, chunks)], FP8_BLOCK, axis=1)
    out: F32 = codes.astype(np.float32) * full[:, :cols]
    return out


def e2m1_round(x: F32) -> U8:
    """Nearest E2M1 code of each value, ties to the even code, saturating at 6. NaN is not allowed."""
    a = np.abs(x)
    code = (a > 0.25).astype(np.uint8)
    # Midpoints between neighbours; a tie goes to the code whose mantissa bit is 0, hence > and >= alternate.
    for above, tie_up in ((0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False)):
        code += (a >= above) if tie_up else (a > above)
    code |= np.left_shift(np.signbit(x).astype(np.uint8), 3, dtype=np.uint8)
    return code


def mxfp4_scale_bytes(w: F32) -> U8:
    """E8M0 byte of each group of 32 columns of float32 [..., K].

    The exponent is the smallest e with amax <= 7 * 2**e: 7 is the midpoint above the largest code 6, so no
    value is clipped by more than rounding to the grid would move it. A group of zeros gets 127 (scale 1).
    """
    groups = np.abs(w).reshape(*w.shape[:-1], w.shape[-1] // MXFP4_GROUP, MXFP4_GROUP)
    amax = groups.max(axis=-1)
    mantissa, exponent = np.frexp(amax)  # amax = mantissa * 2**exponent, mantissa in [0.5, 1)
    e = exponent.astype(np.int32) - np.where(mantissa > 0.875, 2, 3)
    return np.where(amax > 0, np.clip(e + 127, 0, MXFP4_MAX_SCALE), 127).astype(np.uint8)


def e8m0_value(scale: U8) -> F32:
    """2**(byte - 127) as float32; byte 255 is NaN. Byte 0 is a float32 subnormal and exact."""
    exponent = np.minimum(scale.astype(np.int32), 254) - 127
    value: F32 = np.ldexp(np.float32(1), exponent).astype(np.float32)
    value[scale == 255] = np.nan
    return value


def mxfp4_quantize(w: F32) -> tuple[U8, U8]:
    """Quantise float32 [..., K] to (packed codes u8 [..., K/2], E8M0 bytes u8 [..., K/32]). K % 32 == 0."""
    w = np.asarray(w, np.float32)
    if w.shape[-1] % MXFP4_GROUP:
        raise ValueError(f"MXFP4 needs a multiple of {MXFP4_GROUP} columns, got {w.shape[-1]}")
    scale = mxfp4_scale_bytes(w)
    # float64 quotient: dividing by a power of two stays exact even for a subnormal scale.
    full = np.repeat(np.ldexp(1.0, scale.astype(np.int32) - 127), MXFP4_GROUP, axis=-1)
    return mxfp4_pack(e2m1_round(w.astype(np.float64) / full)), scale


def mxfp4_dequantize(packed: U8, scale: U8) -> F32:
    """Inverse of :func:`mxfp4_quantize`: float32 [..., K], exact."""
    values = MXFP4_VALUES[mxfp4_unpack(packed)]
    out: F32 = values * np.repeat(e8m0_value(scale), MXFP4_GROUP, axis=-1)
    return out


def mxfp4_pack(codes: U8) -> U8:
    """Pack 4-bit codes [..., K] into bytes [..., K/2]; the low nibble is the even column."""
    packed: U8 = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def mxfp4_unpack(packed: U8) -> U8:
    """Codes [..., K] of packed bytes [..., K/2]."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes
