"""Softmax in pieces (mimo.md 2.3): online update, probability, and the merge of partial results."""

from typing import Any

from tvm.script import tirx as T

from tilecc.emit.bodies.common import NEG_INF, exp_from, rcp


def softmax_online() -> Any:
    """Running maximum and the factor e^(m_old - m_new) for what was summed before."""

    @T.prim_func
    def body(
        m_old: T.float32,
        s_max: T.float32,
        m_new1_ptr: T.handle("float32", "local"),
        rescale1_ptr: T.handle("float32", "local"),
    ):
        m_new1 = T.decl_buffer((1,), "float32", data=m_new1_ptr, scope="local")
        rescale1 = T.decl_buffer((1,), "float32", data=rescale1_ptr, scope="local")
        top = T.alloc_local((1,), "float32")
        top[0] = T.Select(s_max > m_old, s_max, m_old)
        m_new1[0] = top[0]
        rescale1[0] = exp_from(m_old, top[0])

    return body


def softmax_p() -> Any:
    """e^(s - m) of a score under the running maximum m; 0 for a masked score (-inf), NaN for NaN."""

    @T.prim_func
    def body(s: T.float32, m: T.float32) -> T.float32:
        return exp_from(s, m)

    return body


def softmax_merge(n: int) -> Any:
    """Weights of partial outputs from their maxima m and sums d; the sink is one more column."""

    # scale[i] = e^(m[i] - M) / D. An empty partial (d = 0) counts nothing, and where there is nothing at all
    # every scale is 0. NaN appears only where an input is NaN.
    @T.prim_func
    def body(
        m_ptr: T.handle("float32", "local"),
        d_ptr: T.handle("float32", "local"),
        sink: T.float32,
        scale_ptr: T.handle("float32", "local"),
    ):
        m = T.decl_buffer((n,), "float32", data=m_ptr, scope="local")
        d = T.decl_buffer((n,), "float32", data=d_ptr, scope="local")
        scale = T.decl_buffer((n,), "float32", data=scale_ptr, scope="local")
        top = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        inverse = T.alloc_local((1,), "float32")
        top[0] = sink
        for i in T.serial(n, unroll=True):
            if d[i] > T.float32(0) and m[i] > top[0]:
                top[0] = m[i]
        total[0] = T.float32(0)
        for i in T.serial(n, unroll=True):
            scale[i] = T.Select(d[i] == T.float32(0), T.float32(0), exp_from(m[i], top[0]))
            total[0] = total[0] + scale[i] * d[i]
        total[0] = total[0] + exp_from(sink, top[0])
        inverse[0] = T.Select(total[0] == T.float32(0), T.float32(0), rcp(total[0]))
        for i in T.serial(n, unroll=True):
            scale[i] = scale[i] * inverse[0]

    return body


def softmax_combine(n: int) -> Any:
    """Joint maximum M and sum of partials, and each one's factor e^(m[i] - M)."""

    @T.prim_func
    def body(
        m_ptr: T.handle("float32", "local"),
        d_ptr: T.handle("float32", "local"),
        m_out1_ptr: T.handle("float32", "local"),
        d_out1_ptr: T.handle("float32", "local"),
        scale_ptr: T.handle("float32", "local"),
    ):
        m = T.decl_buffer((n,), "float32", data=m_ptr, scope="local")
        d = T.decl_buffer((n,), "float32", data=d_ptr, scope="local")
        m_out1 = T.decl_buffer((1,), "float32", data=m_out1_ptr, scope="local")
        d_out1 = T.decl_buffer((1,), "float32", data=d_out1_ptr, scope="local")
        scale = T.decl_buffer((n,), "float32", data=scale_ptr, scope="local")
        top = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        top[0] = T.float32(NEG_INF)
        for i in T.serial(n, unroll=True):
            if d[i] > T.float32(0) and m[i] > top[0]:
                top[0] = m[i]
        total[0] = T.float32(0)
        for i in T.serial(n, unroll=True):
            scale[i] = T.Select(d[i] == T.float32(0), T.float32(0), exp_from(m[i], top[0]))
            total[0] = total[0] + scale[i] * d[i]
        m_out1[0] = top[0]
        d_out1[0] = total[0]

    return body
