"""Gated activations (mimo.md 2.5). SiLU is not clamped: the model was trained without a limit."""

from typing import Any

from tvm.script import tirx as T

from tilecc.emit.bodies.common import sigma

LOWEST = -3.4028234663852886e38  # the lowest finite float


def swiglu() -> Any:
    """silu(gate) * up = gate / (1 + e^-gate) * up."""

    # -inf becomes the lowest float first, so that lowest * 0 = -0 and not NaN. NaN fails the comparison,
    # stays.
    @T.prim_func
    def body(gate: T.float32, up: T.float32) -> T.float32:
        g = T.alloc_local((1,), "float32")
        g[0] = T.Select(gate < T.float32(LOWEST), T.float32(LOWEST), gate)
        return g[0] * sigma(g[0]) * up

    return body


def sigmoid() -> Any:
    """1 / (1 + e^-z)."""

    @T.prim_func
    def body(z: T.float32) -> T.float32:
        return sigma(z)

    return body
