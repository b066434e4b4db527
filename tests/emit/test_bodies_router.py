"""Expert selection by a warp, as emitted and compiled by g++, against sorting in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Call = Callable[..., Any]
F32 = np.float32
INF, NAN = float("inf"), float("nan")
SHAPES = [(1, 1), (8, 8), (10, 3), (16, 4), (40, 8), (384, 8)]


def sigmoid_body(call: Call, logits: np.ndarray) -> np.ndarray:
    """Sigmoids of the body itself: their accuracy is tested in test_bodies.py, selection here is exact."""
    out = np.empty_like(logits)
    call("run_sigmoid", logits.size, logits, out)
    return out


def route(
    call: Call, logits: np.ndarray, bias: np.ndarray, k: int, scaling: float = 1.0, norm: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """ids, weights [n, k] after checking that all lanes agree and met at every shuffle."""
    n, experts = logits.shape
    ids, weights = np.full((n, 32, k), -7, np.int32), np.full((n, 32, k), -7, F32)
    name = f"run_router_topk_e{experts}_k{k}"
    diverged = call(
        name,
        n,
        np.ascontiguousarray(logits, F32),
        np.ascontiguousarray(bias, F32),
        scaling,
        int(norm),
        ids,
        weights,
    )
    assert diverged == 0
    np.testing.assert_array_equal(ids, np.broadcast_to(ids[:, :1], ids.shape))
    np.testing.assert_array_equal(
        weights.view(np.int32), np.broadcast_to(weights[:, :1].view(np.int32), weights.shape)
    )
    return ids[:, 0], weights[:, 0]


def expected(
    call: Call, logits: np.ndarray, bias: np.ndarray, k: int, scaling: float, norm: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Stable sort by (not NaN, larger score, lower id); weights in f32 in selection order."""
    sigma = sigmoid_body(call, np.ascontiguousarray(logits, F32))
    choice = sigma + bias.astype(F32)
    nan = np.isnan(choice)
    order = np.lexsort(
        (np.broadcast_to(np.arange(choice.shape[1]), choice.shape), -np.where(nan, 0, choice), nan), axis=1
    )
    ids = order[:, :k].astype(np.int32)
    chosen = np.take_along_axis(sigma, ids, axis=1)
    total = np.zeros(len(ids), F32)
    for j in range(k):
        total = total + chosen[:, j]
    inverse = 1 / (total + F32(1e-20)) if norm else np.ones_like(total)
    return ids, chosen * inverse[:, None] * F32(scaling)


@pytest.mark.parametrize("experts, k", SHAPES)
@pytest.mark.parametrize("norm, scaling", [(True, 1.0), (True, 2.5), (False, 0.7)])
def test_router_on_random_rows(bodies: Call, experts: int, k: int, norm: bool, scaling: float) -> None:
    rng = np.random.default_rng(experts * 100 + k)
    logits = rng.normal(size=(40, experts)).astype(F32) * 2
    bias = rng.normal(size=(40, experts)).astype(F32) * 0.1
    ids, weights = route(bodies, logits, bias, k, scaling, norm)
    want_ids, want_weights = expected(bodies, logits, bias, k, scaling, norm)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(weights, want_weights)
    # and the weights against float64: k + 4 roundings of numbers in (0, 1), sigmoid good to 8 ulp for |z| <
    # 10
    sigma = 1 / (1 + np.exp(-np.take_along_axis(logits, ids, axis=1).astype(np.float64)))
    exact = sigma / (sigma.sum(axis=1, keepdims=True) if norm else 1.0) * scaling
    np.testing.assert_allclose(weights, exact, rtol=(2 * 8 + k + 4) * 2.0**-23)
    if experts > k:
        assert len({tuple(sorted(r)) for r in ids}) > 1  # the rows do not all choose the same


@pytest.mark.parametrize("experts, k", SHAPES)
def test_router_breaks_ties_by_the_lower_id(bodies: Call, experts: int, k: int) -> None:
    rng = np.random.default_rng(experts + k)
    logits = rng.integers(-1, 2, size=(40, experts)).astype(F32)
    logits[0] = 0.5  # all equal
    bias = rng.choice([-0.25, 0.0, 0.25], size=(40, experts)).astype(F32)
    bias[0] = 0.0
    ids, weights = route(bodies, logits, bias, k)
    assert ids[0].tolist() == list(range(k))
    np.testing.assert_array_equal(ids, expected(bodies, logits, bias, k, 1.0, True)[0])
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("experts, k", SHAPES)
def test_router_puts_nan_behind_minus_infinity(bodies: Call, experts: int, k: int) -> None:
    rng = np.random.default_rng(experts)
    logits = rng.normal(size=(60, experts)).astype(F32)
    bias = rng.choice([-INF, INF, NAN, 0.0, 0.1], p=[0.3, 0.05, 0.3, 0.2, 0.15], size=(60, experts)).astype(
        F32
    )
    logits[rng.random((60, experts)) < 0.1] = NAN
    bias[0] = NAN  # nothing but NaN: the lowest ids, reported as what they are
    logits[1] = NAN
    bias[2], bias[2, 0] = NAN, -INF
    logits[2] = 1.0
    ids, weights = route(bodies, logits, bias, k)
    want_ids, want_weights = expected(bodies, logits, bias, k, 1.0, True)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(weights, want_weights)
    assert ids[0].tolist() == ids[1].tolist() == ids[2].tolist() == list(range(k))
    assert np.isnan(weights[1]).all()


@pytest.mark.parametrize("experts, k", SHAPES)
def test_router_survives_extreme_logits(bodies: Call, experts: int, k: int) -> None:
    """All scores underflow to 0: the 1e-20 keeps the weights from being 0 / 0."""
    logits = np.full((2, experts), -200.0, F32)
    logits[1, -1] = 200.0
    ids, weights = route(bodies, logits, np.zeros((2, experts), F32), k)
    assert ids[0].tolist() == list(range(k)) and not weights[0].any()
    assert ids[1, 0] == experts - 1 and weights[1, 0] == 1
