"""The one total order of all selections: larger value, then lower id, NaN last (architecture section 3)."""

from typing import Any

from tvm.script import tirx as T

from tilecc.emit.bodies.common import NEG_INF

NAN_ID = 1 << 30  # added to the id of a NaN, which then competes as -inf and loses against a true -inf


def argmax_pair() -> Any:
    """The better of two (value, id): larger value, then lower id, NaN last.

    A NaN's id must be below 2^30.
    """

    @T.prim_func
    def body(
        va: T.float32,
        ia: T.int32,
        vb: T.float32,
        ib: T.int32,
        v1_ptr: T.handle("float32", "local"),
        i1_ptr: T.handle("int32", "local"),
    ):
        v1 = T.decl_buffer((1,), "float32", data=v1_ptr, scope="local")
        i1 = T.decl_buffer((1,), "int32", data=i1_ptr, scope="local")
        a = T.alloc_local((1,), "float32")
        b = T.alloc_local((1,), "float32")
        a_id = T.alloc_local((1,), "int32")
        b_id = T.alloc_local((1,), "int32")
        a[0] = T.Select(va >= T.float32(NEG_INF), va, T.float32(NEG_INF))
        b[0] = T.Select(vb >= T.float32(NEG_INF), vb, T.float32(NEG_INF))
        a_id[0] = T.Select(va >= T.float32(NEG_INF), ia, ia + NAN_ID)
        b_id[0] = T.Select(vb >= T.float32(NEG_INF), ib, ib + NAN_ID)
        if a[0] > b[0] or (a[0] == b[0] and a_id[0] < b_id[0]):
            v1[0] = va
            i1[0] = ia
        else:
            v1[0] = vb
            i1[0] = ib

    return body
