"""The ops of a Graph: what each reads, its attributes and the shapes it makes; `tilecc ops` prints them.

An op's `infer` function gets the operand shapes (in the order of `operands`) and the attributes, and returns
the result shapes. It raises `ShapeError` with one line of text when they do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tilecc.ir.graph import Shape

Kind = Literal["value", "param", "state"]


class ShapeError(Exception):
    """Operand shapes or attributes do not fit the op. The text becomes part of a diagnostic."""


@dataclass(frozen=True)
class Operand:
    """An input of an op: where it may come from, and its dtype. Only the last may be optional."""

    name: str
    kind: Kind = "value"
    dtype: str = "f32"
    optional: bool = False


Infer = Callable[[Sequence[Shape], dict[str, Any]], list[Shape]]


@dataclass(frozen=True)
class OpInfo:
    """One row of the op table. `torch` is how a model file writes it; `results` are (name, dtype) pairs."""

    doc: str
    torch: str
    operands: tuple[Operand, ...]
    infer: Infer
    results: tuple[tuple[str, str], ...] = (("x", "f32"),)
    attrs: dict[str, type] = field(default_factory=dict)


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def _rank(shape: Shape, rank: int, what: str) -> Shape:
    _need(len(shape) == rank, f"{what} must have {rank} dimensions, has {_text(shape)}")
    return shape


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _same(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    """Elementwise: all operands have one shape, no broadcasting."""
    for other in shapes[1:]:
        _need(other == shapes[0], f"operands {_text(shapes[0])} and {_text(other)} differ in shape")
    return [shapes[0]]


def _embedding(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    (rows,), (_, width) = _rank(shapes[0], 1, "tokens"), _rank(shapes[1], 2, "weight")
    return [(rows, width)]


def _rms_norm(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    x, weight = shapes[0], _rank(shapes[1], 1, "weight")
    _need(len(x) in (2, 3), f"x must have 2 dimensions, or 3 for a norm of each head, has {_text(x)}")
    _need(x[-1] == weight[0], f"x {_text(x)} does not fit the weight {_text(weight)}")
    _need(attrs["eps"] > 0, f"eps must be positive, is {attrs['eps']}")
    return [x]


def _linear(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    x, weight = _rank(shapes[0], 2, "x"), _rank(shapes[1], 2, "weight")
    _need(x[1] == weight[1], f"x {_text(x)} does not fit the weight {_text(weight)}")
    return [(x[0], weight[0])]


def _split_qkv(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    z = _rank(shapes[0], 2, "z")
    chunks, heads, kv_heads = attrs["chunks"], attrs["heads"], attrs["kv_heads"]
    dim, v_dim = attrs["head_dim"], attrs["v_head_dim"]
    _need(min(chunks, heads, kv_heads, dim, v_dim) > 0, "chunks, heads and head sizes must be positive")
    _need(heads % chunks == 0, f"{heads} heads do not divide into {chunks} chunks")
    _need(kv_heads % chunks == 0, f"{kv_heads} KV heads do not divide into {chunks} chunks")
    rows = heads * dim + kv_heads * (dim + v_dim)
    _need(z[1] == rows, f"z {_text(z)} must have {rows} columns: {heads} Q, {kv_heads} K and V heads")
    return [(z[0], heads, dim), (z[0], kv_heads, dim), (z[0], kv_heads, v_dim)]


def _rope(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    x, positions = _rank(shapes[0], 3, "x"), _rank(shapes[1], 1, "positions")
    rotary = attrs["rotary_dim"]
    _need(x[0] == positions[0], f"x {_text(x)} and positions {_text(positions)} differ in rows")
    fits = rotary > 0 and rotary % 2 == 0 and isinstance(x[2], int) and rotary <= x[2]
    _need(fits, f"rotary_dim must be even and within the head size {x[2]}, is {rotary}")
    _need(attrs["theta"] > 0, f"theta must be positive, is {attrs['theta']}")
    return [x]


def _attend(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    q, k, v = (_rank(shape, 3, name) for shape, name in zip(shapes, "qkv", strict=False))
    k_cache, v_cache = (_rank(shape, 4, name) for shape, name in zip(shapes[3:5], ("k", "v"), strict=True))
    heads, dim, kv_heads = q[1], q[2], k[1]
    _need(isinstance(heads, int) and isinstance(kv_heads, int), "the numbers of heads must be constants")
    assert isinstance(heads, int) and isinstance(kv_heads, int)
    _need(heads % kv_heads == 0, f"{heads} query heads do not divide into {kv_heads} KV heads")
    _need(k[2] == dim, f"q has head size {dim}, k has {k[2]}")
    _need(v[:2] == k[:2], f"k {_text(k)} and v {_text(v)} differ in rows or heads")
    _need(k_cache[2:] == k[1:], f"k {_text(k)} does not fit its cache {_text(k_cache)}")
    _need(v_cache[2:] == v[1:], f"v {_text(v)} does not fit its cache {_text(v_cache)}")
    for rows in (k[:1], shapes[5], shapes[6]):
        _need(rows == q[:1], f"q has {q[0]} rows, another operand has {_text(rows)}")
    if len(shapes) > 7:
        _need(shapes[7] == (heads,), f"sink {_text(shapes[7])} must have one entry per query head ({heads})")
    _need(attrs["window_keys"] >= 0, f"window_keys must be 0 (global) or more, is {attrs['window_keys']}")
    assert isinstance(v[2], int)
    return [(q[0], heads * v[2])]


def _attend_block(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    q, k, v, ctx_k, ctx_v = shapes[:5]
    _need(ctx_k == k and ctx_v == v, f"context keys {_text(ctx_k)}, values {_text(ctx_v)} differ from k, v")
    _need(shapes[9] == shapes[7], f"ctx_positions {_text(shapes[9])} must have one entry per row")
    return _attend([q, k, v, *shapes[5:9], *shapes[10:]], attrs)


def _split_heads(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    x, heads = _rank(shapes[0], 2, "x"), attrs["heads"]
    _need(heads > 0 and isinstance(x[1], int) and x[1] % heads == 0, f"{_text(x)} has no {heads} equal heads")
    assert isinstance(x[1], int)
    return [(x[0], heads, x[1] // heads)]


def _embed_masked(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    made = _embedding(shapes[:2], attrs)
    _need(shapes[2] == made[0][1:], f"mask_embedding {_text(shapes[2])} does not fit {_text(shapes[1])}")
    return made


def _route(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    logits, bias = _rank(shapes[0], 2, "logits"), _rank(shapes[1], 1, "bias")
    _need(logits[1] == bias[0], f"logits {_text(logits)} do not fit the bias {_text(bias)}")
    k, experts = attrs["k"], logits[1]
    _need(isinstance(experts, int) and 0 < k <= experts, f"k must be 1 to {experts} experts, is {k}")
    return [(logits[0], k), (logits[0], k)]


def _experts(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    y, ids, weights = (_rank(s, 2, n) for s, n in zip(shapes, ("y", "ids", "weights"), strict=False))
    gate, up, down = (_rank(s, 3, n) for s, n in zip(shapes[3:], ("gate", "up", "down"), strict=True))
    _need(ids == weights, f"ids {_text(ids)} and weights {_text(weights)} differ in shape")
    _need(ids[0] == y[0], f"y {_text(y)} and ids {_text(ids)} differ in rows")
    _need(gate == up, f"gate {_text(gate)} and up {_text(up)} differ in shape")
    _need(gate[2] == y[1], f"y {_text(y)} does not fit the gate {_text(gate)}")
    want = (gate[0], gate[2], gate[1])
    _need(down == want, f"down {_text(down)} must be {_text(want)} to fit the gate {_text(gate)}")
    return [y]


def _argmax(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    return [_rank(shapes[0], 2, "logits")[:1]]


def _all_ranks(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    _need(attrs["ranks"] > 1, f"an exchange needs 2 ranks or more, has {attrs['ranks']}")
    return [shapes[0]]


def _rank_part(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    (x,) = _all_ranks(shapes, attrs)
    rows, columns, ranks = *_rank(x, 2, "x"), attrs["ranks"]
    _need(isinstance(columns, int) and columns % ranks == 0, f"{_text(x)} has no {ranks} equal parts")
    assert isinstance(columns, int)
    return [(rows, columns // ranks)]


def _argmax_all(shapes: Sequence[Shape], attrs: dict[str, Any]) -> list[Shape]:
    return _argmax(_all_ranks(shapes, attrs), attrs)


_X = Operand("x")
_POSITIONS = Operand("positions", dtype="i64")

GRAPH_OPS: dict[str, OpInfo] = {
    "embedding": OpInfo(
        "row of the embedding table of each token",
        "F.embedding(tokens, weight)",
        (Operand("tokens", dtype="i64"), Operand("weight", "param")),
        _embedding,
    ),
    "round": OpInfo("value rounded to bf16, held in float32", "torch.ops.tilecc.round(x)", (_X,), _same),
    "round_e4m3": OpInfo(
        "value rounded to e4m3 with scale 1, held in float32: keys and values of an fp8 cache",
        "torch.ops.tilecc.round_e4m3(x)",
        (_X,),
        _same,
    ),
    "rms_norm": OpInfo(
        "x * rsqrt(mean(x^2) + eps) * weight over the last dimension, in float32",
        "torch.ops.tilecc.rms_norm(x, weight, eps)",
        (_X, Operand("weight", "param")),
        _rms_norm,
        attrs={"eps": float},
    ),
    "linear": OpInfo(
        "x @ weight.T, no bias, float32 accumulation",
        "F.linear(x, weight)",
        (_X, Operand("weight", "param")),
        _linear,
    ),
    "split_qkv": OpInfo(
        "fused projection [T, rows] split into q [T, heads, dim], k and v; the rows are stored per chunk as"
        " Q, K and V heads",
        "torch.ops.tilecc.split_qkv(z, chunks, heads, kv_heads, head_dim, v_head_dim)",
        (Operand("z"),),
        _split_qkv,
        (("q", "f32"), ("k", "f32"), ("v", "f32")),
        {"chunks": int, "heads": int, "kv_heads": int, "head_dim": int, "v_head_dim": int},
    ),
    "rope": OpInfo(
        "rotary embedding of the first rotary_dim entries of each head, NeoX pairs (j, j + rotary_dim/2)",
        "torch.ops.tilecc.rope(x, positions, theta, rotary_dim)",
        (_X, _POSITIONS),
        _rope,
        attrs={"theta": float, "rotary_dim": int},
    ),
    "scale": OpInfo("x * factor", "x * factor", (_X,), _same, attrs={"factor": float}),
    "attend": OpInfo(
        "writes k and v of all rows into the caches, then attention of each row over its sequence, causal,"
        " within window_keys (0: global), with an optional sink logit per head",
        "torch.ops.tilecc.attend(q, k, v, k_cache, v_cache, positions, seqs, sink, window_keys,"
        " softmax_scale, layer)",
        (
            Operand("q"),
            Operand("k"),
            Operand("v"),
            Operand("k_cache", "state"),
            Operand("v_cache", "state"),
            _POSITIONS,
            Operand("seqs", dtype="i64"),
            Operand("sink", "param", optional=True),
        ),
        _attend,
        attrs={"window_keys": int, "softmax_scale": float, "layer": int},
    ),
    "attend_block": OpInfo(
        "writes the keys and values of committed rows (ctx_position >= 0) into the caches, then attention of"
        " each row over its sequence before the block, within window_keys (0: all), and over all rows of its"
        " own block, with an optional sink logit per head",
        "torch.ops.tilecc.attend_block(q, k, v, ctx_k, ctx_v, k_cache, v_cache, positions, seqs,"
        " ctx_positions, sink, window_keys, softmax_scale, layer)",
        (
            Operand("q"),
            Operand("k"),
            Operand("v"),
            Operand("ctx_k"),
            Operand("ctx_v"),
            Operand("k_cache", "state"),
            Operand("v_cache", "state"),
            _POSITIONS,
            Operand("seqs", dtype="i64"),
            Operand("ctx_positions", dtype="i64"),
            Operand("sink", "param", optional=True),
        ),
        _attend_block,
        attrs={"window_keys": int, "softmax_scale": float, "layer": int},
    ),
    "split_heads": OpInfo(
        "[T, heads * dim] as [T, heads, dim]",
        "torch.ops.tilecc.split_heads(x, heads)",
        (_X,),
        _split_heads,
        attrs={"heads": int},
    ),
    "embed_masked": OpInfo(
        "row of the embedding table of each token, mask_embedding for the token mask_token",
        "torch.ops.tilecc.embed_masked(tokens, weight, mask_embedding, mask_token)",
        (Operand("tokens", dtype="i64"), Operand("weight", "param"), Operand("mask_embedding", "param")),
        _embed_masked,
        attrs={"mask_token": int},
    ),
    "add": OpInfo("x + y, equal shapes", "x + y", (_X, Operand("y")), _same),
    "mul": OpInfo("x * y, equal shapes", "x * y", (_X, Operand("y")), _same),
    "silu": OpInfo("x * sigmoid(x)", "F.silu(x)", (_X,), _same),
    "route": OpInfo(
        "top-k experts by sigmoid(logits) + bias (larger, then lower id); weights are the sigmoids,"
        " normalised if norm_topk, times scaling",
        "torch.ops.tilecc.route(logits, bias, k, norm_topk, scaling)",
        (Operand("logits"), Operand("bias", "param")),
        _route,
        (("ids", "i64"), ("weights", "f32")),
        {"k": int, "norm_topk": bool, "scaling": float},
    ),
    "experts": OpInfo(
        "sum over the routed experts, ascending id, of weight * down(silu(gate y) * up y); round_hidden"
        " rounds the hidden vector to bf16",
        "torch.ops.tilecc.experts(y, ids, weights, gate, up, down, round_hidden)",
        (
            Operand("y"),
            Operand("ids", dtype="i64"),
            Operand("weights"),
            Operand("gate", "param"),
            Operand("up", "param"),
            Operand("down", "param"),
        ),
        _experts,
        attrs={"round_hidden": bool},
    ),
    "argmax": OpInfo(
        "index of the largest entry of each row, the lowest of equals",
        "torch.argmax(x, dim=-1)",
        (Operand("logits"),),
        _argmax,
        (("index", "i64"),),
    ),
}
"""What a model file can be made of."""

DRAFT_OPS = ("attend_block", "split_heads", "embed_masked")
"""Those that only a draft is made of (models/dflash.py)."""

EXCHANGE_OPS: dict[str, OpInfo] = {
    "all_reduce": OpInfo(
        "sum over the ranks, in rank order, of x rounded to bf16: the same float32 bits on every rank",
        "",
        (_X,),
        _all_ranks,
        attrs={"ranks": int},
    ),
    "rank_part": OpInfo(
        "the columns of x that this rank's part of the next weight multiplies: part rank of ranks equal ones",
        "",
        (_X,),
        _rank_part,
        attrs={"ranks": int},
    ),
    "argmax_all": OpInfo(
        "index of the largest entry of each row over the shards of all ranks, the lowest of equals; rank r"
        " holds entries r * width to (r + 1) * width",
        "",
        (Operand("logits"),),
        _argmax_all,
        (("index", "i64"),),
        {"ranks": int},
    ),
}
"""What the pass `shard` adds: ops in which the ranks meet."""

OPS: dict[str, OpInfo] = GRAPH_OPS | EXCHANGE_OPS
