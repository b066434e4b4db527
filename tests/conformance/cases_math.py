"""Cases of ``kernels/math.cu``: arithmetic, conversions, bit operations, exchange between lanes."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conformance.case import Array, Case, Launch, Verdict, both, exact, raw, rng, ulp_of, within, words
from tests.conformance.number import BF16, E2M1, F16, fma16, halves, joined, to_bits, to_fp8

U32 = NDArray[np.uint32]
Reference = Callable[[U32, U32, U32, U32], tuple[Array, Array]]

TINY = np.float32(2.0**-126)
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, TINY, -TINY, 3.4028235e38, -3.4028235e38,
     0.5, 2.0, 65504.0, 65520.0, 448.0, 464.0, 480.0, 57344.0, 61440.0, 1.00390625, 1.01171875, 2.0**-24,
     2.0**-25, 2.0**-9, 2.0**-10, 2.0**-16, 2.0**-17, -126.0, -127.0, 127.0, 128.0],
    np.float32,
)  # fmt: skip


def float_words(seed: int, n: int, low: float, high: float) -> U32:
    """[n, 4] words: half uniform numbers of a range, a quarter any bit pattern, a quarter of every exponent,
    and the edges in front."""
    values = rng(seed).uniform(low, high, (n, 4)).astype(np.float32).view(np.uint32)
    values[n // 2 : 3 * n // 4] = words(seed + 1000, n // 4, 4)
    spread = rng(seed + 2000).uniform(-1, 1, (n // 4, 4)) * 2.0 ** rng(seed + 3000).integers(
        -130, 127, (n // 4, 4)
    )
    values[3 * n // 4 :] = spread.astype(np.float32).view(np.uint32)
    values[: len(EDGES), 0] = EDGES.view(np.uint32)
    values[: len(EDGES), 1] = EDGES[::-1].view(np.uint32)
    return values


def launch(op: int, inp: U32, check: Callable[[U32], Verdict], arg: int = 0, grid: int = 2) -> Launch:
    assert len(inp) % 256 == 0

    def judge(out: NDArray[np.uint8], _: NDArray[np.uint8]) -> Verdict:
        return check(out.view(np.uint32).reshape(-1, 2))

    return Launch(raw(inp), len(inp) * 8, judge, op, len(inp), (arg,), grid=grid)


def bitwise(op: int, make: Callable[[], U32], reference: Reference, arg: int = 0) -> Callable[[], Launch]:
    """Equality with a reference on the columns of the input."""

    def build() -> Launch:
        inp = make()
        first, second = reference(*(inp[:, i] for i in range(4)))
        want = np.stack([np.asarray(first).astype(np.uint32), np.asarray(second).astype(np.uint32)], 1)
        return launch(op, inp, lambda got: exact(want, got), arg)

    return build


# ---- approximations ---------------------------------------


def flushed(x: Array) -> Array:
    return np.where(np.abs(x) < TINY, np.copysign(0.0, x), x)


def approximation(
    op: int,
    low: float,
    high: float,
    function: Callable[[Array], Array],
    bound: Callable[[Array, Array], Array],
    rule: str,
) -> Callable[[], Launch]:
    """Both outputs are ``function`` of the inputs, zero where subnormal, as are subnormal results."""

    def build() -> Launch:
        inp = float_words(op, 8192, low, high)

        def check(got: U32) -> Verdict:
            verdicts = []
            for column, name in ((0, "first"), (1, "second")):
                with np.errstate(all="ignore"):
                    x = flushed(inp[:, column].view(np.float32).astype(np.float64))
                    want = function(x)
                    allowed = bound(x, want)
                want = np.where(np.abs(want) >= 2.0**128 - 2.0**103, np.copysign(np.inf, want), want)
                # At the border of the subnormal numbers either side is right.
                allowed = np.where(np.abs(want) < 2.0 * TINY, np.maximum(allowed, TINY), allowed)
                want = np.where(np.abs(want) < TINY * (1 - 2**-20), np.copysign(0.0, want), want)
                verdicts.append(within(want, got[:, column].view(np.float32), allowed, rule, name))
            return both(*verdicts)

        return launch(op, inp, check)

    return build


def ulp(want: Array, n: float) -> Array:
    """n units in the last place of float32."""
    return n * ulp_of(want)


def tanh_launch() -> Launch:
    inp = float_words(4, 8192, -6, 6)

    def check(got: U32) -> Verdict:
        verdicts = []
        for column in (0, 1):
            with np.errstate(invalid="ignore"):
                x = inp[:, column].view(np.float32).astype(np.float64)
            want = np.tanh(x)
            allowed = np.abs(want) * 2.0**-10.9 + TINY
            verdicts.append(
                within(
                    want,
                    got[:, column].view(np.float32),
                    allowed,
                    "relative error below 2^-10.9 (PTX manual: 2^-11)",
                )
            )
        return both(*verdicts)

    return launch(4, inp, check)


def min_max(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    """IEEE 754-2019 minimumNumber and maximumNumber: -0 is below +0, NaN loses."""
    f, g = x.view(np.float32), y.view(np.float32)
    below = (f < g) | ((f == g) & np.signbit(f))
    low = np.where(np.isnan(f), y, np.where(np.isnan(g) | below, x, y))
    above = (f > g) | ((f == g) & np.signbit(g))
    high = np.where(np.isnan(f), y, np.where(np.isnan(g) | above, x, y))
    none = np.isnan(f) & np.isnan(g)
    return np.where(none, 0x7FFFFFFF, low), np.where(none, 0x7FFFFFFF, high)


# ---- conversions ---------------------------------------


def floats(seed: int, low: float, high: float) -> Callable[[], U32]:
    return lambda: float_words(seed, 8192, low, high)


def all_halves() -> U32:
    """Every 16-bit pattern, in both halves."""
    low = np.arange(65536, dtype=np.uint32)
    columns = np.zeros((65536, 4), np.uint32)
    columns[:, 0] = low | (65535 - low) << 16
    columns[:, 1] = words(77, 65536)
    return columns


def pairs16(seed: int, fmt: type, low: float, high: float) -> Callable[[], U32]:
    """[n, 4] pairs of 16-bit numbers: uniform values, with any bit pattern in the second half of the rows."""

    def make() -> U32:
        values = rng(seed).uniform(low, high, (2048, 8)).astype(fmt).view(np.uint16)
        values[1024:] = rng(seed + 500).integers(0, 65536, (1024, 8))
        return joined(values[:, 0::2], values[:, 1::2]).astype(np.uint32)

    return make


def to_f32(dtype: type) -> Callable[[Array], U32]:
    def convert(bits: Array) -> U32:
        value = np.ascontiguousarray(bits.astype(np.uint16)).view(dtype).astype(np.float32)
        return np.where(np.isnan(value), np.uint32(0x7FFFFFFF), value.view(np.uint32))

    return convert


half_value = to_f32(np.float16)


def bf16_pair(f: U32, g: U32) -> U32:
    return joined(*(to_bits(v.view(np.float32), ml_dtypes.bfloat16, 0x7FFF) for v in (f, g)))


def f16_pair(f: U32, g: U32) -> U32:
    with np.errstate(over="ignore"):
        return joined(*(to_bits(v.view(np.float32), np.float16, 0x7FFF) for v in (f, g)))


def fp8_pair(dtype: type) -> Callable[[Array, Array], U32]:
    return lambda f, g: to_fp8(f, dtype).astype(np.uint32) | to_fp8(g, dtype).astype(np.uint32) << 8


e4m3_pair, e5m2_pair = fp8_pair(ml_dtypes.float8_e4m3fn), fp8_pair(ml_dtypes.float8_e5m2)


def halves_f32(w: U32) -> tuple[Array, Array]:
    lo, hi = halves(w)
    return lo.view(np.float16).astype(np.float32), hi.view(np.float16).astype(np.float32)


def from_fp8(dtype: type) -> Callable[[U32], U32]:
    def convert(w: U32) -> U32:
        parts = []
        for shift in (0, 8):
            value = (w >> shift & 255).astype(np.uint8).view(dtype).astype(np.float32)
            parts.append(to_bits(value, np.float16, 0x7FFF))
        return joined(*parts)

    return convert


from_e4m3, from_e5m2 = from_fp8(ml_dtypes.float8_e4m3fn), from_fp8(ml_dtypes.float8_e5m2)


def fp4_and_scales(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    values = joined(*(to_bits(E2M1[x >> shift & 15], np.float16, 0x7FFF) for shift in (0, 4)))
    scales = []
    for shift in (0, 8):
        s = (x >> shift & 255).astype(np.int64)
        value = np.where(s == 255, np.nan, np.exp2(s.astype(np.float64) - 127.0)).astype(np.float32)
        scales.append(to_bits(value, ml_dtypes.bfloat16, 0x7FFF))
    return values, joined(*scales)


def arithmetic16(fmt: object) -> tuple[Reference, Reference]:
    one = int(np.array([1.0]).astype(fmt.dtype).view(np.uint16)[0])  # type: ignore[attr-defined]

    def mul_add(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
        a, b = halves(x), halves(y)
        minus_zero, ones = np.full(len(x), 0x8000, np.uint16), np.full(len(x), one, np.uint16)
        product = [fma16(p, q, minus_zero, fmt) for p, q in zip(a, b, strict=True)]  # type: ignore[arg-type]
        total = [fma16(p, ones, q, fmt) for p, q in zip(a, b, strict=True)]  # type: ignore[arg-type]
        return joined(*product), joined(*total)

    def fma(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
        parts = zip(halves(x), halves(y), halves(z), strict=True)
        value = joined(*(fma16(*part, fmt) for part in parts))  # type: ignore[arg-type]
        if fmt is BF16:
            return value, (x & 0xFFFF) << 16
        return value, half_value(x & 0xFFFF)

    return mul_add, fma


bf16_mul_add, bf16_fma = arithmetic16(BF16)
f16_mul_add, f16_fma = arithmetic16(F16)


def fma32(a: Array, b: Array, c: Array) -> U32:
    """round(a * b + c) to float32, once: the product is exact in float64, the sum is rounded to odd there,
    and 53 bits rounded to odd keep the rounding to 24 correct."""
    with np.errstate(all="ignore"):
        p, q = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
        total = p + q
        back = total - p
        rest = (p - (total - back)) + (q - back)
        bits = total.view(np.int64).copy()
        inexact = np.isfinite(total) & (rest != 0) & (bits & 1 == 0)
        bits[inexact] += np.where((rest > 0) == (total > 0), 1, -1)[inexact]
        value = bits.view(np.float64).astype(np.float32)
    return np.where(np.isnan(value), np.uint32(0x7FFFFFFF), value.view(np.uint32))


def fma_twice(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    f, g, h, i = (v.view(np.float32) for v in (x, y, z, w))
    return fma32(f, g, h), fma32(g, h, i)


def canonical(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    def bf16(bits: Array) -> Array:
        return np.where(bits & 0x7FFF > 0x7F80, 0x7FFF, bits)

    return np.where(np.isnan(x.view(np.float32)), 0x7FFFFFFF, x), joined(*(bf16(v) for v in halves(y)))


# ---- bits ---------------------------------------


def bit_words(seed: int, y: int = 0, z: int = 0) -> Callable[[], U32]:
    """Random words; columns y and z below a bound where one is given."""

    def make() -> U32:
        w = words(seed, 4096, 4)
        if y:
            w[:, 1] = rng(seed + 1).integers(0, y, 4096)
        if z:
            w[:, 2] = rng(seed + 2).integers(0, z, 4096)
        return w

    return make


def prmt_popc(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    data = np.stack([x, y], 1).view(np.uint8)
    out = np.zeros((len(x), 4), np.uint8)
    for i in range(4):
        nibble = z >> (4 * i) & 15
        byte = data[np.arange(len(x)), nibble & 7]
        out[:, i] = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte)
    return out.view(np.uint32)[:, 0], np.array([int(v).bit_count() for v in x])


def bfe(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    plain, signed = [], []
    for v, pos, length in zip(x.tolist(), y.tolist(), z.tolist(), strict=True):
        field = v >> pos & ((1 << length) - 1)
        plain.append(field)
        top = min(pos + length - 1, 31)
        extended = field if pos <= 31 else 0
        if length and v >> top & 1:
            width = max(top - pos + 1, 0)
            extended = (field & ((1 << width) - 1)) | -1 << width
        signed.append(extended & 0xFFFFFFFF)
    return np.array(plain), np.array(signed)


def bfi(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
    out = []
    for a, b, pos, length in zip(x.tolist(), w.tolist(), y.tolist(), z.tolist(), strict=True):
        mask = ((1 << length) - 1) << pos & 0xFFFFFFFF
        out.append((b & ~mask) | (a << pos & mask))
    return np.array(out), w


def funnel(clamp: bool) -> Reference:
    def shift(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
        left, right = [], []
        for lo, hi, n in zip(x.tolist(), y.tolist(), z.tolist(), strict=True):
            k = min(n, 32) if clamp else n & 31
            both_words = hi << 32 | lo
            left.append(both_words << k >> 32 & 0xFFFFFFFF)
            right.append(both_words >> k & 0xFFFFFFFF)
        return np.array(left), np.array(right)

    return shift


# ---- lanes ---------------------------------------


def lane_words(seed: int) -> U32:
    """A warp per 32 rows; payloads that pass a float register stay away from NaN."""
    w = words(seed, 512, 4)
    w[:, 0] &= 0x3FFFFFFF
    w[0:32, :2] = 0xFFFFFFFF  # for the votes: all and none
    w[0:32, 0] = 0x01010101
    w[32:64, :2] = 0x0101FF00
    w[:64:32, 0] &= 0x3FFFFFFF
    return w


LANE = np.arange(512) & 31
WARP0 = np.arange(512) & ~31


def per_warp(values: Array, reduce: Callable[[Array], int]) -> Array:
    return np.repeat([reduce(v) for v in values.reshape(-1, 32)], 32)


def shuffles(arg: int) -> dict[int, Reference]:
    def xor(v: Array) -> Array:
        return v[WARP0 + (LANE ^ arg)]

    def idx(v: Array, src: Array | int) -> Array:
        return v[WARP0 + (src & 31)]

    def up(v: Array) -> Array:
        return np.where(LANE >= arg, v[np.maximum(np.arange(512) - arg, 0)], v)

    def down(v: Array) -> Array:
        return np.where(LANE + arg < 32, v[np.minimum(np.arange(512) + arg, 511)], v)

    return {
        32: lambda x, y, z, w: (xor(x), xor(y)),
        33: lambda x, y, z, w: (idx(x, y), idx(x, arg)),
        34: lambda x, y, z, w: (up(x), up(x)),
        35: lambda x, y, z, w: (down(x), down(x)),
        36: lambda x, y, z, w: (xor(x), idx(y, arg)),
        37: lambda x, y, z, w: (up(x), down(y)),
    }


def collectives() -> dict[int, Reference]:
    bits = np.uint64(1) << LANE.astype(np.uint64)

    def ballot(x: U32, y: U32, z: U32, w: U32) -> tuple[Array, Array]:
        votes = per_warp(np.where(x & 1, bits, 0).astype(np.uint64), lambda v: int(v.sum()))
        same = [int(bits[:32][(y[i & ~31 : (i & ~31) + 32] & 3) == (y[i] & 3)].sum()) for i in range(512)]
        return votes, np.array(same)

    def both_ways(first: np.ufunc, second: np.ufunc) -> Reference:
        return lambda x, y, z, w: (
            per_warp(x, lambda v: int(first.reduce(v, dtype=np.uint32))),
            per_warp(y, lambda v: int(second.reduce(v, dtype=np.uint32))),
        )

    return {
        38: lambda x, y, z, w: (x[WARP0 + (LANE ^ 1)], y[WARP0 + (LANE ^ 16)]),
        39: ballot,
        40: both_ways(np.add, np.bitwise_xor),
        41: lambda x, y, z, w: (per_warp(x, lambda v: int(v.min())), per_warp(y, lambda v: int(v.max()))),
        42: both_ways(np.bitwise_and, np.bitwise_or),
        43: lambda x, y, z, w: (
            per_warp(x & 255, lambda v: int(v.all())),
            per_warp(y & 255, lambda v: int((v == 0).any())),
        ),
    }


def ids_launch() -> Launch:
    i = np.arange(1024)
    want = (i & 31) | (i >> 5 & 7) << 8 | (i >> 8) << 16 | 4 << 24
    table = np.stack([want, (i & 31) == 0], 1).astype(np.uint32)
    return launch(44, words(44, 1024, 4), lambda got: exact(table, got), grid=4)


def lanes(op: int, names: str, reference: Reference, arg: int = 0) -> Case:
    label = names.split()[0] + (f"_{arg}" if arg else "")
    return Case(
        f"lanes.{label}", "math", tuple(names.split()), bitwise(op, lambda: lane_words(op), reference, arg)
    )


def case(name: str, primitives: str, make: Callable[[], Launch]) -> Case:
    return Case(f"math.{name}", "math", tuple(primitives.split()), make)


_EX2 = "2 ulp (PTX manual), subnormals are zero"
CASES = [
    case("exp2", "exp2_ tk_exp2", approximation(0, -130, 130, np.exp2, lambda x, y: ulp(y, 2), _EX2)),
    case(
        "lg2",
        "lg2_",
        approximation(
            1,
            0.25,
            4,
            np.log2,
            lambda x, y: np.maximum(1.0, np.abs(y)) * 2.0**-22,
            "2^-22, absolute below 1 and relative above (PTX manual)",
        ),
    ),
    case(
        "rcp",
        "rcp_ tk_rcp",
        approximation(2, -100, 100, lambda x: 1.0 / x, lambda x, y: ulp(y, 1), "1 ulp (PTX manual)"),
    ),
    case(
        "rsqrt",
        "rsqrt_ tk_rsqrt",
        approximation(
            3,
            0,
            100,
            lambda x: 1.0 / np.sqrt(x),
            lambda x, y: np.abs(y) * 2.0**-22,
            "relative error 2^-22 (PTX manual: 2^-22.9)",
        ),
    ),
    case("tanh", "tanh_", tanh_launch),
    case("min_max", "fmin_ fmax_", bitwise(5, floats(5, -2, 2), min_max)),
    case(
        "to_bf16",
        "cvt_bf16x2 f2bf",
        bitwise(6, floats(6, -3e3, 3e3), lambda x, y, z, w: (bf16_pair(x, y), bf16_pair(x, x) & 0xFFFF)),
    ),
    case(
        "from_bf16",
        "bf_lo bf_hi f2u u2f",
        bitwise(7, all_halves, lambda x, y, z, w: (x << 16, x & 0xFFFF0000)),
    ),
    case(
        "bf16x2_mul_add",
        "bf16x2_mul bf16x2_add",
        bitwise(8, pairs16(8, ml_dtypes.bfloat16, -4, 4), bf16_mul_add),
    ),
    case("bf16x2_fma", "bf16x2_fma bf2f", bitwise(9, pairs16(9, ml_dtypes.bfloat16, -4, 4), bf16_fma)),
    case(
        "to_f16",
        "cvt_f16x2 f2h",
        bitwise(10, floats(10, -3e3, 3e3), lambda x, y, z, w: (f16_pair(x, y), f16_pair(x, x) & 0xFFFF)),
    ),
    case(
        "from_f16",
        "h_lo h_hi",
        bitwise(11, all_halves, lambda x, y, z, w: (half_value(x & 0xFFFF), half_value(x >> 16))),
    ),
    case("f16x2_mul_add", "f16x2_mul f16x2_add", bitwise(12, pairs16(12, np.float16, -4, 4), f16_mul_add)),
    case("f16x2_fma", "f16x2_fma h2f", bitwise(13, pairs16(13, np.float16, -4, 4), f16_fma)),
    case(
        "to_fp8",
        "cvt_e4m3x2 cvt_e5m2x2",
        bitwise(
            14,
            floats(14, -300, 300),
            lambda x, y, z, w: (
                e4m3_pair(x.view(np.float32), y.view(np.float32)),
                e5m2_pair(x.view(np.float32), y.view(np.float32)),
            ),
        ),
    ),
    case(
        "f16_to_fp8",
        "f16x2_to_e4m3x2 f16x2_to_e5m2x2",
        bitwise(15, all_halves, lambda x, y, z, w: (e4m3_pair(*halves_f32(x)), e5m2_pair(*halves_f32(x)))),
    ),
    case(
        "fp8_to_f16",
        "e4m3x2_to_f16x2 e5m2x2_to_f16x2",
        bitwise(16, all_halves, lambda x, y, z, w: (from_e4m3(x), from_e5m2(x))),
    ),
    case("fp4_and_e8m0", "e2m1x2_to_f16x2 e8m0x2_to_bf16x2", bitwise(17, all_halves, fp4_and_scales)),
    case("fma", "fma_", bitwise(26, floats(26, -2, 2), fma_twice)),
    case("canonical", "canonical canonical_bf16x2", bitwise(25, floats(25, -2, 2), canonical)),
    case("prmt", "prmt popc", bitwise(18, bit_words(18), prmt_popc)),
    case(
        "lop3_maj_xor",
        "lop3",
        bitwise(19, bit_words(19), lambda x, y, z, w: ((x & y) | (x & z) | (y & z), x ^ y ^ z)),
    ),
    case(
        "lop3_select",
        "lop3",
        bitwise(
            20, bit_words(20), lambda x, y, z, w: ((x & y) | (~x & z), (~x & ~(y & ~z)) | (x & ~(y | z)))
        ),
    ),
    case("bfe", "bfe_u32 bfe_i32", bitwise(21, bit_words(21, 40, 40), bfe)),
    case("bfi", "bfi", bitwise(22, bit_words(22, 40, 40), bfi)),
    case("funnel", "shf_l shf_r", bitwise(23, bit_words(23, 0, 70), funnel(False))),
    case("funnel_clamp", "shf_l_clamp shf_r_clamp", bitwise(24, bit_words(24, 0, 70), funnel(True))),
    *(
        lanes(op, names, shuffles(arg)[op], arg)
        for op, names in ((32, "shfl_xor"), (33, "shfl_idx"), (34, "shfl_up"), (35, "shfl_down"))
        for arg in (1, 5, 16, 31)
    ),
    lanes(36, "shfl_xor_i32 shfl_idx shfl_xor", shuffles(7)[36], 7),
    lanes(37, "shfl_up_i32 shfl_up shfl_down", shuffles(3)[37], 3),
    lanes(38, "tk_shfl_xor_f32 tk_shfl_xor_i32", collectives()[38]),
    lanes(39, "ballot match_any", collectives()[39]),
    lanes(40, "redux_add redux_xor", collectives()[40]),
    lanes(41, "redux_min redux_max", collectives()[41]),
    lanes(42, "redux_and redux_or", collectives()[42]),
    lanes(43, "all_lanes any_lane", collectives()[43]),
    Case("lanes.ids", "math", ("lane", "warp", "cta", "ncta", "elect"), ids_launch),
]
