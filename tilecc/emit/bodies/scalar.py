"""Scalar bodies. Formulas: section 2 of the model page (norm, rope, SwiGLU) and the online softmax of flash attention.

exp(x) is exp2(x * log2 e) through the header, so that GPU and emulator share one primitive.
"""

# The script parser reads these functions as text: annotations are TIRx types, not Python's.
# mypy: ignore-errors
# ruff: noqa: F821
from tvm.script import tirx as T

LOG2E = 1.4426950408889634
NEG_INF = float("-inf")


def norm_rstd():
    @T.prim_func
    def norm_rstd(sum_sq: T.float32, inv_n: T.float32, eps: T.float32) -> T.float32:
        x = T.alloc_local((1,), "float32")
        x[0] = sum_sq * inv_n + eps
        r: T.let = T.call_extern("float32", "tk_rsqrt", x[0])
        # One Newton step: the approximate root is good to 1-2 ulp, a norm multiplies whole rows by it.
        return r * (T.float32(1.5) - T.float32(0.5) * x[0] * r * r)

    return norm_rstd


def norm_apply():
    @T.prim_func
    def norm_apply(x: T.float32, rstd: T.float32, w: T.float32) -> T.float32:
        return x * rstd * w

    return norm_apply


def rope_pair():
    @T.prim_func
    def rope_pair(a: T.float32, b: T.float32, c: T.float32, s: T.float32, out_ptr: T.handle("float32", "local")):
        out = T.decl_buffer((2,), "float32", data=out_ptr, scope="local")
        out[0] = a * c - b * s
        out[1] = b * c + a * s

    return rope_pair


def swiglu():
    @T.prim_func
    def swiglu(gate: T.float32, up: T.float32) -> T.float32:
        e: T.let = T.call_extern("float32", "tk_exp2", gate * T.float32(-LOG2E))
        return gate / (T.float32(1) + e) * up

    return swiglu


def argmax_pair():
    @T.prim_func
    def argmax_pair(
        va: T.float32, ia: T.int32, vb: T.float32, ib: T.int32,
        v_ptr: T.handle("float32", "local"), i_ptr: T.handle("int32", "local"),
    ):  # fmt: skip
        v = T.decl_buffer((1,), "float32", data=v_ptr, scope="local")
        i = T.decl_buffer((1,), "int32", data=i_ptr, scope="local")
        # A NaN never wins: comparisons with it are false, and any number wins against it. Two NaNs: the first stays.
        if vb > va or (vb == va and ib < ia) or (T.call_extern("int32", "tk_is_nan", va) > T.call_extern("int32", "tk_is_nan", vb)):
            v[0] = vb
            i[0] = ib
        else:
            v[0] = va
            i[0] = ia

    return argmax_pair


def softmax_online():
    @T.prim_func
    def softmax_online(
        m_old: T.float32, s_max: T.float32, m_ptr: T.handle("float32", "local"), rescale_ptr: T.handle("float32", "local")
    ):
        m = T.decl_buffer((1,), "float32", data=m_ptr, scope="local")
        rescale = T.decl_buffer((1,), "float32", data=rescale_ptr, scope="local")
        m[0] = T.call_extern("float32", "tk_max", m_old, s_max)
        if m_old == T.float32(NEG_INF):
            rescale[0] = T.float32(0)
        else:
            rescale[0] = T.call_extern("float32", "tk_exp2", (m_old - m[0]) * T.float32(LOG2E))

    return softmax_online


def softmax_p():
    @T.prim_func
    def softmax_p(s: T.float32, m: T.float32) -> T.float32:
        p = T.alloc_local((1,), "float32")
        p[0] = T.float32(0)
        if s != T.float32(NEG_INF):
            p[0] = T.call_extern("float32", "tk_exp2", (s - m) * T.float32(LOG2E))
        return p[0]

    return softmax_p


def softmax_combine(n):
    @T.prim_func
    def softmax_combine(
        m_ptr: T.handle("float32", "local"), d_ptr: T.handle("float32", "local"), m_out_ptr: T.handle("float32", "local"),
        d_out_ptr: T.handle("float32", "local"), scale_ptr: T.handle("float32", "local"),
    ):  # fmt: skip
        m = T.decl_buffer((n,), "float32", data=m_ptr, scope="local")
        d = T.decl_buffer((n,), "float32", data=d_ptr, scope="local")
        m_out = T.decl_buffer((1,), "float32", data=m_out_ptr, scope="local")
        d_out = T.decl_buffer((1,), "float32", data=d_out_ptr, scope="local")
        scale = T.decl_buffer((n,), "float32", data=scale_ptr, scope="local")
        m_out[0] = m[0]
        for i in T.serial(n - 1, unroll=True):
            m_out[0] = T.call_extern("float32", "tk_max", m_out[0], m[i + 1])
        d_out[0] = T.float32(0)
        for i in T.serial(n, unroll=True):
            if m[i] == T.float32(NEG_INF):
                scale[i] = T.float32(0)
            else:
                scale[i] = T.call_extern("float32", "tk_exp2", (m[i] - m_out[0]) * T.float32(LOG2E))
            d_out[0] = d_out[0] + scale[i] * d[i]

    return softmax_combine


def softmax_merge(n):
    @T.prim_func
    def softmax_merge(
        m_ptr: T.handle("float32", "local"), d_ptr: T.handle("float32", "local"), sink: T.float32,
        scale_ptr: T.handle("float32", "local"),
    ):  # fmt: skip
        m = T.decl_buffer((n,), "float32", data=m_ptr, scope="local")
        d = T.decl_buffer((n,), "float32", data=d_ptr, scope="local")
        scale = T.decl_buffer((n,), "float32", data=scale_ptr, scope="local")
        top = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        top[0] = sink
        for i in T.serial(n, unroll=True):
            top[0] = T.call_extern("float32", "tk_max", top[0], m[i])
        total[0] = T.float32(0)
        for i in T.serial(n, unroll=True):
            if m[i] == T.float32(NEG_INF):
                scale[i] = T.float32(0)
            else:
                scale[i] = T.call_extern("float32", "tk_exp2", (m[i] - top[0]) * T.float32(LOG2E))
            total[0] = total[0] + scale[i] * d[i]
        if sink != T.float32(NEG_INF):
            total[0] = total[0] + T.call_extern("float32", "tk_exp2", (sink - top[0]) * T.float32(LOG2E))
        if total[0] > T.float32(0):
            for i in T.serial(n, unroll=True):
                scale[i] = scale[i] / total[0]

    return softmax_merge
