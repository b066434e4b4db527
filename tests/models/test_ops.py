"""The operators of models/ops.py against formulas written out in float64 numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from tilecc.models import ops

Generator = np.random.Generator


def close(got: torch.Tensor, want: np.ndarray, tolerance: float = 2e-6) -> None:
    """Largest error over largest value; float32 arithmetic on sums of at most a few hundred terms."""
    assert got.shape == want.shape
    scale = np.abs(want).max()
    assert scale > 0.1
    assert np.abs(got.double().numpy() - want).max() <= tolerance * scale


def tensor(random: Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


@pytest.fixture
def random() -> Generator:
    return np.random.default_rng(0)


def test_rms_norm(random: Generator) -> None:
    x, w = tensor(random, 5, 40) * 3, tensor(random, 40)
    d = x.double().numpy()
    want = d / np.sqrt((d**2).mean(-1, keepdims=True) + 1e-2) * w.double().numpy()
    close(torch.ops.tilecc.rms_norm(x, w, 1e-2), want)


def test_round_is_bf16_ties_to_even() -> None:
    x = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.14159])
    want = torch.tensor([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -3.140625])
    assert torch.equal(torch.ops.tilecc.round(x), want)


def test_split_qkv_follows_the_stored_row_order() -> None:
    """Rows numbered; two chunks, six query and four KV heads: chunk = [3 Q | 2 K | 2 V]."""
    heads, kv_heads, d, dv = 6, 4, 3, 2
    z = torch.arange((heads + kv_heads) * d + kv_heads * dv, dtype=torch.float32)[None]
    q, k, v = torch.ops.tilecc.split_qkv(z, 2, heads, kv_heads, d, dv)
    chunk = 3 * d + 2 * d + 2 * dv
    for head in range(heads):
        first = head // 3 * chunk + head % 3 * d
        assert q[0, head].tolist() == list(range(first, first + d))
    for head in range(kv_heads):
        first = head // 2 * chunk + 3 * d + head % 2 * d
        assert k[0, head].tolist() == list(range(first, first + d))
        first = head // 2 * chunk + 5 * d + head % 2 * dv
        assert v[0, head].tolist() == list(range(first, first + dv))


def test_rope_rotates_neox_pairs_and_leaves_the_rest(random: Generator) -> None:
    """Pair (j, j + R/2) is the complex number rotated by p * theta^(-2j/R); dimensions from R on are
    untouched."""
    x, theta, rotary = tensor(random, 3, 2, 10), 1000.0, 6
    positions = torch.tensor([0, 1, 700])
    got = torch.ops.tilecc.rope(x, positions, theta, rotary)
    assert torch.equal(got[..., rotary:], x[..., rotary:]) and torch.equal(got[0], x[0])
    d = x.double().numpy()
    z = d[..., :3] + 1j * d[..., 3:6]
    angle = positions.numpy()[:, None] * theta ** (-2 * np.arange(3) / rotary)
    z = z * np.exp(1j * angle)[:, None]
    # A float32 angle of 700 radians is known to 2^-15 only.
    close(got[..., :rotary], np.concatenate([z.real, z.imag], -1), 5e-5)


def attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, sink: float | None, scale: float
) -> np.ndarray:
    """One query over its visible keys; the sink is one more softmax column whose value is zero."""
    scores = keys @ q * scale
    columns = scores if sink is None else np.append(scores, sink)
    p = np.exp(columns - columns.max())
    p /= p.sum()
    return p[: len(scores)] @ values


@pytest.mark.parametrize("window", [0, 1, 4, 100])
@pytest.mark.parametrize("with_sink", [False, True])
def test_attend_and_attend_sequence(random: Generator, window: int, with_sink: bool) -> None:
    """Every position of a sequence, cached row by row and as a whole, against the formula key by key."""
    length, heads, kv_heads, d, dv, scale = 11, 4, 2, 6, 5, 0.7
    q, k, v = (tensor(random, length, *s) for s in ((heads, d), (kv_heads, d), (kv_heads, dv)))
    sink = tensor(random, heads) * 2 if with_sink else None
    want = np.zeros((length, heads * dv))
    for p in range(length):
        visible = [t for t in range(length) if t <= p and (window == 0 or p - t < window)]
        assert len(visible) == min(p + 1, window or p + 1)
        for h in range(heads):
            g = h // (heads // kv_heads)
            b = None if sink is None else float(sink[h])
            row = attention(
                q[p, h].double().numpy(),
                k[visible, g].double().numpy(),
                v[visible, g].double().numpy(),
                b,
                scale,
            )
            want[p, h * dv : (h + 1) * dv] = row
    close(ops.attend_sequence(q[None], k[None], v[None], sink, window, scale)[0], want)
    caches = [torch.full((3, length, kv_heads, n), torch.nan) for n in (d, dv)]
    rows = []
    for p in range(length):
        one = slice(p, p + 1)
        at, seq = torch.tensor([p]), torch.tensor([2])
        args = (q[one], k[one], v[one], *caches, at, seq, sink, window, scale, 0)
        rows.append(torch.ops.tilecc.attend(*args))
    close(torch.cat(rows), want)


def test_sink_is_not_scaled() -> None:
    """One key with score s * scale and a sink b: weight 1 / (1 + exp(b - s * scale)), times the value."""
    q = k = torch.tensor([[[3.0]]])
    v = torch.tensor([[[2.0]]])
    caches = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    at = torch.tensor([0])
    got = torch.ops.tilecc.attend(q, k, v, *caches, at, at, torch.tensor([4.0]), 8, 0.5, 0)
    assert float(got) == pytest.approx(2 / (1 + np.exp(4.0 - 4.5)), rel=1e-6)


def test_attend_keeps_the_rows_of_sequences_apart(random: Generator) -> None:
    """Rows of three sequences in one step, out of order: each row is bit-equal to a step of its own."""
    rows = [(0, 0), (2, 0), (0, 1), (1, 0), (0, 2), (2, 1)]  # (sequence, position)
    positions, seqs = (torch.tensor([r[i] for r in rows]) for i in (1, 0))
    q, k, v = tensor(random, 6, 4, 6), tensor(random, 6, 2, 6), tensor(random, 6, 2, 5)

    def fresh() -> list[torch.Tensor]:
        return [torch.zeros(3, 4, 2, n) for n in (6, 5)]

    together = torch.ops.tilecc.attend(q, k, v, *fresh(), positions, seqs, None, 2, 1.0, 0)
    for seq in range(3):
        caches = fresh()
        for i in (i for i, r in enumerate(rows) if r[0] == seq):
            one = slice(i, i + 1)
            args = (q[one], k[one], v[one], *caches, positions[one], seqs[one], None, 2, 1.0, 0)
            assert torch.equal(torch.ops.tilecc.attend(*args)[0], together[i])


def test_route_orders_by_score_then_id_and_weights_without_bias() -> None:
    """Four experts with equal biased score; the bias chooses but does not weigh."""
    logits = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, -9.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.6])
    ids, weights = torch.ops.tilecc.route(logits, bias, 4, True, 2.0)
    # Scores .5 .5 .731 .5 1.0 .6001 -> 4, 2, 5, then the lowest of the tied 0, 1, 3.
    assert ids.tolist() == [[4, 2, 5, 0]]
    sigmoid = 1 / (1 + np.exp(-np.array([0.0, 1.0, -9.0, 0.0])))
    close(weights, 2 * (sigmoid / sigmoid.sum())[None])
    _, plain = torch.ops.tilecc.route(logits, bias, 4, False, 1.0)
    close(plain, sigmoid[None])


@pytest.mark.parametrize("count", [2, 5, 64])
def test_route_ties_take_the_lowest_ids(count: int) -> None:
    ids, _ = torch.ops.tilecc.route(torch.zeros(3, count), torch.zeros(count), 2, True, 1.0)
    assert ids.tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("round_hidden", [False, True])
def test_experts(random: Generator, round_hidden: bool) -> None:
    """Against a loop over rows and experts; unused experts and uneven loads included."""
    rows, count, hidden, inner = 7, 6, 12, 10
    y = tensor(random, rows, hidden)
    ids = torch.tensor([[4, 0], [4, 1], [0, 4], [4, 3], [3, 4], [1, 0], [4, 0]])
    weights = tensor(random, rows, 2).abs()
    gate, up, down = (tensor(random, count, *s) for s in ((inner, hidden), (inner, hidden), (hidden, inner)))
    want = np.zeros((rows, hidden))
    for r in range(rows):
        for e, w in zip(ids[r].tolist(), weights[r].tolist(), strict=True):
            g, u = (m[e].double().numpy() @ y[r].double().numpy() for m in (gate, up))
            h = g / (1 + np.exp(-g)) * u
            h = torch.from_numpy(h).bfloat16().double().numpy() if round_hidden else h
            want[r] += w * (down[e].double().numpy() @ h)
    # A hidden value that float32 and float64 round to different bf16 neighbours moves a sum by 2^-9 of one
    # term.
    close(
        torch.ops.tilecc.experts(y, ids, weights, gate, up, down, round_hidden),
        want,
        1e-2 if round_hidden else 2e-6,
    )


def test_experts_do_not_depend_on_the_order_of_ids(random: Generator) -> None:
    """Summed in ascending expert id, so shuffled ids with their weights give the same bits."""
    y, weights = tensor(random, 3, 8), tensor(random, 3, 4)
    mats = [tensor(random, 6, *s) for s in ((8, 8), (8, 8), (8, 8))]
    ids = torch.tensor([[5, 2, 0, 3], [1, 0, 4, 2], [3, 5, 4, 1]])
    order = torch.tensor([2, 0, 3, 1])
    one = torch.ops.tilecc.experts(y, ids, weights, *mats, True)
    assert torch.equal(one, torch.ops.tilecc.experts(y, ids[:, order], weights[:, order], *mats, True))


def test_plain_functions_are_differentiable() -> None:
    """Gradients of the training path against finite differences, in float64."""
    torch.manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    at = torch.tensor([0, 1, 5])
    check = torch.autograd.gradcheck
    assert check(lambda x, w: ops.rms_norm(x, w, 1e-3), (leaf(3, 4), leaf(4)))
    ids = torch.tensor([[0, 2], [2, 1], [2, 0]])
    arguments = (leaf(3, 4), leaf(3, 2), leaf(4, 5, 4), leaf(4, 5, 4), leaf(4, 4, 5))
    assert check(lambda y, w, g, u, d: ops.experts(y, ids, w, g, u, d, False), arguments)
    assert check(lambda z: ops.route_weights(z, ids, True, 1.5), (leaf(3, 4),))
    # rope and attend_sequence hold float32 inside (angles, scores): compare with a float32 tolerance.
    assert check(lambda x: ops.rope(x, at, 100.0, 4), (leaf(3, 2, 6),), eps=1e-4, atol=1e-4)
    arguments = (leaf(1, 5, 4, 3), leaf(1, 5, 2, 3), leaf(1, 5, 2, 2), leaf(4))
    for window in (0, 2):
        assert check(
            lambda q, k, v, s, w=window: ops.attend_sequence(q, k, v, s, w, 0.5),
            arguments,
            eps=1e-3,
            atol=1e-3,
            rtol=1e-2,
        )


def test_custom_operators_obey_the_dispatcher() -> None:
    """torch's own checks of schema, fake results and mutation."""
    q, k, v = torch.randn(3, 4, 6), torch.randn(3, 2, 6), torch.randn(3, 2, 5)
    caches = (torch.zeros(1, 4, 2, 6), torch.zeros(1, 4, 2, 5))
    at, seq = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    op = torch.ops.tilecc
    tests = ("test_schema", "test_faketensor")
    check = torch.library.opcheck
    check(op.round.default, (q,), test_utils=tests)
    check(op.rms_norm.default, (q, torch.ones(6), 1e-5), test_utils=tests)
    check(op.split_qkv.default, (torch.randn(3, 46), 2, 4, 2, 6, 5), test_utils=tests)
    check(op.rope.default, (q, at, 100.0, 4), test_utils=tests)
    check(op.attend.default, (q, k, v, *caches, at, seq, None, 0, 1.0, 0), test_utils=tests)
    check(op.attend.default, (q, k, v, *caches, at, seq, torch.zeros(4), 2, 1.0, 0), test_utils=tests)
    check(op.route.default, (torch.randn(3, 5), torch.zeros(5), 2, True, 1.0), test_utils=tests)
    ids, weights = op.route(torch.randn(3, 5), torch.zeros(5), 2, True, 1.0)
    mats = (torch.randn(5, 4, 6), torch.randn(5, 4, 6), torch.randn(5, 6, 4))
    check(op.experts.default, (torch.randn(3, 6), ids, weights, *mats, True), test_utils=tests)


def test_round_e4m3_is_the_nearest_code_and_saturates() -> None:
    """Against all codes of the format as ml_dtypes has them; ties go to the even code."""
    codes = np.arange(256, dtype=np.uint8)
    values = np.unique(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)[~np.isin(codes & 127, 127)])
    rng = np.random.default_rng(2)
    between = (values[1:] + values[:-1]) / 2
    x = np.concatenate([values, between, rng.standard_normal(2000) * 10.0 ** rng.integers(-4, 4, 2000)])
    x = np.concatenate([x, [1e9, -1e9, 448, 460, np.inf, -np.inf]]).astype(np.float32)
    got = ops.round_e4m3(torch.from_numpy(x)).numpy().astype(np.float64)
    near = np.abs(values - np.clip(x, -448, 448).astype(np.float64)[:, None])
    assert np.isin(got, values).all()
    assert (np.abs(got - np.clip(x, -448, 448)) == near.min(axis=1)).all()
    ties = np.flatnonzero((near == near.min(axis=1)[:, None]).sum(axis=1) == 2)
    stored = got[ties].astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert len(ties) >= len(between) and (stored % 2 == 0).all()
    assert np.isnan(ops.round_e4m3(torch.tensor([float("nan")])).numpy()).all()
