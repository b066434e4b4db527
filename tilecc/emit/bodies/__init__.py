"""Tile bodies: the scalar and warp-level arithmetic of the emitted kernel, written once as TIRx functions.

A body works on registers and small local arrays only and reaches other lanes and approximate math through
the ``tk_*`` wrappers of templates/include; memory, barriers and tensor cores belong to the headers. So one
text serves nvcc, g++ (the CPU emulator) and the reader. Formulas: design page mimo.md section 2.

    text = lower_bodies([*COMMON_BODIES, router_topk(384, 8), softmax_merge(4)])

Nothing here imports TVM before ``lower_bodies`` is called: its import costs seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

# builder -> module of this package that defines it; a builder is a function (**args: int) -> PrimFunc
BUILDERS: Mapping[str, str] = MappingProxyType(
    {
        "argmax_pair": "argmax",
        "norm_apply": "norm",
        "norm_rstd": "norm",
        "rope_pair": "rope",
        "router_topk": "router",
        "sigmoid": "swiglu",
        "softmax_combine": "softmax",
        "softmax_merge": "softmax",
        "softmax_online": "softmax",
        "softmax_p": "softmax",
        "swiglu": "swiglu",
    }
)


@dataclass(frozen=True)
class BodySpec:
    """One device function to emit.

    name: its C name. builder: a key of BUILDERS. args: the builder's integer parameters (array lengths).
    """

    name: str
    builder: str
    args: Mapping[str, int] = field(default_factory=dict)


COMMON_BODIES: tuple[BodySpec, ...] = tuple(
    BodySpec(name, name)
    for name in (
        "norm_rstd",
        "norm_apply",
        "rope_pair",
        "swiglu",
        "sigmoid",
        "argmax_pair",
        "softmax_online",
        "softmax_p",
    )
)
"""The bodies without parameters."""


def router_topk(experts: int, top_k: int) -> BodySpec:
    """``router_topk_e<experts>_k<top_k>(logits, bias, lane, scaling, norm, ids, weights)``."""
    return BodySpec(f"router_topk_e{experts}_k{top_k}", "router_topk", {"experts": experts, "top_k": top_k})


def softmax_merge(n: int) -> BodySpec:
    """``softmax_merge_<n>(m, d, sink, scale)``."""
    return BodySpec(f"softmax_merge_{n}", "softmax_merge", {"n": n})


def softmax_combine(n: int) -> BodySpec:
    """``softmax_combine_<n>(m, d, m_out, d_out, scale)``."""
    return BodySpec(f"softmax_combine_{n}", "softmax_combine", {"n": n})


def lower_bodies(specs: Sequence[BodySpec]) -> str:
    """Return the C++ text of ``specs`` in their order, as ``TK_FN`` functions for global scope.

    The text needs ``tk_prim.cuh`` before it and depends on ``specs`` alone, byte for byte. Raises
    InternalError for an unknown builder, a repeated name, or a body whose lowered text breaks the rules of
    the emitted kernel.
    """
    from tilecc.emit.bodies.lower import lower

    return lower(specs)
