"""Lowers TIRx PrimFuncs to plain C++ text.

A PrimFunc with the default calling convention is printed by TVM's CUDA printer as a ``__device__`` function,
so the device passes are run by hand and the printer is called directly: no host wrapper, no packed ABI, no
CUDA toolkit. All bodies go through one IRModule. What TVM prints is then reduced to the subset that g++ and
nvcc share, see ``_plain``.

Traps of the TIRx front end (0.27), which the bodies avoid:
  * ``x != x`` folds to false also for floats, and ``not (a >= b)`` to ``a < b``: neither tests for NaN. Write
    ``Select(x >= -inf, value, value_for_nan)``, which stays a comparison.
  * ``if_then_else`` prints as statements, and directly under ``return`` as text that is no C++. ``Select``
    prints as ``? :`` and evaluates both sides in TIRx, so no side may shuffle.
  * a value bound with ``T.let`` is inlined wherever it is used, calls included: use a local array of one
    element.
  * buffer parameters must be typed handles plus ``decl_buffer``; ``T.Buffer`` fails in the printer.
  * ``exp`` and ``rsqrt`` print as libm calls; use the wrappers of ``common``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilecc.diag import InternalError
from tilecc.emit.bodies import BUILDERS, BodySpec
from tilecc.emit.format import clang_format

_DEVICE = 'extern "C" __device__ '
_NEG_INF = "-__builtin_huge_valf()"

# What may stand in a body, besides its own names. Anything else means that TVM lowered to an intrinsic or a
# type that the emulator or the lint of the emitted kernel does not know.
_TYPES = frozenset({"float", "int", "uint32_t", "bool", "void"})
_WORDS = frozenset({"TK_FN", "TK_UNROLL", "if", "else", "for", "return", "true", "false"})
_CALLS = frozenset(
    {"tk_shfl_xor_f32", "tk_shfl_xor_i32", "tk_exp2", "tk_rcp", "tk_rsqrt", "__builtin_huge_valf"}
)


def lower(specs: Sequence[BodySpec]) -> str:
    """See ``tilecc.emit.bodies.lower_bodies``."""
    if not specs:
        return ""
    names = [s.name for s in specs]
    if len(set(names)) != len(names):
        raise InternalError(
            f"tile bodies with the same name: {sorted({n for n in names if names.count(n) > 1})}"
        )
    builders = {s.name: _builder(s) for s in specs}
    raw = _cuda_text({s.name: builders[s.name](**s.args) for s in specs})
    functions = _split(raw)
    if sorted(functions) != sorted(names):
        raise InternalError(f"asked TVM for {sorted(names)}, got {sorted(functions)}")
    parts = []
    for s in specs:
        text = _plain(functions[s.name])
        _lint(s.name, text)
        parts.append(f"// TIRx body {s.name}: {_summary(builders[s.name])}\n{text}")
    return clang_format("\n".join(parts), "bodies.cuh")


def _builder(spec: BodySpec) -> Callable[..., Any]:
    if spec.builder not in BUILDERS:
        raise InternalError(f"no tile body `{spec.builder}`; there are {', '.join(sorted(BUILDERS))}")
    # Read by TVM when it prints: keep the text even where a CUDA runtime is installed.
    os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"
    module = importlib.import_module(f"tilecc.emit.bodies.{BUILDERS[spec.builder]}")
    builder: Callable[..., Any] = getattr(module, spec.builder)
    return builder


def _summary(builder: Callable[..., Any]) -> str:
    return (inspect.getdoc(builder) or "").partition("\n")[0]


def _cuda_text(funcs: dict[str, Any]) -> str:
    import tvm
    from tvm import tirx

    # The architecture does not show in scalar code; one is needed to pick the printer.
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90a"})
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in funcs.items()})
    module = tirx.transform.BindTarget(target.with_host("llvm"))(module)
    passes = [
        tirx.transform.LowerTIRx(),
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerTIRxOpaque(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerIntrin(),
    ]
    with target:
        module = tvm.ir.transform.Sequential(passes)(module)
    build = tvm.get_global_func("target.build.cuda")
    return str(build(module, target).inspect_source())


def _split(raw: str) -> dict[str, str]:
    """Cut TVM's prelude and forward declarations; return name -> definition."""
    functions: dict[str, str] = {}
    for chunk in raw.split(_DEVICE)[1:]:
        head = re.match(r"\w+ (\w+)\([^)]*\)\s*(;|\{)", chunk)
        if head is None:
            raise InternalError(f"TVM printed an unexpected device function: {chunk[:120]!r}")
        if head[2] == "{":
            functions[head[1]] = chunk.strip() + "\n"
    return functions


def _plain(text: str) -> str:
    """Turn one function as TVM prints it into the C++ that nvcc and g++ share."""
    text = "TK_FN " + text.replace("__restrict__ ", "").replace("-CUDART_INF_F", _NEG_INF)
    text = text.replace("#pragma unroll", "TK_UNROLL").replace("(uint)", "(uint32_t)")
    # 0x1.8p+0f/*1.500000e+00*/ -> 1.5f, exactly the same float
    text = re.sub(r"(-?0x[0-9a-f.]+p[+-]?\d+)f?/\*[^*]*\*/", lambda m: _float(float.fromhex(m[1])), text)
    text = re.sub(r"\balignas\(\d+\) ", "", text)
    for name in re.findall(r"^\s*\w+ (\w+)\[1\];", text, flags=re.M):
        text = _scalar(text, name)
    for name in sorted(set(re.findall(r"\b\w+_ptr\b", text))):
        short = name.removesuffix("_ptr")
        if not re.search(rf"\b{short}\b", text):
            text = re.sub(rf"\b{name}\b", short, text)
    return _drop_parentheses(text)


def _scalar(text: str, name: str) -> str:
    """Replace the array ``name`` of one element, TIRx's mutable scalar, by a scalar, set where declared."""
    uses = len(re.findall(rf"\b{name}\b", text))
    text = re.sub(rf"\b{name}\[[01]\]", name, text)
    if uses != len(re.findall(rf"\b{name}\b(?!\[)", text)):
        raise InternalError(f"`{name}` is used as an array and as a scalar")
    declaration = re.search(rf"^( *)(\w+) {name};\n", text, flags=re.M)
    if declaration is None:
        return text
    head, rest = text[: declaration.start()], text[declaration.end() :]
    # Merge with the first use where that is an assignment in the same block.
    first = re.search(rf"\b{name}\b", rest)
    if first is None or not re.search(rf"^{declaration[1]}$", rest[: first.start()].rpartition("\n")[2]):
        return text
    if not rest[first.end() :].startswith(" = "):
        return text
    return f"{head}{rest[: first.start()]}{declaration[2]} {rest[first.start() :]}"


def _drop_parentheses(text: str) -> str:
    """Drop the parentheses that enclose a whole right side, argument, index, or condition."""
    opened: list[int] = []
    drop: set[int] = set()
    for i, c in enumerate(text):
        if c == "(":
            opened.append(i)
        elif c == ")":
            start = opened.pop()
            before, after = text[:start].rstrip(" "), text[i + 1 :].lstrip(" ")
            whole = before.endswith(("=", "return", "[", "(", ",")) and not before.endswith(
                ("==", "<=", ">=", "!=")
            )
            if whole and after.startswith((";", "]", ")", ",")):
                drop |= {start, i}
    return "".join(c for i, c in enumerate(text) if i not in drop)


def _float(value: float) -> str:
    """Spell ``value`` as the shortest decimal float literal that reads back as the same binary32."""
    return f"{np.float32(value)!s}f"


def _lint(name: str, text: str) -> None:
    declared = set(re.findall(r"\b(?:float|int|uint32_t|bool)\*? (\w+)", text)) | {name}
    words = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", text))
    unknown = sorted(words - declared - _TYPES - _WORDS - _CALLS)
    if unknown:
        raise InternalError(
            f"tile body `{name}` lowered to names outside the kernel's subset: {', '.join(unknown)}"
        )
