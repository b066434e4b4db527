"""Every lane primitive and memory access against an independent numpy (float64) result."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.harness import (
    BF16,
    CONFIGS,
    READ_ONLY,
    UNINITIALISED,
    Buffer,
    LaunchOptions,
    aligned,
    library,
)

LANE = np.arange(32)


def run_lanes(
    op: int, arg: int, words: NDArray[np.uint32], config: tuple[int, int, int] = CONFIGS[1]
) -> NDArray[np.uint32]:
    """words [32, up to 4] u32 -> [32, 2] u32."""
    data = aligned(512).view(np.uint32).reshape(32, 4)
    data[:, : words.shape[1]] = words
    out = aligned(256)
    out[:] = 0xFF
    params = struct.pack("2Q2I", data.ctypes.data, out.ctypes.data, op, arg)
    schedule, landing, preempt = config
    options = LaunchOptions(1, 32, 0, schedule=schedule, landing=landing, preempt=preempt, seed=op)
    result = library("lanes").launch(
        params, [Buffer("in", data, READ_ONLY), Buffer("out", out, UNINITIALISED)], options
    )
    assert result.ok, result.report
    return out.view(np.uint32).reshape(32, 2).copy()


def random_words(seed: int, columns: int = 4) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, (32, columns), dtype=np.uint32)


def floats(seed: int, low: float, high: float) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(low, high, (32, 2)).astype(np.float32)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("arg", [1, 5, 16, 31])
def test_shuffles(arg: int, config: tuple[int, int, int]) -> None:
    w = random_words(arg)
    # Payloads go through a float register, so stay away from NaN patterns.
    w[:, 0] &= 0x3FFFFFFF
    xor = run_lanes(0, arg, w, config)
    assert (xor == w[LANE ^ arg, :2]).all()
    idx = run_lanes(1, arg, w, config)
    assert (idx[:, 0] == w[w[:, 1] & 31, 0]).all()
    assert (idx[:, 1] == w[arg & 31, 0]).all()
    up = run_lanes(2, arg, w, config)
    assert (up == np.where(LANE >= arg, w[LANE - arg, 0], w[LANE, 0])[:, None]).all()
    down = run_lanes(3, arg, w, config)
    assert (down == np.where(LANE + arg < 32, w[(LANE + arg) % 32, 0], w[LANE, 0])[:, None]).all()
    signed = run_lanes(15, arg, w, config)
    assert (signed[:, 0] == w[LANE ^ arg, 0]).all()
    idx_up = run_lanes(16, arg, w, config)
    assert (idx_up[:, 0] == w[arg & 31, 0]).all()
    assert (idx_up[:, 1] == np.where(LANE >= arg, w[LANE - arg, 1], w[LANE, 1])).all()
    last = run_lanes(17, arg, w, config)
    assert (last[:, 0] == down[:, 0]).all() and (last[:, 1] == (LANE == 0)).all()
    body = run_lanes(13, 0, w, config)
    assert (body[:, 0] == w[LANE ^ 1, 0]).all() and (body[:, 1] == w[LANE ^ 16, 1]).all()


def test_ballot_and_popc() -> None:
    w = random_words(3)
    got = run_lanes(4, 0, w)
    assert (got[:, 0] == int((((w[:, 0] & 1).astype(np.uint64)) << LANE.astype(np.uint64)).sum())).all()
    assert (got[:, 1] == [int(v).bit_count() for v in w[:, 1]]).all()


def test_prmt_selects_bytes_and_replicates_signs() -> None:
    w = random_words(4)
    w[:4, 2] = [0x3210, 0x7654, 0xFEDC, 0x0426]
    data = w[:, :2].copy().view(np.uint8)  # bytes 0-3 of a, 4-7 of b
    want = np.zeros((32, 4), np.uint8)
    for i in range(4):
        nibble = (w[:, 2] >> (4 * i)) & 15
        byte = data[LANE, nibble & 7]
        want[:, i] = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte)
    assert (run_lanes(5, 0, w)[:, 0] == want.view(np.uint32)[:, 0]).all()


def bf16_bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return x.astype(BF16).view(np.uint16).astype(np.uint32)


def pairs(low: NDArray[np.uint32], high: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (low | high << 16).astype(np.uint32)


def test_bf16_conversion_rounds_to_nearest_even() -> None:
    f = floats(5, -3e3, 3e3)
    f[:6, 0] = [1.00390625, 1.01171875, 3.3e38, -3.4e38, np.inf, 1e-40]  # ties, overflow, infinity, subnormal
    got = run_lanes(6, 0, f.view(np.uint32))
    assert (got[:, 0] == pairs(bf16_bits(f[:, 0]), bf16_bits(f[:, 1]))).all()
    assert (got[:, 1] == bf16_bits(f[:, 0])).all()


def test_nan_becomes_canonical() -> None:
    w = np.full((32, 2), 0xFFC12345, np.uint32)
    assert (run_lanes(6, 0, w) == [0x7FFF7FFF, 0x7FFF]).all()
    assert (run_lanes(11, 0, w) == 0x7FFFFFFF).all()
    assert (run_lanes(9, 0, w) == 0x7FFFFFFF).all()


def halves(w: NDArray[np.uint32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = (w & 0xFFFF).astype(np.uint16), (w >> 16).astype(np.uint16)
    return low.view(BF16).astype(np.float64), high.view(BF16).astype(np.float64)


def rounded(x: NDArray[np.float64]) -> NDArray[np.uint32]:
    """float64 -> bf16 bits with one rounding (float64 -> bf16 directly, by scaling to integers)."""
    mantissa, exponent = np.frexp(x)
    scaled = np.rint(mantissa * 256.0)  # ties to even; 8 significant bits
    return (
        np.ldexp(scaled / 256.0, exponent).astype(np.float32).astype(BF16).view(np.uint16).astype(np.uint32)
    )


def test_bf16_arithmetic_rounds_once() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        f = rng.uniform(-4, 4, (32, 6)).astype(BF16).view(np.uint16).astype(np.uint32)
        w = f[:, 0::2] | f[:, 1::2] << 16
        (al, ah), (bl, bh), (cl, ch) = (halves(w[:, i]) for i in range(3))
        got = run_lanes(7, 0, w)
        assert (got[:, 0] == pairs(rounded(al * bl), rounded(ah * bh))).all()
        assert (got[:, 1] == pairs(rounded(al + bl), rounded(ah + bh))).all()
        fma = run_lanes(8, 0, w)
        assert (fma[:, 0] == pairs(rounded(al * bl + cl), rounded(ah * bh + ch))).all()
        assert (fma[:, 1] == (w[:, 0] & 0xFFFF) << 16).all()
        parts = run_lanes(12, 0, w)
        assert (parts[:, 0] == w[:, 0] << 16).all() and (parts[:, 1] == (w[:, 0] & 0xFFFF0000)).all()


def close(got: NDArray[np.uint32], want: NDArray[np.float64]) -> bool:
    """Within 1 unit in the last place of float32; both sides compute in double."""
    value = np.ascontiguousarray(got).view(np.float32).astype(np.float64)
    return bool((np.abs(value - want) <= np.spacing(np.abs(want).astype(np.float32))).all())


def test_fast_math() -> None:
    f = floats(7, -120, 120)
    x = f[:, 0].astype(np.float64)
    got = run_lanes(9, 0, f.view(np.uint32))
    assert close(got[:, 0], np.exp2(x))
    positive = np.abs(f)
    logs = run_lanes(9, 0, positive.view(np.uint32))
    assert close(logs[:, 1], np.log2(positive[:, 0].astype(np.float64)))
    got = run_lanes(10, 0, positive.view(np.uint32))
    assert close(got[:, 0], 1 / positive[:, 0].astype(np.float64))
    assert close(got[:, 1], 1 / np.sqrt(positive[:, 0].astype(np.float64)))
    body = run_lanes(14, 0, positive.view(np.uint32))
    assert close(body[:, 0], np.exp2(positive[:, 0].astype(np.float64)))


def test_fast_math_edges() -> None:
    f = np.zeros((32, 2), np.float32)
    f[:8, 0] = [0.0, -0.0, np.inf, -np.inf, 200.0, -200.0, 1e-40, -1.0]
    exp2, lg2 = run_lanes(9, 0, f.view(np.uint32)).view(np.float32).T
    assert exp2[:7].tolist() == [1.0, 1.0, np.inf, 0.0, np.inf, 0.0, 1.0]
    assert lg2[:3].tolist() == [-np.inf, -np.inf, np.inf] and np.isnan(lg2[7]) and lg2[6] == -np.inf
    rcp, rsqrt = run_lanes(10, 0, f.view(np.uint32)).view(np.float32).T
    assert rcp[:4].tolist() == [np.inf, -np.inf, 0.0, -0.0]
    assert rcp[6] == np.inf and rsqrt[0] == np.inf and np.isnan(rsqrt[7])


def test_min_max() -> None:
    f = floats(8, -2, 2)
    f[:3, 0] = np.nan
    f[3, 0], f[3, 1] = 0.0, -0.0
    got = run_lanes(11, 0, f.view(np.uint32)).view(np.float32)
    assert (got[:, 0] == np.fmin(f[:, 0], f[:, 1])).all() and (got[:, 1] == np.fmax(f[:, 0], f[:, 1])).all()
    assert np.signbit(got[3, 0]) and not np.signbit(got[3, 1])


@pytest.mark.parametrize("config", CONFIGS)
def test_memory_of_every_width(config: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(9)
    source = aligned(4096)
    # Bytes below 0x7f: read as floats they are ordinary numbers.
    source[:] = rng.integers(0, 0x7F, 4096)
    out, status = aligned(8192), aligned(256)
    header = aligned(12).view(np.int32)
    header[:] = [7, 11, 13]
    params = struct.pack("4Q", source.ctypes.data, out.ctypes.data, header.ctypes.data, status.ctypes.data)
    buffers = [
        Buffer("in", source, READ_ONLY),
        Buffer("out", out, UNINITIALISED),
        Buffer("header", header, READ_ONLY),
    ]
    schedule, landing, preempt = config
    options = LaunchOptions(1, 128, 128 + 8192, schedule=schedule, landing=landing, preempt=preempt, seed=2)
    result = library("memory").launch(params, buffers, options)
    assert result.ok, result.report
    want = source.reshape(4, 1024).copy()
    want[0] = (want[0].view(np.uint32) ^ 1).view(np.uint8)
    want[1] = want[1].view(np.uint32).reshape(-1, 2)[:, ::-1].reshape(-1).view(np.uint8)
    want[2] = want[2].view(np.uint32).reshape(-1, 4)[:, ::-1].reshape(-1).view(np.uint8)
    quads = want[3].reshape(-1, 4)
    quads[:, :2] = quads[:, 1::-1].copy()
    quads.view(np.uint16)[:, 1] += 1
    want[3].view(np.float32)[0] = source[3072:3076].view(np.float32)[0] + np.float32(1)
    assert (out[:4096] == want.reshape(-1)).all()
    plain = source.reshape(4, 32, 32).copy()
    second = plain[1].copy().view(np.float32)
    plain[1].view(np.float32)[:, 6] = second[:, 6] + second[:, 6]
    plain[1].view(np.int32)[:, 7] += 7 * 11 + 13
    plain[2:, :, :16] += 1
    plain[2:, :, 16:] = (plain[2:, :, 16:].copy().view(np.uint16) * 3).view(np.uint8)
    assert (out[4096:] == plain.reshape(-1)).all()
    assert result.stats.total["bulk_load_bytes"] == 4096 and result.stats.total["bulk_store_bytes"] == 4096
