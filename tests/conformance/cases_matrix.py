"""Cases of ``kernels/matrix.cu``: matrices between registers and shared memory, mma.sync."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conformance.case import Array, Case, Launch, Verdict, exact, raw, rng, within, words
from tests.conformance.fragments import a_elements, b_elements, c_elements, matrix_elements

PROBLEMS = 8
SMEM = 4 * 1024


def move_launch(op: int, matrices: int, transposed: bool) -> Launch:
    """ldmatrix (op < 8) or stmatrix of 1, 2 or 4 matrices."""
    data = words(op, PROBLEMS, 128)
    row, column = matrix_elements(transposed)
    if op < 8:  # a tile of 32 rows of 16 bytes -> 4 registers a lane
        tile = data.view(np.uint16).reshape(PROBLEMS, 4, 8, 8)
        want = np.broadcast_to(np.array([1, 2, 3, 4], np.uint32), (PROBLEMS, 32, 4)).copy()
        for m in range(matrices):
            pair = tile[:, m][:, row, column].astype(np.uint32)
            want[:, :, m] = pair[..., 0] | pair[..., 1] << 16
    else:
        registers = data.reshape(PROBLEMS, 32, 4)
        tile = np.broadcast_to(np.array([5, 6, 7, 8], np.uint32), (PROBLEMS, 32, 4)).copy()
        tile16 = tile.view(np.uint16).reshape(PROBLEMS, 4, 8, 8)
        for m in range(matrices):
            tile16[:, m][:, row, column] = registers[:, :, m].copy().view(np.uint16).reshape(PROBLEMS, 32, 2)
        want = tile
    return Launch(raw(data), PROBLEMS * 512, lambda out, _: exact(want, out), op, PROBLEMS, smem=SMEM)


Format = tuple[type, int]
"""(element type, elements per register)."""


def mma_inputs(op: int, fmt: Format, exact_sums: bool, steps: int) -> tuple[Array, Array, Array]:
    """A [p, 16, K], B [p, K, 8] in the format, C [p, 16, 8] float32. With ``exact_sums`` small
    integers: every
    order of additions, and every width of an adder above 14 bits, gives the same result."""
    dtype, per = fmt
    k = 8 * per * steps
    g = rng(op + (100 if exact_sums else 200))
    if exact_sums:
        a, b = g.integers(-4, 5, (PROBLEMS, 16, k)), g.integers(-4, 5, (PROBLEMS, k, 8))
        c = g.integers(-99, 100, (PROBLEMS, 16, 8))
    else:
        a, b = g.standard_normal((PROBLEMS, 16, k)), g.standard_normal((PROBLEMS, k, 8))
        c = g.standard_normal((PROBLEMS, 16, 8)) * 4
        c[::2] *= 1e-3
    return a.astype(np.float32).astype(dtype), b.astype(np.float32).astype(dtype), c.astype(np.float32)


def mma_image(a: Array, b: Array, c: Array, per: int) -> NDArray[np.uint32]:
    """[p, 32 lanes, 16 words]: a[4] b[2] b of the second step [2] c[4], 4 unused."""
    image = words(9, PROBLEMS, 32, 16)
    (ar, ak), (bk, bn), (cr, cn) = a_elements(per), b_elements(per), c_elements()

    def packed(elements: Array) -> Array:
        return np.ascontiguousarray(elements).view(np.uint32)[..., 0]

    image[:, :, 0:4] = packed(a[:, ar, ak])
    image[:, :, 4:6] = packed(b[:, bk, bn])
    if b.shape[1] > 8 * per:
        image[:, :, 6:8] = packed(b[:, bk + 8 * per, bn])
    image[:, :, 8:12] = c[:, cr, cn].view(np.uint32)
    return image


def mma_launch(op: int, fmt: Format, exact_sums: bool, bits: int, steps: int = 1) -> Launch:
    """``bits``: the adder keeps that many bits below the largest term. The bound allows each of
    the K + 1 terms
    and the result to lose one unit there."""
    per = fmt[1]
    a, b, c = mma_inputs(op, fmt, exact_sums, steps)
    if steps == 2:  # the second step's A is the first's registers in reverse order
        ar, ak = a_elements(per)
        registers = a[:, ar, ak][:, :, ::-1]
        a[:, ar, ak + 8 * per] = registers
    image = mma_image(a, b, c, per)
    a64, b64, c64 = (v.astype(np.float64) for v in (a, b, c))
    want = np.einsum("pmk,pkn->pmn", a64, b64) + c64
    largest = np.maximum(np.abs(a64[:, :, :, None] * b64[:, None]).max(axis=2), np.abs(c64))
    largest = np.maximum(largest, np.abs(want))
    allowed = 0.0 * want if exact_sums else largest * (a.shape[2] + 2 * steps) * 2.0**-bits
    rule = (
        "equal: sums of small integers"
        if exact_sums
        else f"(K + 2) terms truncated to {bits} bits below the largest"
    )
    row, column = c_elements()

    def check(out: NDArray[np.uint8], _: NDArray[np.uint8]) -> Verdict:
        got = out.view(np.float32).reshape(PROBLEMS, 32, 4)
        return within(want[:, row, column], got, allowed[:, row, column], rule)

    return Launch(raw(image), PROBLEMS * 512, check, op, PROBLEMS, smem=SMEM)


def mma_special(op: int, fmt: Format) -> Launch:
    """Rows with infinities and NaN: infinity stays, infinity minus infinity and NaN give NaN."""
    dtype, per = fmt
    a, b, c = mma_inputs(op, fmt, True, 1)
    b = np.abs(b.astype(np.float32)).astype(dtype)
    b[b.astype(np.float32) == 0] = dtype(1)
    has_infinity = dtype is not ml_dtypes.float8_e4m3fn
    a[:, 3, 5] = dtype(np.nan)
    if has_infinity:
        a[:, 6, 2] = dtype(np.inf)
        a[:, 9, 2], a[:, 9, 7] = dtype(np.inf), dtype(-np.inf)
    c[:, 12, 4] = -np.inf
    c[:, 13, 1] = np.nan
    with np.errstate(invalid="ignore"):
        want = np.einsum("pmk,pkn->pmn", a.astype(np.float64), b.astype(np.float64)) + c
    row, column = c_elements()

    def check(out: NDArray[np.uint8], _: NDArray[np.uint8]) -> Verdict:
        got = out.view(np.float32).reshape(PROBLEMS, 32, 4)
        return within(want[:, row, column], got, 0.0 * np.ones(got.shape), "equal, NaN canonical")

    return Launch(raw(mma_image(a, b, c, per)), PROBLEMS * 512, check, op, PROBLEMS, smem=SMEM)


def move(op: int, name: str, matrices: int, transposed: bool) -> Case:
    return Case(f"matrix.{name}", "matrix", (name,), lambda: move_launch(op, matrices, transposed))


def mma(op: int, name: str, dtype: type, per: int, bits: int, steps: int = 1) -> list[Case]:
    def build(exact_sums: bool) -> Callable[[], Launch]:
        return lambda: mma_launch(op, (dtype, per), exact_sums, bits, steps)

    cases = [
        Case(f"matrix.{name}_integers", "matrix", (name,), build(True)),
        Case(f"matrix.{name}_random", "matrix", (name,), build(False)),
    ]
    if steps == 1:
        cases.append(Case(f"matrix.{name}_special", "matrix", (name,), lambda: mma_special(op, (dtype, per))))
    return cases


CASES = [
    move(0, "ldmatrix_x1", 1, False),
    move(1, "ldmatrix_x2", 2, False),
    move(2, "ldmatrix_x4", 4, False),
    move(3, "ldmatrix_trans_x1", 1, True),
    move(4, "ldmatrix_trans_x2", 2, True),
    move(5, "ldmatrix_trans_x4", 4, True),
    move(8, "stmatrix_x1", 1, False),
    move(9, "stmatrix_x2", 2, False),
    move(10, "stmatrix_x4", 4, False),
    move(11, "stmatrix_trans_x1", 1, True),
    move(12, "stmatrix_trans_x2", 2, True),
    move(13, "stmatrix_trans_x4", 4, True),
    *mma(16, "mma_bf16", ml_dtypes.bfloat16, 2, 23),
    *mma(17, "mma_bf16_n", ml_dtypes.bfloat16, 2, 23, steps=2),
    *mma(18, "mma_f16", np.float16, 2, 23),
    *mma(19, "mma_e4m3", ml_dtypes.float8_e4m3fn, 4, 13),
    *mma(20, "mma_e5m2", ml_dtypes.float8_e5m2, 4, 13),
]
