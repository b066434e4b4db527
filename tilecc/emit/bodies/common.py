"""Expressions that several bodies share. Imports TVM: only ``lower`` and other bodies import this module."""

import math
from typing import Any

from tvm.script import tirx as T

LOG2E = math.log2(math.e)
NEG_INF = float("-inf")


def exp(x: Any, sign: float = 1.0) -> Any:
    """e^(sign x), sign = +-1, as 2^(x sign log2 e), f32.

    Relative error below (|x| + 4) 2^-24: the product is rounded before the power is taken.
    """
    return T.call_extern("float32", "tk_exp2", x * T.float32(sign * LOG2E))


def exp_from(x: Any, top: Any) -> Any:
    """e^(x - top) of a softmax, 0 when ``x`` is -inf whatever ``top`` is: (-inf) - (-inf) would be NaN."""
    return T.Select(x == T.float32(NEG_INF), T.float32(0), exp(x - top))


def rcp(x: Any) -> Any:
    """1 / x, f32, to 1 ulp; 0 beyond 2^126. A true division branches, which a row of them cannot overlap."""
    return T.call_extern("float32", "tk_rcp", x)


def sigma(x: Any) -> Any:
    """1 / (1 + e^-x), f32: 0 where e^-x overflows."""
    return rcp(T.float32(1) + exp(x, -1.0))


def shfl_f32(x: Any, mask: int) -> Any:
    """The f32 ``x`` of the lane whose number differs in the bits of ``mask``."""
    return T.call_extern("float32", "tk_shfl_xor_f32", x, mask)


def shfl_i32(x: Any, mask: int) -> Any:
    """The i32 ``x`` of the lane whose number differs in the bits of ``mask``."""
    return T.call_extern("int32", "tk_shfl_xor_i32", x, mask)
