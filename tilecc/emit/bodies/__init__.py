"""Tile bodies: the scalar and warp-level arithmetic of the ops, written once as TVM TIRx functions and lowered to text.

    lower_bodies([BodySpec("swiglu", {}), BodySpec("router_topk", {"experts": 16, "k": 4})])  ->  TK_FN functions

The text uses float, int and local arrays only and reaches other lanes through the header's wrappers, so nvcc and the CPU
emulator compile it unchanged. TVM is imported when the first body is lowered, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DOCS = {
    "norm_rstd": "1 / sqrt(mean square + eps)",
    "norm_apply": "one element of an RMS norm",
    "rope_pair": "rotation of one NeoX pair",
    "swiglu": "silu(gate) * up, unclamped",
    "argmax_pair": "larger value, then lower id; NaN last",
    "softmax_online": "running maximum and the factor for what was summed before it moved",
    "softmax_p": "exp(s - m), 0 where nothing is visible",
    "softmax_merge": "weights that merge {n} partial softmaxes, the sink in the denominator",
    "softmax_combine": "maximum, denominator and weights of {n} partial softmaxes",
    "router_topk": "sigmoid router, top {k} of {experts}: larger score, then lower id; weights normalised",
}


@dataclass(frozen=True)
class BodySpec:
    """A body and its sizes. `function` is the name in the emitted text."""

    name: str
    sizes: tuple[tuple[str, int], ...] = ()

    def __init__(self, name: str, sizes: Mapping[str, int]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "sizes", tuple(sizes.items()))

    @property
    def function(self) -> str:
        """router_topk with experts 16, k 4 is router_topk_16_4."""
        return "_".join([self.name, *(str(n) for _, n in self.sizes)])

    @property
    def doc(self) -> str:
        """One line for the provenance comment."""
        return DOCS[self.name].format(**dict(self.sizes))


def lower_bodies(specs: Sequence[BodySpec]) -> str:
    """Text of the bodies in the order given. Deterministic."""
    from tilecc.emit.bodies.lower import lower

    return lower(specs)
