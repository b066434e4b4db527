"""Block FP8 and MXFP4: every code and every scale against the formula or against ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tilecc.weights import formats
from tilecc.weights.spec import fp8_scale_shape


def test_round_bf16_equals_integer_rounding_of_every_bf16_neighbourhood() -> None:
    """All 2^16 upper halves with low halves around the tie, against round-half-even done in integers."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        bits = high | np.uint32(low)
        x = bits.view(np.float32)
        wanted = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        finite = np.isfinite(x)
        got = formats.round_bf16(x[finite]).view(np.uint32)
        assert (got == wanted[finite].astype(np.uint32)).all()


@pytest.mark.parametrize("byte", range(256))
def test_every_fp8_code(byte: int) -> None:
    """E4M3FN by its definition: bias 7, no infinities, 0x7f and 0xff are NaN."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        wanted = float("nan")
    elif exponent == 0:
        wanted = sign * mantissa * 2.0**-9
    else:
        wanted = sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    codes = np.full((1, 1), byte, np.uint8).view(ml_dtypes.float8_e4m3fn)
    got = formats.fp8_block_dequantize(codes, np.full((1, 1), 3.0, np.float32))[0, 0]
    assert got == np.float32(3 * wanted) or (np.isnan(got) and np.isnan(wanted))


@pytest.mark.parametrize(
    ("rows", "cols", "chunks"), [(1, 1, 1), (128, 128, 1), (300, 200, 1), (704, 256, 4), (6, 130, 3)]
)
def test_fp8_block_layout_against_element_loops(rows: int, cols: int, chunks: int) -> None:
    """The scale row of row r restarts at every chunk; dequantised values follow the formula element by
    element."""
    random = np.random.default_rng(rows)
    w = random.standard_normal((rows, cols), dtype=np.float32) * 10.0 ** random.integers(-3, 3, (rows, 1))
    codes, scale = formats.fp8_block_quantize(w.astype(np.float32), chunks)
    per = rows // chunks
    assert scale.shape == (chunks * -(-per // 128), -(-cols // 128)) == fp8_scale_shape(rows, cols, chunks)
    back = formats.fp8_block_dequantize(codes, scale, chunks)
    for r in {0, min(1, rows - 1), per - 1, min(per, rows - 1), rows // 2, rows - 1}:
        scale_row = (r // per) * -(-per // 128) + (r % per) // 128
        first, end = r - (r % per) % 128, (r // per + 1) * per  # a block ends with its chunk
        for c in {0, cols // 2, cols - 1}:
            block = w[first : min(first + 128, end), c // 128 * 128 :][:, :128]
            assert scale[scale_row, c // 128] == np.float32(np.abs(block).max()) / np.float32(448)
            assert back[r, c] == np.float32(codes[r, c]) * scale[scale_row, c // 128]
    # Nearest E4M3: half an ulp of 3 mantissa bits, or half the smallest step near zero.
    full = np.repeat(scale[formats.fp8_scale_rows(rows, chunks)], 128, 1)[:, :cols]
    assert (np.abs(back - w) <= np.maximum(np.abs(w) * 2.0**-4, full * 2.0**-10) * 1.0001).all()


def test_fp8_rejects_a_scale_grid_that_does_not_restart() -> None:
    """704 rows in 4 chunks of 176 need 8 scale rows; 6 (a grid over all rows) is the classical mistake."""
    codes, _ = formats.fp8_block_quantize(np.ones((704, 128), np.float32), 4)
    with pytest.raises(ValueError, match=r"expected \(8, 1\)"):
        formats.fp8_block_dequantize(codes, np.ones((6, 1), np.float32), 4)


def test_fp8_zero_block_and_requantisation() -> None:
    """A block of zeros has scale 1; quantising dequantised values changes nothing."""
    w = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
    w[:128, :128] = 0
    codes, scale = formats.fp8_block_quantize(w)
    assert scale[0, 0] == 1 and not codes[:128, :128].astype(np.float32).any()
    again = formats.fp8_block_quantize(formats.fp8_block_dequantize(codes, scale))[0]
    assert (again.view(np.uint8) == codes.view(np.uint8)).all()


def test_e2m1_rounding_equals_ml_dtypes() -> None:
    """A grid of 1/64 steps (holds every tie), its float32 neighbours, and random values, up to 6 (beyond:
    saturation)."""
    grid = np.arange(-6 * 64, 6 * 64 + 1, dtype=np.float32) / 64
    random = np.random.default_rng(1).uniform(-6, 6, 100_000).astype(np.float32)
    x = np.concatenate([grid, np.nextafter(grid, np.float32(9)), np.nextafter(grid, np.float32(-9)), random])
    x = x[np.abs(x) <= 6]
    codes = formats.e2m1_round(x)
    assert (formats.MXFP4_VALUES[codes] == x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)).all()
    assert (np.signbit(formats.MXFP4_VALUES[codes]) == np.signbit(x)).all()
    assert formats.MXFP4_VALUES[formats.e2m1_round(np.array([7.9, -100], np.float32))].tolist() == [6, -6]


def test_every_mxfp4_code_at_every_scale() -> None:
    """All 16 codes in both nibbles x all legal scale bytes, against the formula in exact arithmetic."""
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    code = np.arange(32) % 16
    packed = formats.mxfp4_pack(code.astype(np.uint8))
    assert packed[:3].tolist() == [0x10, 0x32, 0x54]  # low nibble is the even column
    for byte in range(formats.MXFP4_MAX_SCALE + 1):
        got = formats.mxfp4_dequantize(packed[None], np.array([[byte]], np.uint8))[0]
        wanted = [(-1 if c & 8 else 1) * magnitudes[c & 7] * 2.0 ** (byte - 127) for c in code]
        assert got.astype(np.float64).tolist() == wanted
    assert np.isnan(formats.e8m0_value(np.array([255], np.uint8)))[0]


def test_e8m0_equals_ml_dtypes() -> None:
    """Every byte below the NaN."""
    bytes_ = np.arange(255, dtype=np.uint8)
    assert (formats.e8m0_value(bytes_) == bytes_.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)).all()


def test_pack_and_unpack_every_byte() -> None:
    """unpack then pack is the identity."""
    every = np.arange(256, dtype=np.uint8)
    assert (formats.mxfp4_pack(formats.mxfp4_unpack(every)) == every).all()


def test_mxfp4_quantise_is_nearest_on_the_chosen_grid() -> None:
    """The exponent is the smallest with amax <= 7 * 2^e, and each value goes to the nearest of the 15 grid
    points."""
    random = np.random.default_rng(2)
    w = (random.standard_normal((64, 128)) * 10.0 ** random.uniform(-30, 30, (64, 1))).astype(np.float32)
    w[3, 32:64] = 0
    packed, scale = formats.mxfp4_quantize(w)
    assert packed.shape == (64, 64) and scale.shape == (64, 4) and scale[3, 1] == 127
    back = formats.mxfp4_dequantize(packed, scale).astype(np.float64)
    unit = np.repeat(2.0 ** (scale.astype(np.float64) - 127), 32, axis=1)
    amax = np.abs(w).reshape(64, 4, 32).max(-1).astype(np.float64)
    live = amax > 0
    step = 2.0 ** (scale.astype(np.float64) - 127)
    assert (amax <= 7 * step)[live].all() and (amax > 7 * step / 2)[live].all()
    grid = np.array(sorted({*formats.MXFP4_VALUES.tolist()}))
    nearest = np.abs((w / unit)[..., None] - grid).min(-1)
    assert (np.abs(back - w) == nearest * unit).all()
    again, scale_again = formats.mxfp4_quantize(back.astype(np.float32))
    assert (formats.mxfp4_dequantize(again, scale_again) == back).all()


def test_mxfp4_extreme_magnitudes_stay_legal() -> None:
    """Subnormal and largest float32 inputs give legal scale bytes and finite values."""
    w = np.zeros((2, 32), np.float32)
    w[0, 0], w[1, 0] = 1e-45, np.finfo(np.float32).max
    packed, scale = formats.mxfp4_quantize(w)
    assert scale.max() <= formats.MXFP4_MAX_SCALE
    assert np.isfinite(formats.mxfp4_dequantize(packed, scale)).all()


def test_mxfp4_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        formats.mxfp4_quantize(np.ones((2, 48), np.float32))


def test_quantisation_in_the_training_loop_is_the_stored_one() -> None:
    """examples/train_tiny quantises in torch; every value must equal what the checkpoint will hold."""
    torch = pytest.importorskip("torch")
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train_tiny"))
    try:
        import fake_quant
    finally:
        sys.path.pop(0)
    random = np.random.default_rng(3)
    w = (random.standard_normal((5, 70, 96)) * 10.0 ** random.integers(-4, 4, (5, 70, 1))).astype(np.float32)
    w[0, 0, :32] = 0
    ours = formats.mxfp4_dequantize(*formats.mxfp4_quantize(w))
    assert (fake_quant.mxfp4(torch.from_numpy(w)).numpy() == ours).all()
    for rows, cols, chunks in ((704, 256, 4), (300, 200, 1)):
        w = random.standard_normal((rows, cols), dtype=np.float32)
        ours = formats.fp8_block_dequantize(*formats.fp8_block_quantize(w, chunks), chunks)
        assert (fake_quant.fp8_block(torch.from_numpy(w), chunks).numpy() == ours).all()
