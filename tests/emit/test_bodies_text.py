"""The text of the tile bodies: the subset of C++ it keeps to, determinism, and what nvcc makes of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tilecc.build.nvcc import find_nvcc
from tilecc.build.ptxas import parse_ptxas
from tilecc.diag import InternalError, TileccError
from tilecc.emit.bodies import BUILDERS, COMMON_BODIES, BodySpec, lower_bodies, router_topk, softmax_merge
from tilecc.emit.bodies.lower import _drop_parentheses, _float, _lint
from tilecc.emit.format import clang_format, style_text

ROOT = Path(__file__).parents[2]
FORBIDDEN = (
    "__shfl", "asm", "nv_bfloat16", "__half", "fp8", "__global__", "__shared__", "__device__", "extern",
    "alignas", "expf", "rsqrtf", "CUDART", "volatile", "*(", "condval",
)  # fmt: skip


def test_text_keeps_to_the_subset(bodies_text: str) -> None:
    code = re.sub(r"//[^\n]*", "", bodies_text)
    assert [word for word in FORBIDDEN if word in code] == []
    assert "/" not in code  # IEEE division is a branch and a call on the GPU; bodies use tk_rcp
    assert max(len(line) for line in bodies_text.splitlines()) <= 120
    names = re.findall(r"^TK_FN \w+ (\w+)\(", bodies_text, flags=re.M)
    assert re.findall(r"^// TIRx body (\w+): \S", bodies_text, flags=re.M) == names
    assert names[: len(COMMON_BODIES)] == [s.name for s in COMMON_BODIES]
    assert set(BUILDERS) <= {re.sub(r"_(e\d+_k)?\d+$", "", n) for n in names}


def test_signatures_are_those_of_the_headers(bodies_text: str) -> None:
    """op_common.cuh declares the bodies that the headers call."""
    header = (ROOT / "templates" / "include" / "op_common.cuh").read_text()
    declared = re.findall(r"^(TK_FN \w+ \w+\([^)]*\));", header, flags=re.M)
    assert len(declared) >= 7
    assert [d for d in declared if d + " {" not in bodies_text] == []


def test_text_is_the_same_in_another_process() -> None:
    program = (
        "import sys; from tilecc.emit.bodies import *;"
        "sys.stdout.write(lower_bodies([softmax_merge(4), *COMMON_BODIES, router_topk(40, 8)]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    here = lower_bodies([softmax_merge(4), *COMMON_BODIES, router_topk(40, 8)])
    assert done.stdout == here
    assert lower_bodies([router_topk(40, 8)]) in here  # a body does not depend on its neighbours


def test_importing_the_package_does_not_import_tvm() -> None:
    program = "import sys, tilecc.emit.bodies, tilecc.emit.format; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "specs, message",
    [
        ([BodySpec("swish", "swish")], "no tile body `swish`"),
        ([softmax_merge(4), softmax_merge(4)], "same name"),
        ([router_topk(8, 9)], "cannot choose 9 of 8"),
        ([router_topk(8, 0)], "cannot choose 0 of 8"),
    ],
)
def test_bad_requests_are_refused(specs: list[BodySpec], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        lower_bodies(specs)
    assert lower_bodies([]) == ""


@pytest.mark.parametrize(
    "call", ["expf(a)", "__shfl_xor_sync(0xffffffffu, a, 1)", "nv_bfloat16(a)", "*(uint4*)(a)"]
)
def test_lint_refuses_what_the_emulator_lacks(call: str) -> None:
    _lint("f", "TK_FN float f(float a) { return tk_exp2(a); }")
    with pytest.raises(InternalError, match="tile body `f`"):
        _lint("f", f"TK_FN float f(float a) {{ return {call}; }}")


def test_float_literals_are_exact() -> None:
    values = (0.0, 1.0, 0.1, 1.4426950408889634, 1e-20, -3.4028234663852886e38, 1.1754943508222875e-38)
    assert [_float(v) for v in values] == [
        "0.0f", "1.0f", "0.1f", "1.442695f", "1e-20f", "-3.4028235e+38f", "1.1754944e-38f",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "before, after",
    [
        ("x = (a + b);", "x = a + b;"),
        ("x = ((a + b) * (c + d));", "x = (a + b) * (c + d);"),
        ("x[(i + 1)] = f((a * b), (c));", "x[i + 1] = f(a * b, c);"),
        ("if ((a == (b)) && (c <= (d + 1))) {", "if ((a == (b)) && (c <= (d + 1))) {"),
        ("return (((a)));", "return a;"),
    ],
)
def test_only_enclosing_parentheses_go(before: str, after: str) -> None:
    assert _drop_parentheses(before) == after


def test_format_is_idempotent_and_reports_bad_input(bodies_text: str) -> None:
    assert clang_format(bodies_text) == bodies_text
    assert clang_format("int  f( ){return 1;}") == "int f() { return 1; }\n"
    with pytest.raises(InternalError, match="clang-format"):
        clang_format("x", filename="kernel.unknown/")
    style = ROOT / ".clang-format"
    if style.exists():
        kept = [line for line in style.read_text().splitlines() if line and not line.startswith(("#", "---"))]
        assert kept == style_text().splitlines()


KERNEL = """
#include "tk_prim.cuh"
%s
extern "C" __global__ void bodies_kernel(const float* in, const int* where, float* out) {
  const int t = threadIdx.x;
  float logits[12], bias[12], weights[8], m[4], d[4], scale[4], pair[2], top = in[t], id_value;
  int ids[8], id;
  for (int i = 0; i < 12; ++i) logits[i] = in[i * 32 + t], bias[i] = in[512 + i * 32 + t];
  router_topk_e384_k8(logits, bias, t %% 32, in[1], where[0], ids, weights);
  for (int i = 0; i < 8; ++i) out[t * 64 + i] = weights[i] * ids[i];
  router_topk_e40_k8(logits, bias, t %% 32, in[1], where[0], ids, weights);
  for (int i = 0; i < 8; ++i) out[t * 64 + 8 + i] = weights[i] * ids[i];
  for (int i = 0; i < 4; ++i) m[i] = in[t + i], d[i] = in[t + 4 + i];
  softmax_merge_4(m, d, in[9], scale);
  for (int i = 0; i < 4; ++i) out[t * 64 + 16 + i] = scale[i];
  softmax_combine_4(m, d, &pair[0], &pair[1], scale);
  for (int i = 0; i < 4; ++i) out[t * 64 + 20 + i] = scale[i] * pair[0] + pair[1];
  softmax_online(top, in[t + 7], &top, &pair[1]);
  out[t * 64 + 24] = softmax_p(in[t + 8], top) * pair[1];
  argmax_pair(top, where[t], in[t + 9], where[t + 1], &id_value, &id);
  out[t * 64 + 25] = id_value * id;
  rope_pair(top, in[t + 10], in[t + 11], in[t + 12], pair);
  out[t * 64 + 26] = swiglu(pair[0], pair[1]) + sigmoid(in[t + 13]);
  out[t * 64 + 27] = norm_apply(top, norm_rstd(in[t + 14], in[t + 15], in[t + 16]), in[t + 17]);
}
"""


def test_the_emulator_header_takes_the_same_text(bodies_text: str, tmp_path: Path) -> None:
    cxx = os.environ.get("CXX") or shutil.which("g++")
    if cxx is None:
        pytest.skip("no g++ on PATH")
    (tmp_path / "k.cpp").write_text(f'#include "op_common.cuh"\n{bodies_text}')
    flags = [
        "-std=c++20",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Wno-unused-function",
        "-Wno-unknown-pragmas",
    ]
    done = subprocess.run(
        [cxx, *flags, f"-I{ROOT / 'templates' / 'include'}", str(tmp_path / "k.cpp")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "k.cpp" not in done.stderr, done.stderr


@pytest.mark.parametrize("arch", ["90a", "100a"])
def test_nvcc_keeps_the_arrays_in_registers(bodies_text: str, tmp_path: Path, arch: str) -> None:
    try:
        nvcc = find_nvcc()
    except TileccError:
        pytest.skip("no nvcc")
    (tmp_path / "k.cu").write_text(KERNEL % bodies_text)
    done = subprocess.run(
        [
            str(nvcc), "-std=c++17", "-O3", "-cubin", "-gencode", f"arch=compute_{arch},code=sm_{arch}",
            "-Xptxas", "-v", f"-I{ROOT / 'templates' / 'include'}", "-o", str(tmp_path / "k.cubin"),
            str(tmp_path / "k.cu"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"k\.cu\(\d+\): (warning|error)", done.stderr) is None, done.stderr
    (facts,) = parse_ptxas(done.stdout + done.stderr)
    assert (facts.stack_bytes, facts.spill_store_bytes, facts.spill_load_bytes) == (0, 0, 0)
