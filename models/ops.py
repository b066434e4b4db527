"""Operators of the MiMo family that plain PyTorch has no single call for.

Each is an ordinary differentiable function here (training uses those directly) and, under the same name, a
``torch.ops.tilecc`` custom operator with a fake implementation, so that ``torch.export`` records one node per
operator.
All arithmetic is float32. Shapes: T rows; H query heads, Hk key/value heads, D query/key and Dv value
dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# -------------------------------------------------------------------------------------- elementwise and shape


def round(x: Tensor) -> Tensor:
    """Round float32 to the nearest bf16 (ties to even) and widen again: a hand-over between kernels'
    operators."""
    return x.to(torch.bfloat16).to(torch.float32)


E4M3_MAX = 448.0


def round_e4m3(x: Tensor) -> Tensor:
    """Round float32 to the nearest e4m3 (ties to even, larger magnitudes become 448, NaN stays) and widen
    again: what a KV cache of format fp8 holds. The scale is 1."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last dimension (mimo.md 2.1)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def split_qkv(
    z: Tensor, chunks: int, heads: int, kv_heads: int, head_dim: int, v_head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut rows of the fused projection [..., N] into q [..., H, D], k [..., Hk, D], v [..., Hk, Dv].

    The matrix is stored for ``chunks`` ranks: chunk c holds its heads / chunks query heads, then its kv_heads
    / chunks key heads, then its value heads (mimo.md 3.3). A contiguous [Q | K | V] split would be wrong for
    chunks > 1.
    """
    q_rows, k_rows = heads // chunks * head_dim, kv_heads // chunks * head_dim
    v_rows = kv_heads // chunks * v_head_dim
    lead = z.shape[:-1]
    q, k, v = z.reshape(*lead, chunks, -1).split([q_rows, k_rows, v_rows], dim=-1)
    return (
        q.reshape(*lead, heads, head_dim),
        k.reshape(*lead, kv_heads, head_dim),
        v.reshape(*lead, kv_heads, v_head_dim),
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Rows [..., heads * D] as [..., heads, D]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def embed_masked(tokens: Tensor, weight: Tensor, mask_embedding: Tensor, mask_token: int) -> Tensor:
    """Rows of the embedding table; ``mask_embedding`` [hidden] stands for the token ``mask_token``, whose own
    row in the target's table is not trained (mimo.md 4.2)."""
    return torch.where((tokens == mask_token).unsqueeze(-1), mask_embedding, F.embedding(tokens, weight))


def rope_angles(positions: Tensor, theta: float, rotary_dim: int) -> Tensor:
    """Angles [..., R/2]: ``float32(p) * float32(theta^(-2j/R))``; the frequencies are computed in float64."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device) / rotary_dim
    inv_freq = torch.pow(torch.tensor(theta, dtype=torch.float64, device=positions.device), -exponent)
    return positions.to(torch.float32).unsqueeze(-1) * inv_freq.to(torch.float32)


def rope(x: Tensor, positions: Tensor, theta: float, rotary_dim: int) -> Tensor:
    """Rotate the first ``rotary_dim`` of the last dimension of x [..., heads, D] in NeoX pairs (j, j +
    R/2)."""
    angle = rope_angles(positions, theta, rotary_dim).unsqueeze(-2)
    cos, sin = angle.cos(), angle.sin()
    half = rotary_dim // 2
    a, b, rest = x.split([half, half, x.shape[-1] - rotary_dim], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


# -------------------------------------------------------------------------------------------------- attention


def softmax_with_sink(scores: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Numerators [..., K] and denominator [..., 1] of the softmax over the last dimension.

    ``sink`` (broadcast against [..., 1]) is one more score whose value is zero: it joins the maximum and the
    denominator, is not scaled and has no position (mimo.md 2.3). Masked scores are -inf.
    """
    top = scores.detach().amax(-1, keepdim=True)
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    e = torch.exp(scores - top)
    total = e.sum(-1, keepdim=True)
    return e, total if sink is None else total + torch.exp(sink - top)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    seqs: Tensor,
    sink: Tensor | None,
    window_keys: int,
    softmax_scale: float,
    layer: int,
) -> Tensor:
    """Cached attention of one decode step: o [T, H*Dv] from q [T, H, D], k [T, Hk, D], v [T, Hk, Dv].

    First every row writes its k and v at (seq, position) of k_cache [S, C, Hk, D] and v_cache [S, C, Hk, Dv];
    then row i sees the keys t of its sequence with 0 <= p_i - t and, for window_keys > 0, p_i - t <
    window_keys.
    ``layer`` only names the layer for a compiler.
    """
    k_cache[seqs, positions] = k
    v_cache[seqs, positions] = v
    rows, heads, _ = q.shape
    kv_heads, v_dim = v.shape[1], v.shape[2]
    group = heads // kv_heads
    grouped_sink = None if sink is None else sink.reshape(kv_heads, group, 1)
    out = q.new_empty(rows, heads * v_dim)
    for i in range(rows):
        p, s = int(positions[i]), int(seqs[i])
        low = max(0, p + 1 - window_keys) if window_keys else 0
        keys = k_cache[s, low : p + 1].transpose(0, 1)  # [Hk, t, D]
        values = v_cache[s, low : p + 1].transpose(0, 1)
        scores = q[i].reshape(kv_heads, group, -1) @ keys.transpose(1, 2) * softmax_scale
        e, total = softmax_with_sink(scores, grouped_sink)
        out[i] = ((e @ values) / total).reshape(-1)
    return out


def attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ctx_k: Tensor,
    ctx_v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    seqs: Tensor,
    ctx_positions: Tensor,
    sink: Tensor | None,
    window_keys: int,
    softmax_scale: float,
    layer: int,
) -> Tensor:
    """Attention of a draft block over committed keys and over itself: o [T, H*Dv] from q [T, H, D], k
    [T, Hk, D], v [T, Hk, Dv] (mimo.md 4.3).

    First ctx_k, ctx_v (shapes of k, v) are written at (seq, ctx_position) of the caches; rows with a negative
    ctx_position are not committed and are left out. The rows of one sequence are its block, which starts at
    their smallest position. Row i then sees the committed keys t of its sequence with t < start and, for
    window_keys > 0, p_i - t < window_keys, and all keys of its own block, later ones too. k and v of the
    block are not kept. ``layer`` only names the layer for a compiler.
    """
    kept = ctx_positions >= 0
    k_cache[seqs[kept], ctx_positions[kept]] = ctx_k[kept]
    v_cache[seqs[kept], ctx_positions[kept]] = ctx_v[kept]
    rows, heads, _ = q.shape
    kv_heads, v_dim = v.shape[1], v.shape[2]
    group = heads // kv_heads
    grouped_sink = None if sink is None else sink.reshape(kv_heads, group, 1)
    out = q.new_empty(rows, heads * v_dim)
    for i in range(rows):
        p, s = int(positions[i]), int(seqs[i])
        block = seqs == s
        start = int(positions[block].min())
        low = max(0, p + 1 - window_keys) if window_keys else 0
        keys = torch.cat([k_cache[s, low:start], k[block]]).transpose(0, 1)  # [Hk, t, D]
        values = torch.cat([v_cache[s, low:start], v[block]]).transpose(0, 1)
        scores = q[i].reshape(kv_heads, group, -1) @ keys.transpose(1, 2) * softmax_scale
        e, total = softmax_with_sink(scores, grouped_sink)
        out[i] = ((e @ values) / total).reshape(-1)
    return out


def attend_sequence(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, window_keys: int, softmax_scale: float
) -> Tensor:
    """Causal attention over whole sequences from position 0: o [B, S, H*Dv] from q [B, S, H, D], k, v
    likewise.

    The same visible set as :func:`attend`. A sliding layer is cut into blocks of ``window_keys`` queries,
    each of which needs only its own and the previous block of keys.
    """
    batch, length, heads, _ = q.shape
    kv_heads, v_dim = v.shape[2], v.shape[3]
    group = heads // kv_heads
    block = length if not window_keys or window_keys >= length else window_keys
    blocks = -(-length // block)
    pad = blocks * block - length

    def cut(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, pad)) if pad else x
        return x.reshape(batch, blocks, block, kv_heads, -1, x.shape[-1])

    def with_previous(x: Tensor) -> Tensor:  # [B, n, block, Hk, 1, d] -> [B, n, Hk, (2) block, d]
        x = cut(x).squeeze(4)
        if blocks > 1:
            x = torch.cat([F.pad(x[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)), x], dim=2)
        return x.transpose(2, 3)

    qs = cut(q).permute(0, 1, 3, 4, 2, 5)  # [B, n, Hk, g, block, D]
    qs = qs.reshape(batch, blocks, kv_heads, group * block, -1)
    ks, vs = with_previous(k), with_previous(v)
    scores = (qs @ ks.transpose(-1, -2)).to(torch.float32) * softmax_scale
    scores = scores.reshape(batch, blocks, kv_heads, group, block, -1)
    query = torch.arange(block, device=q.device).unsqueeze(1)
    key = torch.arange(scores.shape[-1], device=q.device) - (scores.shape[-1] - block)
    distance = query - key  # position of the query minus position of the key
    visible = (distance >= 0) & (distance < window_keys) if window_keys else distance >= 0
    mask = visible.expand(blocks, 1, 1, block, -1)
    if blocks > 1:  # the first block has no previous one
        mask = mask & ((torch.arange(blocks, device=q.device) > 0).view(-1, 1, 1, 1, 1) | (key >= 0))
    bias = torch.zeros(mask.shape, device=q.device).masked_fill(~mask, float("-inf"))
    e, total = softmax_with_sink(scores + bias, None if sink is None else sink.reshape(kv_heads, group, 1, 1))
    o = (e.reshape(batch, blocks, kv_heads, group * block, -1) @ vs).reshape(*e.shape[:-1], v_dim) / total
    o = o.permute(0, 1, 4, 2, 3, 5).reshape(batch, blocks * block, heads * v_dim)
    return o[:, :length]


# ----------------------------------------------------------------------------------------- mixture of experts


def linear_f32(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear that stays float32 when training runs under autocast: near-ties of the router decide who
    computes."""
    if x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), weight)
    return F.linear(x, weight)


def route_weights(logits: Tensor, ids: Tensor, norm_topk: bool, scaling: float) -> Tensor:
    """Weights [T, k] of chosen experts: sigmoid scores WITHOUT the correction bias, normalised, scaled
    (mimo.md 2.5)."""
    weights = torch.sigmoid(logits).gather(-1, ids)
    if norm_topk:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scaling


def route(logits: Tensor, bias: Tensor, k: int, norm_topk: bool, scaling: float) -> tuple[Tensor, Tensor]:
    """Choose k of E experts by sigmoid(logits) + bias: ids i64 [T, k] by (score descending, id ascending),
    weights."""
    score = torch.sigmoid(logits) + bias
    # A stable sort keeps the lower id first among equal scores; topk promises nothing about ties.
    ids = torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :k].contiguous()
    return ids, route_weights(logits, ids, norm_topk, scaling)


class _Permute(torch.autograd.Function):
    """Rows of x in the order of a permutation; the gradient is a gather by the inverse, not a slow
    scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def experts(
    y: Tensor, ids: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor, round_hidden: bool
) -> Tensor:
    """Weighted sum of the chosen experts' MLPs, y [T, H] -> [T, H], added in ascending expert id.

    ``gate`` and ``up`` are [E, I, H], ``down`` [E, H, I]; h = silu(gate y) * up y (no clamp) is rounded to
    bf16 when ``round_hidden``. Rows are sorted by expert so that each used expert is one matrix product.
    """
    rows, k = ids.shape
    ids, slot = torch.sort(ids, dim=-1)
    weights = weights.gather(-1, slot)
    order = torch.argsort(ids.reshape(-1), stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(rows * k, device=order.device)
    sorted_y = _Permute.apply(y.unsqueeze(1).expand(rows, k, -1).reshape(rows * k, -1), order, inverse)
    counts = torch.bincount(ids.reshape(-1), minlength=gate.shape[0]).tolist()
    parts = []
    # unbind, not indexing: its gradient is one stack instead of a full-size zero tensor per expert.
    for part, g, u, d in zip(sorted_y.split(counts), gate.unbind(), up.unbind(), down.unbind(), strict=True):
        if part.shape[0]:
            h = F.silu(F.linear(part, g)) * F.linear(part, u)
            parts.append(F.linear(round(h) if round_hidden else h, d))
    z = _Permute.apply(torch.cat(parts), inverse, order).reshape(rows, k, -1)
    first, *rest = (weights.unsqueeze(-1) * z).unbind(1)
    for term in rest:
        first = first + term
    return first


# ------------------------------------------------------------------------------------------- custom operators

_lib = torch.library.Library("tilecc", "DEF")


def _define(schema: str, eager: Any, fake: Any) -> None:
    """Register ``tilecc::<schema>``. Results are made contiguous copies: a custom operator must not alias
    inputs."""
    _lib.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.split("(")[0]
    _lib.impl(name, eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tilecc::{name}", fake, lib=_lib)


def _split_qkv_copy(
    z: Tensor, chunks: int, heads: int, kv_heads: int, head_dim: int, v_head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = split_qkv(z, chunks, heads, kv_heads, head_dim, v_head_dim)
    return q.clone(), k.clone(), v.clone()


_define("round(Tensor x) -> Tensor", round, lambda x: torch.empty_like(x))
_define("round_e4m3(Tensor x) -> Tensor", round_e4m3, lambda x: torch.empty_like(x))
_define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    rms_norm,
    lambda x, weight, eps: torch.empty_like(x),
)
_define(
    "split_qkv(Tensor z, int chunks, int heads, int kv_heads, int head_dim, int v_head_dim) "
    "-> (Tensor, Tensor, Tensor)",
    _split_qkv_copy,
    lambda z, chunks, heads, kv_heads, head_dim, v_head_dim: (
        z.new_empty(*z.shape[:-1], heads, head_dim),
        z.new_empty(*z.shape[:-1], kv_heads, head_dim),
        z.new_empty(*z.shape[:-1], kv_heads, v_head_dim),
    ),
)
_define(
    "rope(Tensor x, Tensor positions, float theta, int rotary_dim) -> Tensor",
    rope,
    lambda x, positions, theta, rotary_dim: torch.empty_like(x),
)
_define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor positions, "
    "Tensor seqs, Tensor? sink, int window_keys, float softmax_scale, int layer) -> Tensor",
    attend,
    lambda q, k, v, k_cache, v_cache, positions, seqs, sink, window_keys, softmax_scale, layer: q.new_empty(
        q.shape[0], q.shape[1] * v.shape[2]
    ),
)
_define(
    "attend_block(Tensor q, Tensor k, Tensor v, Tensor ctx_k, Tensor ctx_v, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor positions, Tensor seqs, Tensor ctx_positions, Tensor? sink, int window_keys, "
    "float softmax_scale, int layer) -> Tensor",
    attend_block,
    lambda q, k, v, *rest: q.new_empty(q.shape[0], q.shape[1] * v.shape[2]),
)
_define(
    "split_heads(Tensor x, int heads) -> Tensor",
    lambda x, heads: split_heads(x, heads).clone(),
    lambda x, heads: x.new_empty(*x.shape[:-1], heads, x.shape[-1] // heads),
)
_define(
    "embed_masked(Tensor tokens, Tensor weight, Tensor mask_embedding, int mask_token) -> Tensor",
    embed_masked,
    lambda tokens, weight, mask_embedding, mask_token: weight.new_empty(tokens.shape[0], weight.shape[1]),
)
_define(
    "route(Tensor logits, Tensor bias, int k, bool norm_topk, float scaling) -> (Tensor, Tensor)",
    route,
    lambda logits, bias, k, norm_topk, scaling: (
        logits.new_empty(*logits.shape[:-1], k, dtype=torch.int64),
        logits.new_empty(*logits.shape[:-1], k),
    ),
)
_define(
    "experts(Tensor y, Tensor ids, Tensor weights, Tensor gate, Tensor up, Tensor down, bool round_hidden) "
    "-> Tensor",
    experts,
    lambda y, ids, weights, gate, up, down, round_hidden: torch.empty_like(y),
)
