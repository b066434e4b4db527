"""Rotary embedding, NeoX pairs (mimo.md 2.4)."""

from typing import Any

from tvm.script import tirx as T


def rope_pair() -> Any:
    """Rotate (a, b) = (u_j, u_{j + R/2}) by the angle with cosine c and sine s."""

    @T.prim_func
    def body(a: T.float32, b: T.float32, c: T.float32, s: T.float32, out2_ptr: T.handle("float32", "local")):
        out2 = T.decl_buffer((2,), "float32", data=out2_ptr, scope="local")
        out2[0] = a * c - b * s
        out2[1] = b * c + a * s

    return body
