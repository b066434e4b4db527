"""Scalar tile bodies, as emitted and compiled by g++, against float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Call = Callable[..., Any]
F32 = np.float32
INF, NAN = float("inf"), float("nan")
ULP = 2.0**-23  # distance of neighbouring floats in [1, 2): the largest relative distance


def f32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=F32)


def apply(call: Call, name: str, *inputs: Any) -> np.ndarray:
    arrays = [f32(a) for a in np.broadcast_arrays(*inputs)]
    out = np.empty(arrays[0].shape, F32)
    call(f"run_{name}", out.size, *arrays, out)
    return out


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got - want) / np.abs(want)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("error", [0.0, 2 * ULP, -2 * ULP])
def test_norm_rstd_is_good_to_two_ulp_whatever_the_estimate(
    bodies: Call, rng: np.random.Generator, error: float
) -> None:
    sum_sq = f32(rng.uniform(0.1, 1e5, 20000))
    inv_n, eps = F32(1 / 6144), F32(1e-5)
    argument = sum_sq * inv_n + eps  # f32, the same two roundings
    bodies("set_estimate_error", error)
    try:
        got = apply(bodies, "norm_rstd", sum_sq, inv_n, eps)
    finally:
        bodies("set_estimate_error", 0.0)
    assert relative(got, 1 / np.sqrt(argument.astype(np.float64))) < 2 * ULP


def test_norm_rstd_at_its_edges(bodies: Call) -> None:
    got = apply(bodies, "norm_rstd", [0.0, 0.0, INF, NAN], 1.0, [0.0, 0.25, 0.0, 0.0])
    assert got[:3].tolist() == [INF, 2.0, 0.0]
    assert np.isnan(got[3])


def test_norm_apply_multiplies_in_the_stated_order(bodies: Call, rng: np.random.Generator) -> None:
    x, rstd, w = (f32(rng.normal(size=5000)) for _ in range(3))
    np.testing.assert_array_equal(apply(bodies, "norm_apply", x, rstd, w), x * rstd * w)
    assert (x * rstd * w != x * (rstd * w)).any()  # the data tells the orders apart


def test_rope_pair_rotates(bodies: Call, rng: np.random.Generator) -> None:
    a, b = (f32(rng.normal(size=3000)) for _ in range(2))
    angle = rng.uniform(0, 1000, 3000)
    c, s = f32(np.cos(angle)), f32(np.sin(angle))
    out = np.empty((3000, 2), F32)
    bodies("run_rope_pair", 3000, a, b, c, s, out)
    np.testing.assert_array_equal(out, np.stack([a * c - b * s, b * c + a * s], axis=1))
    z = (a.astype(np.float64) + 1j * b) * np.exp(1j * angle)
    # cos, sin, two products and a sum are rounded, each to half an ulp of at most |z|
    assert np.max(np.abs(out[:, 0] + 1j * out[:, 1] - z) / np.abs(z)) < 4 * ULP


def test_swiglu_and_sigmoid_match_float64(bodies: Call, rng: np.random.Generator) -> None:
    gate, up = f32(rng.uniform(-30, 30, 20000)), f32(rng.normal(size=20000))
    g, u = gate.astype(np.float64), up.astype(np.float64)
    # e^x is good to (|x| + 4) half-ulps, see bodies/common.py; |x| <= 30, and three more roundings
    bound = (30 + 4 + 3) / 2 * ULP
    assert relative(apply(bodies, "sigmoid", gate), 1 / (1 + np.exp(-g))) < bound
    assert relative(apply(bodies, "swiglu", gate, up), g / (1 + np.exp(-g)) * u) < bound
    near = np.abs(gate) < 1
    got = apply(bodies, "sigmoid", gate[near])
    assert relative(got, 1 / (1 + np.exp(-g[near]))) < 3 * ULP


def test_swiglu_and_sigmoid_never_overflow_to_nan(bodies: Call) -> None:
    gate = [-INF, -3.4e38, -1e30, -200.0, -100.0, 100.0, 1e30, 3.4e38, INF]
    got = apply(bodies, "swiglu", gate, 2.0)
    assert not np.isnan(got).any()
    assert (got[:5] == 0).all()
    assert got[5:].tolist() == [200.0, float(F32(2e30)), INF, INF]
    np.testing.assert_array_equal(apply(bodies, "sigmoid", gate), [0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert np.isnan(apply(bodies, "swiglu", [NAN, 1.0], [1.0, NAN])).all()
    assert np.isnan(apply(bodies, "sigmoid", [NAN])).all()


def test_swiglu_is_not_clamped(bodies: Call) -> None:
    """Limits of other models (7, 10) must not appear: mimo.md 2.5."""
    np.testing.assert_array_equal(apply(bodies, "swiglu", [64.0, 3000.0], [50.0, -3000.0]), [3200.0, -9e6])


def better(a: tuple[float, int], b: tuple[float, int]) -> tuple[float, int]:
    """The total order of the design: larger value, then lower id, NaN last."""

    def place(v: tuple[float, int]) -> tuple[bool, float, int]:
        nan = v[0] != v[0]
        return (nan, 0.0 if nan else -v[0], v[1])

    return min(a, b, key=place)


def test_argmax_pair_is_one_total_order(bodies: Call) -> None:
    values = [-INF, -3.4e38, -1.0, -0.0, 0.0, 1e-42, 1.0, 3.4e38, INF, NAN]
    ids = [0, 1, 5, 152575, (1 << 30) - 1]
    pairs = list(itertools.product(itertools.product(values, ids), repeat=2))
    va, vb = f32([a[0] for a, _ in pairs]), f32([b[0] for _, b in pairs])
    ia = np.array([a[1] for a, _ in pairs], np.int32)
    ib = np.array([b[1] for _, b in pairs], np.int32)
    v, i = np.empty_like(va), np.empty_like(ia)
    bodies("run_argmax_pair", len(pairs), va, ia, vb, ib, v, i)
    want = [better(a, b) for a, b in pairs]
    np.testing.assert_array_equal(i, [w[1] for w in want])
    np.testing.assert_array_equal(v, f32([w[0] for w in want]))  # NaN equals NaN here


def test_softmax_online_moves_the_maximum(bodies: Call, rng: np.random.Generator) -> None:
    m_old = f32([*rng.normal(size=500) * 5, -INF, -INF, 3.0, 1e4])
    s_max = f32([*rng.normal(size=500) * 5, -INF, 2.0, -INF, -1e4])
    m, r = np.empty_like(m_old), np.empty_like(m_old)
    bodies("run_softmax_online", m.size, m_old, s_max, m, r)
    np.testing.assert_array_equal(m, np.maximum(m_old, s_max))
    assert m[500] == -INF and r[500] == 0 and r[501] == 0  # nothing seen before: nothing to keep
    assert r[502] == 1 and r[503] == 1
    want = np.exp(m_old[:500].astype(np.float64) - m[:500])
    np.testing.assert_allclose(r[:500], want, rtol=(40 + 4) / 2 * ULP)  # |m_old - m| < 40


def test_softmax_p_of_masked_scores_is_zero(bodies: Call, rng: np.random.Generator) -> None:
    s = f32([*-rng.uniform(0, 30, 1000), -INF, -INF, 0.0])
    m = f32([*np.zeros(1000), -INF, 5.0, 0.0])
    got = apply(bodies, "softmax_p", s, m)
    assert got[1000:].tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(got[:1000], np.exp(s[:1000].astype(np.float64)), rtol=(30 + 4) / 2 * ULP)
    assert np.isnan(apply(bodies, "softmax_p", [NAN], [1.0])).all()


def test_online_softmax_over_blocks_equals_softmax(bodies: Call, rng: np.random.Generator) -> None:
    """The pieces together, first block fully masked, as a sliding window makes it."""
    scores = f32(rng.normal(size=(6, 16)) * 4)
    scores[0] = -INF
    scores[3, ::2] = -INF
    m, total = f32([-INF]), 0.0
    for block in scores:
        m_new, rescale = np.empty(1, F32), np.empty(1, F32)
        bodies("run_softmax_online", 1, m, f32([block.max()]), m_new, rescale)
        total = total * float(rescale[0]) + float(
            apply(bodies, "softmax_p", block, m_new).astype(np.float64).sum()
        )
        m = m_new
    want = np.exp(scores.astype(np.float64) - float(scores.max())).sum()
    assert m[0] == scores.max()
    assert abs(total / want - 1) < 20 * ULP


def partials(rng: np.random.Generator, rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random maxima and denominators; about a third of the partials empty, the first row entirely."""
    m, d = f32(rng.normal(size=(rows, n)) * 5), f32(rng.uniform(1, 40, (rows, n)))
    empty = rng.random((rows, n)) < 0.3
    empty[0], empty[1] = True, False
    m[empty], d[empty] = -INF, 0.0
    return m, d


@pytest.mark.parametrize("n", [1, 4, 8])
@pytest.mark.parametrize("with_sink", [False, True])
def test_softmax_merge_weighs_partials(
    bodies: Call, rng: np.random.Generator, n: int, with_sink: bool
) -> None:
    rows = 400
    m, d = partials(rng, rows, n)
    sink = f32(rng.normal(size=rows) * 5 if with_sink else np.full(rows, -INF))
    scale = np.full((rows, n), 99, F32)
    bodies(f"run_softmax_merge_{n}", rows, m, d, sink, scale)
    m64, d64 = m.astype(np.float64), d.astype(np.float64)
    total = (np.exp(m64) * d64).sum(axis=1) + np.exp(sink.astype(np.float64))
    live = total > 0
    assert not live.all() or with_sink
    np.testing.assert_array_equal(scale[~live], 0)
    want = np.exp(m64[live]) / total[live, None]
    # exponents below 50 in size: (50 + 4) half-ulps each in numerator and denominator, n + 2 more roundings
    np.testing.assert_allclose(scale[live], want, rtol=(54 + n + 2) * ULP, atol=0)
    np.testing.assert_array_equal(scale[live][m[live] == -INF], 0)


@pytest.mark.parametrize("n", [1, 4, 8])
def test_softmax_combine_keeps_maximum_and_sum(bodies: Call, rng: np.random.Generator, n: int) -> None:
    rows = 400
    m, d = partials(rng, rows, n)
    m1, d1, scale = np.empty(rows, F32), np.empty(rows, F32), np.empty((rows, n), F32)
    bodies(f"run_softmax_combine_{n}", rows, m, d, m1, d1, scale)
    np.testing.assert_array_equal(m1, m.max(axis=1))
    assert m1[0] == -INF and d1[0] == 0 and not scale[0].any()
    live = m1 > -INF
    top = np.where(live, m1, 0).astype(np.float64)[:, None]
    np.testing.assert_allclose(scale, np.exp(m.astype(np.float64) - top), rtol=27 * ULP)
    np.testing.assert_allclose(d1, (np.exp(m.astype(np.float64) - top) * d).sum(axis=1), rtol=(27 + n) * ULP)


def test_combining_then_merging_equals_merging_at_once(bodies: Call, rng: np.random.Generator) -> None:
    """Warps combine, splits merge: the two levels give the weights of one softmax."""
    m, d = partials(rng, 50, 8)
    m1, d1, inner = np.empty(100, F32), np.empty(100, F32), np.empty((100, 4), F32)
    bodies("run_softmax_combine_4", 100, m.reshape(100, 4), d.reshape(100, 4), m1, d1, inner)
    pad_m, pad_d = np.full((50, 4), -INF, F32), np.zeros((50, 4), F32)
    pad_m[:, :2], pad_d[:, :2] = m1.reshape(50, 2), d1.reshape(50, 2)
    sink = f32(rng.normal(size=50))
    outer, whole = np.empty((50, 4), F32), np.empty((50, 8), F32)
    bodies("run_softmax_merge_4", 50, pad_m, pad_d, sink, outer)
    bodies("run_softmax_merge_8", 50, m, d, sink, whole)
    two_level = inner.reshape(50, 2, 4) * outer[:, :2, None]
    np.testing.assert_allclose(two_level.reshape(50, 8), whole, rtol=120 * ULP)


@pytest.mark.parametrize("name", ["merge", "combine"])
def test_a_nan_partial_is_not_hidden(bodies: Call, name: str) -> None:
    for m_bad, d_bad in ((NAN, 1.0), (1.0, NAN)):
        m, d, scale = f32([0.5, m_bad, 2.0, -INF]), f32([1.0, d_bad, 3.0, 0.0]), np.empty(4, F32)
        m1, d1 = np.empty(1, F32), np.empty(1, F32)
        if name == "merge":
            bodies("run_softmax_merge_4", 1, m, d, f32([-INF]), scale)
            assert np.isnan(scale).any()
        else:
            bodies("run_softmax_combine_4", 1, m, d, m1, d1, scale)
            assert np.isnan(d1).all()
