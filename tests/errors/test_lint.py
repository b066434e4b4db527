"""The rules for emitted text: every way to break one is refused with its number, file and line, and nothing
that tilecc itself writes is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tilecc.build.lint import RULES, lint_package, lint_texts
from tilecc.build.lint.tokens import tokenize
from tilecc.diag import CATALOGUE, Diagnostic
from tilecc.package import Manifest
from tilecc.runtime.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "templates" / "include"
CHECKPOINT = ROOT / "models" / "mimo_tiny"
CODES = {
    1: "TC0921",
    2: "TC0922",
    3: "TC0923",
    4: "TC0924",
    5: "TC0925",
    6: "TC0926",
    7: "TC0927",
    8: "TC0928",
    9: "TC0929",
    10: "TC0930",
    11: "TC0931",
}

FRAME = """\
#include "tk_prim.cuh"
using tk::u32;
struct Params {{
  const uint8_t* image;
  uint8_t* workspace;
  u32* status;
  u32 rows[4];
}};
struct Context {{
  Params p;
  u32 lane, warp, n, sb;
  tk::Watch watch;
  const u32* counter(u32 i) const {{ return reinterpret_cast<const u32*>(p.workspace) + i; }}
}};
{outside}
TK_FN void body(Context& c, float (&acc)[4], float* out) {{
{inside}
}}
"""

INSIDE = [
    # rule 1: what the emulator cannot see
    (1, 'asm volatile("membar.gl;" ::: "memory");'),
    (1, '__asm__("nop;");'),
    (1, "const u32 x = __ldg(c.counter(0));"),
    (1, "__syncthreads();"),
    (1, "const u32 t = threadIdx.x;"),
    (1, "atomicAdd(c.p.status, 1);"),
    (1, "memcpy(out, c.p.image, 16);"),
    (1, "const uint8_t x = c.p.image[3];"),
    (1, "c.p.workspace[c.n] = 1;"),
    (1, "const uint8_t x = *c.p.image;"),
    (1, "const uint8_t x = *(c.p.image + 4);"),
    (1, "const uint8_t* at = c.p.image + 4; const uint8_t x = at[1];"),
    (1, "const uint8_t* at = c.p.image + 4; const uint8_t x = *at;"),
    (1, "*reinterpret_cast<u32*>(c.p.workspace + 8) = 1;"),
    (1, "reinterpret_cast<u32*>(c.p.workspace)[2] = 1;"),
    (1, "((u32*)c.p.workspace)[2] = 1;"),
    (1, "const u32 x = c.counter(3)[0];"),
    (1, "const u32 x = *c.counter(3);"),
    (1, "auto row = reinterpret_cast<const Params*>(c.p.image)->rows[0];"),
    # rule 2: waiting by hand
    (2, "while (tk::ld_acquire(c.counter(0)) == 0) {}"),
    (2, "while (tk::ldg32(c.counter(0)) < 3);"),
    (2, "u32 v; do { v = tk::ldg32(c.counter(0)); } while (v == 0);"),
    (2, "for (;;) { if (tk::lds32(c.sb) != 0) break; }"),
    (2, "for (u32 v = 0; tk::ld_acquire(c.counter(0)) == 0; ++v) {}"),
    (2, "while (c.n) { tk::nanosleep(20); }"),
    (2, "volatile u32 flag = 0;"),
    (2, "const auto begin = clock64();"),
    (2, "const auto begin = std::chrono::steady_clock::now();"),
    # rule 3: the elected lane
    (3, "if (c.lane == 31) tk::mbar_arrive(c.sb);"),
    (3, "if (tk::lane() != 0) tk::red_release(c.p.status, 1);"),
    (3, "if (!tk::elect()) tk::bulk_commit();"),
    (3, "if (tk::elect()) { c.n = 1; } else { tk::mbar_arrive(c.sb); }"),
    (3, "tk::sts32(c.sb + 4 * c.lane, 1); tk::mbar_arrive(c.sb + 512);"),
    # rule 4: converged collectives
    (4, "if (c.lane < 16) tk::syncwarp();"),
    (4, "const u32 g = tk::lane() >> 2; if (g == c.n) { acc[0] = tk::shfl_xor(acc[0], 1); }"),
    (4, "for (u32 i = c.lane; i < c.n; i += 32) tk::syncwarp();"),
    (4, "acc[0] = c.lane < 4 ? tk::shfl_xor(acc[0], 1) : 0.f;"),
    (4, "if (tk::elect()) { tk::bar_sync(1, 64); }"),
    (4, "if (c.lane == 3) return; tk::cta_sync();"),
    # rule 5: waits
    (5, "if (c.lane < 16) tk::mbar_wait(c.sb, c.n, c.watch);"),
    (5, "for (u32 i = 0; i < c.n; ++i) tk::mbar_wait(c.sb, 0, c.watch);"),
    # rule 6: proxy fences
    (
        6,
        "tk::sts32(c.sb, 1); tk::syncwarp(); tk::bulk_s2g(c.p.workspace, c.sb, 128); tk::bulk_commit();",
    ),
    (6, "tk::wait_ge(c.counter(0), 1, c.watch); tk::bulk_g2s(c.sb, c.p.workspace, 128, c.sb + 512);"),
    # rule 7: bulk stores
    (
        7,
        "tk::bulk_s2g(c.p.workspace, c.sb, 128); tk::bulk_commit(); tk::bulk_wait_read<0>();"
        " tk::red_release(c.p.status, 1);",
    ),
    (7, "tk::bulk_s2g(c.p.workspace, c.sb, 128);"),
    # rule 8: hidden state
    (8, "static u32 calls = 0;"),
    (8, "__shared__ float tile[32];"),
    # rule 9: accumulators
    (9, "tk::wgmma_bf16(acc, c.sb, c.sb); const float early = acc[0]; tk::wgmma_wait<0>();"),
    (9, "tk::wgmma_bf16(choose(acc, c.n), c.sb, c.sb); tk::wgmma_wait<0>();"),
    # rule 10: device-only C++
    (10, "auto f = [&] __device__ (u32 x) { return x; };"),
    (10, "auto f = [&]() __device__ { return 1; };"),
    (10, "helper<<<1, 32>>>(c.n);"),
    (10, "auto g = cooperative_groups::this_grid();"),
]

OUTSIDE = [
    (
        1,
        "TK_FN u32 peek(const u32* p) { return p[0]; }\n"
        "TK_FN u32 user(Context& c) { return peek(reinterpret_cast<const u32*>(c.p.image)); }",
    ),
    (1, "#define SLEEP __nanosleep(100)"),
    (8, "static float scratch[32];"),
    (8, "u32 counter;"),
    (8, "namespace { u32 counter = 0; }"),
    (8, "__device__ u32 counter;"),
    (10, "__constant__ float table[16];"),
    (10, "#include <cooperative_groups.h>"),
    (10, "#include <cuda_bf16.h>"),
    (10, "__global__ void other() {}"),
    (10, "#ifdef __CUDACC__\nTK_FN u32 twice(u32 x) { return 2 * x; }\n#endif"),
    (11, "TK_FN float decode_mxfp4(u32 x) { return tk::exp2_(static_cast<float>(x)); }"),
    (11, "TK_FN u32 scaled(u32 x) { return tk::bf16x2_mul_ftz(x, x); }"),
]

RIGHT = """
  const u32 g = c.lane >> 2;
  for (u32 i = c.lane; i < c.n; i += 32) tk::sts32(c.sb + 4 * i, 0);
  u32 words[4] = {0, 1, 2, 3};
  u32* w = words + 1;
  const float* a = acc + 1;
  out[0] = a[0] * w[1] * c.p.rows[2];
  tk::fence_proxy_async();
  tk::syncwarp();
  if (tk::elect()) {
    tk::bulk_s2g(c.p.workspace + 128 * g, c.sb, 128);
    tk::bulk_commit();
    tk::bulk_wait<0>();
    tk::red_release(c.p.status, 1);
  }
  if (c.lane == 0 && c.n > 1) tk::mbar_arrive(c.sb + 512);
  const u32 total = tk::shfl_idx(c.lane, 31);
  if (total == 31) tk::syncwarp();
  if (g < c.n) tk::stg32(&c.p.status[g], 1);
  for (u32 i = 0; i < c.n; ++i) {
    const u32 k = i & 1;
    if (k == c.warp) tk::mbar_wait(c.sb, k, c.watch);
  }
  // asm, __ldg, volatile, <<<>>> in a comment, and "asm" in text
  tk::name_role(1, "asm volatile __syncthreads() static");
  tk::wgmma_bf16(acc, c.sb, c.sb);
  tk::wgmma_wait<0>();
  out[1] = acc[1];
"""


def lint(inside: str = "", outside: str = "") -> tuple[list[Diagnostic], str]:
    text = FRAME.format(inside=f"  {inside}", outside=outside)
    return lint_texts({Path("edited.cu"): text}), text


@pytest.mark.parametrize(("rule", "inside"), INSIDE, ids=lambda v: str(v)[:40])
def test_broken_rule_is_refused(rule: int, inside: str) -> None:
    found, text = lint(inside)
    assert {d.code for d in found} == {CODES[rule]}, [d.message for d in found]
    lines = text.splitlines()
    for d in found:
        assert d.message.startswith(f"rule {rule}: ") and d.help and d.span is not None
        assert d.span.file == "edited.cu" and lines[d.span.line - 1].strip() == inside
        assert d.span.col >= 3


@pytest.mark.parametrize(("rule", "outside"), OUTSIDE, ids=lambda v: str(v)[:40])
def test_broken_rule_at_file_scope_is_refused(rule: int, outside: str) -> None:
    found, text = lint(outside=outside)
    assert {d.code for d in found} == {CODES[rule]}, [d.message for d in found]
    begin = text[: text.index(outside)].count("\n") + 1
    assert all(d.span and begin <= d.span.line <= begin + outside.count("\n") for d in found)


def test_right_text_passes() -> None:
    assert [d.message for d in lint(RIGHT)[0]] == []
    assert sorted(CODES) == sorted(RULES) and all(RULES[n][0] == code for n, code in CODES.items())


def test_nothing_we_ship_breaks_a_rule(tiny_package: Path) -> None:
    headers = [p for p in INCLUDE.iterdir() if p.suffix in (".cuh", ".h") and not p.name.startswith("tk_")]
    assert len(headers) >= 7
    assert [(d.message, d.span) for d in lint_texts({p: p.read_text() for p in headers})] == []
    manifest = Manifest.load(tiny_package)
    assert [(d.message, d.span) for d in lint_package(tiny_package, manifest.source)] == []
    kernels = [
        *(ROOT / "tests" / "emulator" / "kernels").glob("*.cu"),
        ROOT / "tests" / "build" / "sample.cu",
    ]
    for kernel in kernels:
        found = lint_texts({kernel: kernel.read_text()})
        # These two hold one mistake per mode on purpose.
        mistakes = {"misuse.cu": {"TC0922", "TC0924", "TC0926"}, "hopper.cu": {"TC0927", "TC0929"}}
        expected = mistakes.get(kernel.name, set())
        assert {d.code for d in found} == expected, [(d.message, d.span) for d in found]


EDITS = [
    (1, 'asm volatile("membar.gl;" ::: "memory");'),
    (1, "if (c.p.workspace[0] == 1) return;"),
    (2, "while (tk::ld_acquire(c.counter(0)) == 0) {}"),
]
"""What somebody may add to the consumer's loop by hand."""


@pytest.mark.parametrize(("rule", "line"), EDITS)
def test_edited_package_is_refused_before_it_is_built(
    rule: int, line: str, cli: Any, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "edited"
    shutil.copytree(tiny_package, package)
    header = package / "include" / "op_gemv.cuh"
    lines = header.read_text().splitlines()
    at = next(n for n, text in enumerate(lines) if "tk::mbar_wait(c.a_full(" in text)
    lines.insert(at, f"        {line}")
    header.write_text("\n".join(lines) + "\n")

    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("the text was compiled")

    monkeypatch.setattr("tilecc.runtime.devices.emulator.build_emulator_kernel", never)
    monkeypatch.setattr("tilecc.build.nvcc._Build.compile", never)
    shown = cli("emulate", package, "--checkpoint", CHECKPOINT, "--seeds", 1)
    assert shown.code == CATALOGUE[CODES[rule]].exit_code == 1 and shown.out == ""
    assert f"error[{CODES[rule]}]: rule {rule}: " in shown.err
    assert f"--> {header}:{at + 1}:" in shown.err and f"{at + 1} |         {line}" in shown.err
    run = cli("run", package, "--checkpoint", CHECKPOINT, "--prompt", "x")
    assert f"error[{CODES[rule]}]: rule {rule}: " in run.err
    if shutil.which("nvcc"):
        from tilecc.build.nvcc import build_cuda
        from tilecc.diag import TileccError

        with pytest.raises(TileccError) as caught:
            build_cuda(package)
        assert {d.code for d in caught.value.diagnostics} == {CODES[rule]}

    linted = cli("lint", package, "--json")
    facts = json.loads(linted.out)
    assert linted.code == 1 and facts["edited"] is True
    assert facts["diagnostics"][0]["spans"][0]["line"] == at + 1


def test_lint_command(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    shown = cli("lint", tiny_package)
    assert (shown.code, shown.out) == (0, "") and "no rule is broken" in shown.err
    assert json.loads(cli("lint", tiny_package, "--json").out) == {"edited": False, "diagnostics": []}
    alone = cli("lint", ROOT / "tests" / "emulator" / "kernels" / "misuse.cu")
    assert alone.code == 1 and "error[TC0924]: rule 4: " in alone.out and "syncwarp" in alone.out
    (tmp_path / "x").mkdir()
    assert "TC0601" in cli("lint", tmp_path / "x").err


def test_harmless_edit_of_a_package_runs(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    package = tmp_path / "edited"
    shutil.copytree(tiny_package, package)
    manifest = Manifest.load(package)
    kernel = package / manifest.source
    kernel.write_text(kernel.read_text() + "// a note\n")
    shown = cli("lint", package)
    assert shown.code == 0 and "the text was edited since it was compiled" in shown.err
    with Engine.open(package, CHECKPOINT, grid=2) as engine:
        assert len(engine.generate([5], 1, stop_ids=()).tokens) == 1


def test_primitives_of_another_version_are_refused(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    """A hand-made change of the emulation would not be what the runtime is linked against."""
    package = tmp_path / "other"
    shutil.copytree(tiny_package, package)
    header = package / "include" / "tk_emu_mem.h"
    header.write_text(header.read_text() + "// older\n")
    shown = cli("emulate", package, "--checkpoint", CHECKPOINT, "--seeds", 1)
    found = re.findall(r"version ([0-9a-f]{16})", shown.err)
    assert shown.code == 1 and "error[TC0602]" in shown.err and len(set(found)) == 2


def test_tokens_keep_their_places() -> None:
    text = (
        'a /* asm\n */ b = R"x(\n)x"; // asm\n#define F(x) \\\n  asm(x)\n#if __CUDACC__\n c<<<1\n#endif\nd\n'
    )
    tokens, directives = tokenize(text)
    assert [(t.text, t.line, t.col) for t in tokens if t.text in ("a", "b", "asm", "c", "<<<", "d")] == [
        ("a", 1, 1),
        ("b", 2, 5),
        ("asm", 5, 3),
        ("c", 7, 2),
        ("<<<", 7, 3),
        ("d", 9, 1),
    ]
    assert [t.text for t in tokens if t.directive] == ["asm", "(", "x", ")"]
    assert [t.text for t in tokens if t.device_only] == ["c", "<<<", "1"]
    assert [d.name for d in directives] == ["define", "if", "endif"]
