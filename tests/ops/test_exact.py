"""Every code of every weight format through the emitted loops, decoded exactly: equality, no tolerance.

A row of activations that is zero but at one column takes that column of the matrix out of a product, so what
the kernel made of each single weight is seen. Products of one weight and one bf16 number have at most 16
significant bits (32 with a float32 weight or scale: one rounding), so float64 says what must come out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ops.device import ON_GPU
from tests.ops.one_op import BF16, F64, Built, assert_clean, with_matrices
from tilecc.emit.single import SingleOp
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.fragments import to_activations
from tilecc.weights.synthetic import FP8

W = "layers.0.w.weight"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SCALES, CODES = 225, 16
BLOCK = 128


def e4m3() -> F64:
    """Value of each code by the definition of E4M3FN: bias 7, no infinities, 0x7f and 0xff are NaN."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    value[code & 127 == 127] = np.nan
    return np.where(code < 128, value, -value)


def one_at_a_time(built: Built, values: NDArray[Any]) -> NDArray[np.float32]:
    """f32 [rows, columns]: what each column of the matrix gives with its activation `values` alone."""
    rows, cols, step = built.package.manifest.image[-1].rows, values.size, built.package.manifest.max_rows
    kernel, out = built.emulator(detect=DETECT_ALL), np.zeros((rows, cols), np.float32)
    for first in range(0, cols, step):
        x = np.zeros((step, cols), BF16)
        x[np.arange(step), first + np.arange(step)] = values[first : first + step]
        result = kernel.run({"hidden": to_activations(x, step)})
        out[:, first : first + step] = result.partials(built.constant("Project", "tile_splits"), rows).T
        assert_clean(kernel)
    return out


def bf16_values(cols: int, seed: int, low: float = -8, high: float = 8) -> NDArray[Any]:
    """bf16 numbers of random sign and mantissa, exponents from `low` to below `high`."""
    rng = np.random.default_rng(seed)
    mantissa = rng.integers(128, 256, cols) / 128 * rng.choice([-1.0, 1.0], cols)
    return (mantissa * 2.0 ** rng.integers(low, high, cols)).astype(BF16)


def places(rows: int, cols: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of each element its number among the eight of a lane in a k16 step, and the lane and step in its row of
    one m16 tile: [rows, cols]."""
    r, c = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    number = c % 2 + 2 * (r % 16 // 8) + 4 * (c % 16 // 8)
    return number, c % 128 // 16 * 4 + c % 8 // 2


# ---------------------------------------------------------------------------------------------------- MXFP4


@pytest.fixture(scope="module", params=[8, 64], ids=["8 rows", "64 rows"])
def mxfp4(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Built, F64, NDArray[Any]]:
    """Kernel, values [912, 128] and scale bytes [912, 4]: all codes in all places of a word, with all scale
    bytes in all places of a scale word."""
    rows = -(-SCALES // 4) * 16
    _, turn = places(rows, BLOCK)
    row = np.arange(rows)[:, None]
    # Four rows of a tile have the same scales: two in each half, for codes 0 to 7 and 8 to 15.
    first = row // 16 * 4 + row % 8 // 2
    codes = ((turn + first) % 8 + 8 * (row % 2)).astype(np.uint8)
    scales = ((first + np.arange(4) * 57) % SCALES).astype(np.uint8)
    tensors = {W: codes[:, 0::2] | codes[:, 1::2] << 4, W.removesuffix(".weight") + ".weight_scale": scales}
    op = SingleOp("project", "mxfp4", rows, BLOCK, max_rows=request.param)
    built = with_matrices(tmp_path_factory.mktemp("mxfp4") / "p", op, tensors)
    full = scales.repeat(32, axis=1)
    number, _ = places(rows, BLOCK)
    group = np.arange(BLOCK) // 32 + np.zeros_like(full, int)
    seen = set(zip(number.flat, group.flat, full.flat, codes.flat, strict=True))
    assert len(seen) == 8 * 4 * SCALES * CODES
    return built, E2M1[codes] * 2.0 ** (full.astype(int) - 127), scales


def test_every_mxfp4_code_in_every_place_with_every_scale(mxfp4: tuple[Built, F64, NDArray[Any]]) -> None:
    """115,200 combinations of nibble place, scale place, scale byte and code; subnormal results included."""
    built, w, _ = mxfp4
    ones = one_at_a_time(built, np.ones(BLOCK, BF16))
    assert (ones == w).all()
    tiny = float(np.finfo(np.float32).tiny)
    assert ((np.abs(ones) < tiny) & (ones != 0)).sum() > 100  # weights of scale bytes 0 to 2
    values = bf16_values(BLOCK, seed=1)
    got, want = one_at_a_time(built, values), w * values.astype(np.float64)
    assert (got == want).all() and (want.astype(np.float32) == want).all()


@pytest.mark.parametrize("exponent", [-111, 30])
def test_activations_of_mxfp4_are_exact_over_143_binades(
    mxfp4: tuple[Built, F64, NDArray[Any]], exponent: int
) -> None:
    """From 2^-111, where a product of the codes' fields gets subnormal, to 2^32, where 2^96 overflows."""
    built, w, scales = mxfp4
    values = bf16_values(BLOCK, seed=2, low=exponent, high=exponent + 2)
    with np.errstate(over="ignore"):
        want = (w * values.astype(np.float64)).astype(np.float32)
    # Results that float32 holds exactly: all of these but the ends of its range.
    kept = (want == w * values.astype(np.float64)) & np.isfinite(want)
    assert kept.mean() > 0.5 and set(scales.repeat(32, 1)[kept & (w != 0)]) >= set(range(110, 200))
    assert (one_at_a_time(built, values)[kept] == want[kept]).all()


# ------------------------------------------------------------------------------------------------------ FP8


def fp8_matrix(rows: int, cols: int) -> NDArray[np.uint8]:
    """All codes but NaN in all eight places of a lane, in every tile and block, in another order in each."""
    _, turn = places(rows, cols)
    row, col = np.arange(rows)[:, None], np.arange(cols)[None, :]
    code = (row % 8 * 32 + turn + 37 * (row // 16) + 101 * (col // BLOCK)) % 256
    number, _ = places(rows, cols)
    assert len(set(zip(number[:16, :BLOCK].flat, code[:16, :BLOCK].flat, strict=True))) == 8 * 256
    code[code & 127 == 127] = 0
    return code.astype(np.uint8)


def fp8(out: Path, codes: NDArray[np.uint8], scales: NDArray[np.float32], max_rows: int = 8) -> Built:
    op = SingleOp("project", "fp8_block", *codes.shape, max_rows=max_rows)
    return with_matrices(out, op, {W: codes.view(FP8), W + "_scale_inv": scales})


@pytest.mark.parametrize("max_rows", [8, 64])
def test_every_fp8_code_in_every_place(tmp_path: Path, max_rows: int) -> None:
    codes = fp8_matrix(32, 2 * BLOCK)
    w = e4m3()[codes]
    assert (w.astype(BF16).astype(np.float64) == w).all()  # all of them are bf16 numbers
    built = fp8(tmp_path / "p", codes, np.ones((1, 2), np.float32), max_rows)
    assert (one_at_a_time(built, np.ones(2 * BLOCK, BF16)) == w).all()
    for low, high in ((-8, 8), (-109, -107), (30, 32)):
        values = bf16_values(2 * BLOCK, seed=3, low=low, high=high)
        assert (one_at_a_time(built, values) == w * values.astype(np.float64)).all()


def test_fp8_scales_multiply_the_float32_sum(tmp_path: Path) -> None:
    """One product and its scale are rounded once, to float32; a sum of products is exact before its scale."""
    rng, rows, cols = np.random.default_rng(4), 256, 3 * BLOCK
    codes = fp8_matrix(rows, cols)
    scales = (rng.uniform(1, 2, (2, 3)) * 2.0 ** rng.integers(-40, 40, (2, 3))).astype(np.float32)
    full = scales.astype(np.float64).repeat(128, 0).repeat(128, 1)
    values = bf16_values(cols, seed=5)
    got = one_at_a_time(fp8(tmp_path / "one", codes, scales), values)
    product = full * e4m3()[codes] * values.astype(np.float64)  # 24 + 4 + 8 bits: exact
    assert (got == product.astype(np.float32)).all()
    # Scales that met the codes in bf16 would give something else nearly everywhere.
    early = (full * e4m3()[codes]).astype(BF16).astype(np.float64) * values.astype(np.float64)
    assert (got != early.astype(np.float32)).mean() > 0.9

    # Integers up to 16 * 8 * 128: every sum of a block is exact, what follows is three fused multiply-adds.
    scales = (rng.uniform(1, 2, (2, 3)) * 2.0 ** rng.integers(-2, 3, (2, 3))).astype(np.float32)
    small = rng.integers(-16, 17, (rows, cols)).astype(np.float32).astype(FP8)
    x = rng.integers(-8, 9, (8, cols)).astype(BF16)
    built = fp8(tmp_path / "sum", small.view(np.uint8), scales)
    result = built.emulator(detect=DETECT_ALL).run({"hidden": to_activations(x)})
    sums = result.partials(built.constant("Project", "tile_splits"), rows).astype(np.float64)
    parts = np.stack(
        [
            x[:, b : b + BLOCK].astype(np.float64) @ small[:, b : b + BLOCK].astype(np.float64).T
            for b in range(0, cols, BLOCK)
        ]
    )
    terms = parts * scales.astype(np.float64).T[:, None, :].repeat(128, 2)
    bound = 3 * 2.0**-24 * np.abs(terms).sum(axis=0)
    assert np.abs(terms.sum(axis=0)).max() > 1e3 and (np.abs(sums - terms.sum(axis=0)) <= bound).all()


# ------------------------------------------------------------------------------------------------ BF16, F32


def test_every_bf16_weight_below_2_to_the_31(tmp_path: Path) -> None:
    """Larger ones leave float32: activations carry a factor 2^96 (op_common.cuh)."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    codes[codes & 0x7FFF >= 0x4F00] = 0
    w = codes.view(BF16).reshape(512, BLOCK)
    built = with_matrices(tmp_path / "p", SingleOp("project", "bf16", 512, BLOCK), {W: w})
    assert (one_at_a_time(built, np.ones(BLOCK, BF16)) == w.astype(np.float64)).all()


def test_sums_of_bf16_leave_float32_at_2_to_the_32(tmp_path: Path) -> None:
    """With the factor 2^96 a sum of 2^32 is the first that overflows: to infinity, not to a wrong number."""
    w = np.full((16, BLOCK), 2.0**15).astype(BF16)
    built = with_matrices(tmp_path / "p", SingleOp("project", "bf16", 16, BLOCK), {W: w})
    terms = np.array([1, 2, 3, 4, 5, 128, 0, 3])
    x = np.where(np.arange(BLOCK) < terms[:, None], 2.0**15, 0.0).astype(BF16)
    x[7] *= -1
    result = built.emulator(detect=DETECT_ALL).run({"hidden": to_activations(x)})
    got = result.partials(built.constant("Project", "tile_splits"), 16)
    want = np.where(terms < 4, terms * 2.0**30, np.inf) * np.where(np.arange(8) == 7, -1, 1)
    assert (got == want[:, None]).all()


def test_float32_weights_keep_their_24_bits(tmp_path: Path) -> None:
    """Three bf16 products of 16 bits, the smallest first: the only rounding is that of the last sum."""
    rng = np.random.default_rng(6)
    w = (rng.uniform(1, 2, (64, BLOCK)) * 2.0 ** rng.integers(-100, 20, (64, BLOCK))).astype(np.float32)
    w[:, ::2] *= -1
    w.view(np.uint32)[0] |= 0xFFFF  # all low bits set, and next to none
    w.view(np.uint32)[1] = w.view(np.uint32)[1] & 0xFFFF0000 | 1
    built = with_matrices(tmp_path / "p", SingleOp("project", "f32", 64, BLOCK), {W: w})
    assert (one_at_a_time(built, np.ones(BLOCK, BF16)) == w).all()
    values = bf16_values(BLOCK, seed=7)
    want, got = w.astype(np.float64) * values.astype(np.float64), one_at_a_time(built, values)
    if ON_GPU:  # the sum of a matrix instruction is cut, not rounded
        assert (np.abs(got - want) <= 2.0**-23 * np.abs(want)).all()
    else:
        assert (got == want.astype(np.float32)).all()
