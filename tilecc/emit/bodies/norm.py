"""RMSNorm (mimo.md 2.1): the statistic of a row and its application to one element."""

from typing import Any

from tvm.script import tirx as T


def norm_rstd() -> Any:
    """1 / sqrt(sum_sq * inv_n + eps); one Newton step after the hardware estimate."""

    # The estimate is good to 1-2 ulp, and machines differ in it; the step, in f32 without fma, ends within 2
    # ulp of the true value whatever the estimate was. Where the step is not finite (argument 0 or inf) the
    # estimate (inf or 0) is the answer; NaN stays NaN.
    @T.prim_func
    def body(sum_sq: T.float32, inv_n: T.float32, eps: T.float32) -> T.float32:
        a = T.alloc_local((1,), "float32")
        y = T.alloc_local((1,), "float32")
        refined = T.alloc_local((1,), "float32")
        a[0] = sum_sq * inv_n + eps
        y[0] = T.call_extern("float32", "tk_rsqrt", a[0])
        refined[0] = y[0] * (T.float32(1.5) - T.float32(0.5) * a[0] * y[0] * y[0])
        return T.Select(refined[0] > T.float32(0), refined[0], y[0])

    return body


def norm_apply() -> Any:
    """x * rstd * w, in this order; one rounding to bf16 follows in the caller."""

    @T.prim_func
    def body(x: T.float32, rstd: T.float32, w: T.float32) -> T.float32:
        return x * rstd * w

    return body
