"""TIRx functions -> text of device functions. The only module that imports TVM (pinned: its dialects still move)."""

# mypy: ignore-errors
from __future__ import annotations

import os
import re
from collections.abc import Sequence

# Without this TVM would try to compile the text with the CUDA runtime where a GPU is present.
os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"

import numpy as np
import tvm
from tvm import tirx

from tilecc.diag import InternalError
from tilecc.emit.bodies import BodySpec, router, scalar

LITERAL = re.compile(r"(-?0x[0-9a-f.]+p[+-]\d+)f/\*[^*]*\*/")
FORBIDDEN = re.compile(r"asm|__shfl|nv_bfloat16|__nv_|threadIdx|__syncthreads|__shared__")


def lower(specs: Sequence[BodySpec]) -> str:
    """Lower all bodies in one module, so that the shared prelude is printed (and cut away) once."""
    functions = {}
    for spec in specs:
        builder = getattr(scalar, spec.name, None) or getattr(router, spec.name)
        functions[spec.function] = builder(**dict(spec.sizes)).with_attr("global_symbol", spec.function)
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90a"})
    module = tirx.transform.BindTarget(target.with_host("llvm"))(tvm.IRModule(functions))
    passes = [
        tirx.transform.LowerTIRx(), tirx.transform.StmtSimplify(), tirx.transform.LowerTIRxOpaque(),
        tirx.transform.FlattenBuffer(), tirx.transform.NarrowDataType(32), tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(), tirx.transform.LowerIntrin(),
    ]  # fmt: skip
    with target:
        module = tvm.ir.transform.Sequential(passes)(module)
    source = tvm.get_global_func("target.build.cuda")(module, target).inspect_source()
    return "\n".join(f"// TIRx body: {spec.doc}\n{_function(source, spec.function)}" for spec in specs)


def _decimal(match: re.Match[str]) -> str:
    """A float literal that a person can read: the shortest one that gives the same float32."""
    return f"{np.float32(float.fromhex(match[1]))!s}f"


def _function(source: str, name: str) -> str:
    """The definition of one function, with the qualifiers of the primitive header."""
    match = re.search(rf'^extern "C" __device__ [^;{{]*\b{name}\([^;{{]*\) {{$.*?^}}$', source, re.M | re.S)
    if match is None:
        raise InternalError(f"TVM printed no definition of {name}")
    text = match[0].replace('extern "C" __device__', "TK_FN").replace("__restrict__ ", "").replace("alignas(64) ", "")
    text = text.replace("-CUDART_INF_F", "(-__builtin_huge_valf())").replace("CUDART_INF_F", "__builtin_huge_valf()")
    text = LITERAL.sub(_decimal, text)
    bad = FORBIDDEN.search(text)
    if bad is not None:
        raise InternalError(f"body {name} uses `{bad[0]}`, which only the primitive header may")
    return text + "\n"
