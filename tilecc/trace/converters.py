"""What each torch op of an exported decode step becomes: one small function per op, in the table CONVERTERS.

A converter is called with the FX node and the op's arguments in schema order, defaults filled in. It returns
a `Call` (one node of the Graph), or the argument the node is equal to (a no-op), or None (a check without a
result). It raises `Unsupported` for a form of the op that has no counterpart.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx.node import Node as FxNode

from tilecc.ir.graph import AttrValue
from tilecc.ir.graph_ops import GRAPH_OPS


class Unsupported(Exception):
    """This form of a known op cannot be lowered. The text says what the op must look like."""


@dataclass(frozen=True)
class Call:
    """A node to be: op, operands (FX nodes; None is left out), attributes."""

    op: str
    operands: Sequence[FxNode | None]
    attrs: dict[str, Any] = field(default_factory=dict)


Converted: TypeAlias = "Call | FxNode | None"
Converter = Callable[..., Converted]

CONVERTERS: dict[str, Converter] = {}


def converter(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter for torch ops such as `aten.linear.default`."""

    def register(function: Converter) -> Converter:
        for name in names:
            CONVERTERS[name] = function
        return function

    return register


def lowerable_ops() -> dict[str, str]:
    """Graph op -> how a model file writes it, for the ops that can be lowered."""
    return {name: info.torch for name, info in GRAPH_OPS.items()}


def attr_of(op: str, name: str, value: object) -> AttrValue:
    """Constant of the model as an attribute of the type the op table gives it. Raises Unsupported."""
    want = GRAPH_OPS[op].attrs[name]
    if want is float and isinstance(value, int | float):
        return float(value)
    if want is int and isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if want is bool and isinstance(value, bool):
        return value
    raise Unsupported(f"{name} must be a constant {want.__name__}")


# ------------------------------------------------------------------------------------------- plain PyTorch


@converter("aten.embedding.default")
def _embedding(node: FxNode, weight: Any, tokens: Any, padding: Any, scale: Any, sparse: Any) -> Converted:
    return Call("embedding", (tokens, weight))


@converter("aten.linear.default")
def _linear(node: FxNode, x: Any, weight: Any, bias: Any) -> Converted:
    if bias is not None:
        raise Unsupported("linear has a bias; only `F.linear(x, weight)` can be lowered")
    return Call("linear", (x, weight))


@converter("aten.add.Tensor")
def _add(node: FxNode, x: Any, y: Any, alpha: Any) -> Converted:
    if not isinstance(x, FxNode) or not isinstance(y, FxNode) or alpha != 1:
        raise Unsupported("add of a constant; only `x + y` of two tensors can be lowered")
    return Call("add", (x, y))


@converter("aten.mul.Tensor", "aten.mul.Scalar")
def _mul(node: FxNode, x: Any, y: Any) -> Converted:
    if isinstance(y, int | float):
        return Call("scale", (x,), {"factor": y})
    if isinstance(x, int | float):
        return Call("scale", (y,), {"factor": x})
    return Call("mul", (x, y))


@converter("aten.silu.default")
def _silu(node: FxNode, x: Any) -> Converted:
    return Call("silu", (x,))


@converter("aten.argmax.default")
def _argmax(node: FxNode, x: Any, dim: Any, keepdim: Any) -> Converted:
    last = x.meta["val"].ndim - 1
    if dim not in (-1, last) or keepdim:
        raise Unsupported("only `torch.argmax(x, dim=-1)` without keepdim can be lowered")
    return Call("argmax", (x,))


# ------------------------------------------------------------------------------- custom ops of models/ops.py


@converter("tilecc.round.default")
def _round(node: FxNode, x: Any) -> Converted:
    return Call("round", (x,))


@converter("tilecc.round_e4m3.default")
def _round_e4m3(node: FxNode, x: Any) -> Converted:
    return Call("round_e4m3", (x,))


@converter("tilecc.rms_norm.default")
def _rms_norm(node: FxNode, x: Any, weight: Any, eps: Any) -> Converted:
    return Call("rms_norm", (x, weight), {"eps": eps})


@converter("tilecc.split_qkv.default")
def _split_qkv(
    node: FxNode, z: Any, chunks: Any, heads: Any, kv_heads: Any, head_dim: Any, v_head_dim: Any
) -> Converted:
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "v_head_dim": v_head_dim}
    return Call("split_qkv", (z,), {"chunks": chunks, **sizes})


@converter("tilecc.rope.default")
def _rope(node: FxNode, x: Any, positions: Any, theta: Any, rotary_dim: Any) -> Converted:
    return Call("rope", (x, positions), {"theta": theta, "rotary_dim": rotary_dim})


@converter("tilecc.attend.default")
def _attend(node: FxNode, *arguments: Any) -> Converted:
    *operands, window_keys, softmax_scale, layer = arguments
    attrs = {"window_keys": window_keys, "softmax_scale": softmax_scale, "layer": layer}
    return Call("attend", operands, attrs)


@converter("tilecc.attend_block.default")
def _attend_block(node: FxNode, *arguments: Any) -> Converted:
    *operands, window_keys, softmax_scale, layer = arguments
    attrs = {"window_keys": window_keys, "softmax_scale": softmax_scale, "layer": layer}
    return Call("attend_block", operands, attrs)


@converter("tilecc.split_heads.default")
def _split_heads(node: FxNode, x: Any, heads: Any) -> Converted:
    return Call("split_heads", (x,), {"heads": heads})


@converter("tilecc.embed_masked.default")
def _embed_masked(node: FxNode, tokens: Any, weight: Any, mask_embedding: Any, mask_token: Any) -> Converted:
    return Call("embed_masked", (tokens, weight, mask_embedding), {"mask_token": mask_token})


@converter("tilecc.route.default")
def _route(node: FxNode, logits: Any, bias: Any, k: Any, norm_topk: Any, scaling: Any) -> Converted:
    return Call("route", (logits, bias), {"k": k, "norm_topk": norm_topk, "scaling": scaling})


@converter("tilecc.experts.default")
def _experts(node: FxNode, *arguments: Any) -> Converted:
    *operands, round_hidden = arguments
    return Call("experts", operands, {"round_hidden": round_hidden})


# ---------------------------------------------------------------------------------------------------- no-ops


@converter(
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift_fresh_copy.default",
)
def _same_value(node: FxNode, x: Any, *rest: Any) -> Converted:
    """Values are immutable here, so a copy or another view of all of it is the value itself."""
    return _argument(x)


@converter(
    "aten._to_copy.default",
    "aten.to.device",
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.other",
)
def _to(node: FxNode, x: Any, *rest: Any) -> Converted:
    have, want = x.meta["val"].dtype, node.meta["val"].dtype
    if have != want:
        known = "`torch.ops.tilecc.round(x)` rounds to bf16 and keeps float32"
        raise Unsupported(f"conversion from {have} to {want}; all compute is float32, {known}")
    return _argument(x)


@converter("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
def _view(node: FxNode, x: Any, size: Any) -> Converted:
    if tuple(x.meta["val"].shape) != tuple(node.meta["val"].shape):
        raise Unsupported("a view of another shape; heads are split by `torch.ops.tilecc.split_qkv`")
    return _argument(x)


@converter("aten.dropout.default")
def _dropout(node: FxNode, x: Any, p: Any, train: Any) -> Converted:
    if train and p > 0:
        raise Unsupported("dropout with train=True")
    return _argument(x)


@converter(
    "aten._assert_async.msg",
    "aten._assert_scalar.default",
    "aten._assert_tensor_metadata.default",
    "aten.sym_constrain_range_for_size.default",
)
def _check(node: FxNode, *arguments: Any) -> Converted:
    return None


def _argument(x: Any) -> FxNode:
    assert isinstance(x, FxNode)
    return x


def op_name(node: FxNode) -> str:
    """Name of the op a `call_function` node calls, such as `aten.linear.default`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def bound_arguments(node: FxNode) -> list[Any]:
    """Arguments of a call of a torch op in the order of its schema, with defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    out: list[Any] = []
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            out.append(node.args[index])
        else:
            out.append(node.kwargs.get(argument.name, argument.default_value))
    return out


def is_shape_arithmetic(node: FxNode) -> bool:
    """Whether the node makes a number from tensor sizes and no tensor; it has no place in the Graph."""
    if op_name(node) in ("aten.item.default", "aten._local_scalar_dense.default"):
        return False  # a number made from the value of a tensor
    return isinstance(
        node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool
    )


def is_getitem(node: FxNode) -> bool:
    """Whether the node picks one result of an op with several."""
    return node.target is operator.getitem


def has_effect(node: FxNode) -> bool:
    """Whether the node writes its arguments, so that it counts even if nothing reads its result."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
