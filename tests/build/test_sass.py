"""Machine code counted: parsing, control codes, loops, the steady path, attribution, the bandwidth model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tilecc.build.disassemble import find_tool
from tilecc.build.loop_model import LoopCounts, bounds
from tilecc.build.nvcc import find_nvcc, nvcc_version
from tilecc.build.sass import (
    PIPES,
    Control,
    Frame,
    Instruction,
    Listing,
    decode_control,
    parse_sass,
    shared_wavefronts,
)
from tilecc.build.sass_loops import FlowGraph
from tilecc.build.sass_stats import SassReport, sass_stats, weights_of
from tilecc.cli.sass import render
from tilecc.diag import InternalError, TileccError, exit_code_of
from tilecc.emit.single import SingleOp, one_op_package
from tilecc.ir.program import OpClass
from tilecc.target import find_target

MODEL = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny.py"

TEXT = '''
.text.kernel:
\t//## File "/p/include/tk_ptx_core.cuh", line 7 inlined at "/p/kernels/k.cu", line 203
\t//## File "/p/kernels/k.cu", line 203
        /*0000*/                   S2R R37, SR_TID.X ;                          /* 0x0000000000257919 */
                                                                                /* 0x000e220000002100 */
\t//## File "/p/kernels/k.cu", line 204
.L_x_7:
        /*0010*/                   SHF.R.U32.HI R51, RZ, 0x5, R37 ;             /* 0x00000005ff337819 */
                                                                                /* 0x001fc80000011625 */
        /*0020*/               @!P0 BRA `(.L_x_7) ;                             /* 0x0000000400000947 */
                                                                                /* 0x000fea0003800000 */
        /*0030*/                   EXIT ;                                       /* 0x000000000000794d */
                                                                                /* 0x000fea0003800000 */
'''  # fmt: skip


def test_parse() -> None:
    (listing,) = parse_sass(TEXT)
    assert listing.name == "kernel" and listing.labels == {".L_x_7": 16}
    s2r, shift, branch, leave = listing.instructions
    inner = Frame("/p/include/tk_ptx_core.cuh", 7)
    assert s2r.frames == (inner, Frame("/p/kernels/k.cu", 203)) and shift.frames == (
        Frame("/p/kernels/k.cu", 204),
    )
    assert (branch.predicate, branch.base, branch.target, branch.offset) == ("@!P0", "BRA", ".L_x_7", 32)
    assert [i.pipe for i in listing.instructions] == ["move", "integer", "control", "control"]
    assert leave.operands == "" and shift.opcode == "SHF.R.U32.HI"
    with pytest.raises(ValueError, match="no second encoding word after EXIT"):
        parse_sass(TEXT.rstrip().rpartition("\n")[0] + "\nother\n")


def test_control_codes_of_known_code() -> None:
    """The load of a special register sets scoreboard 0, its first user waits for it."""
    (listing,) = parse_sass(TEXT)
    s2r, shift, branch, _ = (i.control for i in listing.instructions)
    assert s2r == Control(stall=1, yield_=True, write=0, read=-1, wait=())
    assert shift.wait == (0,) and shift.stall == 4 and (shift.write, shift.read) == (-1, -1)
    assert branch.stall == 5
    assert decode_control(0x020FE20000041814 & ~(0x3F << 52) | (0b101 << 52)).wait == (0, 2)


def code(*lines: str) -> Listing:
    """A listing of "label: OPCODE operands" lines."""
    listing = Listing("k")
    for line in lines:
        label, _, rest = line.rpartition(": ")
        if label:
            listing.labels[label] = 16 * len(listing.instructions)
        predicate, _, rest = rest.rpartition("| ")
        opcode, _, operands = rest.partition(" ")
        control = Control(1, False, -1, -1, ())
        place = (Frame("k.cu", 1),)
        listing.instructions.append(
            Instruction(16 * len(listing.instructions), predicate, opcode, operands, control, place)
        )
    return listing


LOOP = code(
    "MOV R0, RZ",
    "HEAD: SYNCS.PHASECHK P0",
    "@P0| BRA `(READY)",
    "SPIN: SYNCS.PHASECHK P0",
    "@!P0| BRA `(SPIN)",
    "READY: LDS.128 R4, [R0]",
    "ISETP P1",
    "@P1| BRA `(SKIP)",
    "HMMA.16816.F32.BF16 R4",
    "HMMA.16816.F32.BF16 R8",
    "SKIP: IADD3 R0, R0",
    "BRA.DIV UR4, `(COLD)",
    "BACK: ISETP P2",
    "@P2| BRA `(HEAD)",
    "EXIT",
    "COLD: MOV R9, R9",
    "NOP",
    "BRA `(BACK)",
)


def test_loops_and_the_steady_path() -> None:
    graph = FlowGraph(LOOP)
    heads = [graph.code(loop.header)[0].offset // 16 for loop in graph.loops]
    assert heads == [1, 3]
    outer, spin = graph.loops
    assert spin.blocks < outer.blocks and len(graph.loop_code(outer)) == 16
    path = graph.steady_path(outer)
    # The wait succeeds, the products are made, nobody diverges.
    assert [i.offset // 16 for i in path.instructions] == [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert path.inner_loops == ()


def test_an_inner_loop_that_cannot_be_skipped_is_named() -> None:
    listing = code(
        "HEAD: MOV R0, RZ", "INNER: IADD3 R1, R1", "@P0| BRA `(INNER)", "HMMA.16816.F32.BF16 R4",
        "@P1| BRA `(HEAD)", "EXIT",
    )  # fmt: skip
    graph = FlowGraph(listing)
    path = graph.steady_path(graph.loops[0])
    assert len(path.instructions) == 5 and [graph.code(b)[0].offset for b in path.inner_loops] == [16]


def gemv(format: str, **more: int) -> OpClass:
    return OpClass(
        "O", "project", {"format": format, "matrix_rows": 16, "matrix_cols": 128, **more}, 0, 1, ""
    )


def test_weights_come_from_the_products_and_the_constants() -> None:
    hmma = tuple(code(*["HMMA.16816.F32.BF16 R0"] * 6).instructions)
    assert weights_of(gemv("bf16"), hmma, 8) == 6 * 256
    assert weights_of(gemv("f32"), hmma, 8) == 2 * 256
    assert weights_of(gemv("mxfp4"), hmma, 16) == 3 * 256
    assert weights_of(OpClass("A", "attention", {}, 0, 1, ""), hmma, 8) is None
    assert weights_of(gemv("fp8_block"), tuple(code("HGMMA.64x8x16.F32.BF16 R0").instructions), 8) == 256
    assert weights_of(gemv("f32"), tuple(code(*["FFMA R0"] * 16).instructions), 8) == 64
    with pytest.raises(InternalError, match="multiply-adds in the main loop of O"):
        weights_of(gemv("f32"), hmma[:4], 8)
    with pytest.raises(InternalError, match="no multiply-add count for tensor instruction QMMA"):
        weights_of(gemv("bf16"), tuple(code("QMMA.16832 R0").instructions), 8)


def test_pipes() -> None:
    samples = {
        "LOP3.LUT": "integer", "IMAD.MOV.U32": "imad", "F2FP.BF16.F32.PACK_AB": "conversion", "FFMA": "fp32",
        "HMUL2.BF16_V2": "half2", "MUFU.EX2": "special", "HMMA.16816.F32.BF16": "tensor", "LDS.128": "shared",
        "LDG.E.64": "global", "SHFL.BFLY": "move", "SYNCS.ARRIVE": "barrier", "BSSY": "control",
        "UIADD3": "uniform", "S2UR": "uniform", "XYZ": "other", "ULDC.64": "global",
    }  # fmt: skip
    for opcode, pipe in samples.items():
        assert code(f"{opcode} R0").instructions[0].pipe == pipe, opcode
        assert pipe in PIPES
    passes = {"LDS R0": 1, "LDS.U8 R0": 1, "LDS.64 R0": 2, "LDS.128 R0": 4, "LDSM.16.M88.4 R0": 4}
    for line, wanted in passes.items():
        assert shared_wavefronts(code(line).instructions[0]) == wanted, line


def test_the_budget_of_an_h200() -> None:
    """peers.md: 20.7 B per clock and SM are 39 MXFP4 weights, 3.3 instructions of which 1.6 integer."""
    target = find_target("sm_90a")
    bytes_per_weight = 17 / 32
    assert target.sm.hbm_bytes(target.sms) == pytest.approx(20.7, abs=0.05)
    weights = target.sm.hbm_bytes(target.sms) / bytes_per_weight
    assert target.sm.issue / weights == pytest.approx(3.3, abs=0.05)
    assert target.sm.alu / weights == pytest.approx(1.6, abs=0.05)


def test_bounds_by_hand() -> None:
    target = find_target("sm_90a")
    counts = LoopCounts(
        pipes={"integer": 64, "imad": 16, "half2": 32, "fp32": 8, "tensor": 4, "shared": 8},
        wavefronts=16, products=4 * 2048, stalls=400, weights=1024, weight_bytes=0.5,
    )  # fmt: skip
    clocks = {b.resource: b.clocks_per_weight for b in bounds(counts, target.sm, 132, warps=4)}
    assert clocks == {
        "issue slots": pytest.approx(132 / 32 / 128),
        "integer pipe": pytest.approx(2 / 64),
        "FMA pipe": pytest.approx(0.5 / 64 + 1 / 128),  # the heavy half: IMAD and packed operations
        "shared memory": pytest.approx((2 + 0.5) / 128),
        "tensor pipe": pytest.approx(8 / 1024),
        "stalls": pytest.approx(400 / 1024 / 4),
    }
    first = bounds(counts, target.sm, 132, warps=4)[0]
    assert first.resource == "stalls" and first.share == pytest.approx(0.5 / 20.7 / (400 / 4096), rel=1e-2)


# ------------------------------------------------------------------------------------------------- real code


def tools_missing() -> str | None:
    """What is missing to read machine code, None if nothing is."""
    try:
        find_nvcc()
        find_tool("cuobjdump")
        find_tool("nvdisasm")
    except TileccError as missing:
        return missing.diagnostics[0].message
    return None


needs_tools = pytest.mark.skipif(tools_missing() is not None, reason=str(tools_missing()))

GOLDEN_COMPILER = "13.0.88"


def compare(golden: Callable[[str, str], None], name: str, report: SassReport) -> None:
    """The report as text. Machine code is the compiler's: a golden file is of one nvcc."""
    if report.compiler != GOLDEN_COMPILER:
        pytest.skip(f"golden machine code is of nvcc {GOLDEN_COMPILER}, this is {report.compiler}")
    golden(f"sass/{name}-{report.target}-nvcc{report.compiler}.txt", render(report) + "\n")


LOOPS = {
    "mxfp4": SingleOp("gate_up", "mxfp4", 512, 6144),
    "fp8_block": SingleOp("gate_up", "fp8_block", 512, 6144),
    "bf16": SingleOp("head", "bf16", 19072, 6144),
    "f32": SingleOp("router", "f32", 384, 6144),
}
"""The loops at the columns of MiMo-V2.5-Pro."""


@needs_tools
@pytest.mark.parametrize("target", ["sm_90a", pytest.param("sm_100a", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("format", LOOPS)
def test_loops_at_full_size(
    format: str, target: str, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    package = one_op_package(tmp_path / "p", LOOPS[format])
    report, listed = sass_stats(package.directory, target)
    (loop,) = report.loops
    k = report.kernel
    assert (k.stack_bytes, k.spill_store_bytes, k.spill_load_bytes, k.static_smem_bytes) == (0, 0, 0, 0)
    # An iteration multiplies whole fragments, and several iterations or warps make up a chunk of a group.
    c = package.program.classes[0].constants
    chunk = int(c["tile_group"]) * int(c["tile_chunk"]) * 16 * 128
    assert loop.weights is not None and loop.weights % 256 == 0 and chunk % loop.weights == 0
    assert loop.unknown_inner_loops == 0 and "other" not in loop.pipes
    assert loop.waits >= 1  # for the weights, at least
    assert sum(loop.pipes.values()) == loop.instructions == sum(loop.opcodes.values())
    assert sum(report.role_bytes.values()) == report.code_bytes == 16 * len(listed.listing.instructions)
    compare(golden, f"loop-{format}", report)


@needs_tools
def test_inspect_counts_the_tiny_model(tmp_path: Path, cli: Any, golden: Callable[[str, str], None]) -> None:
    from tilecc.emit.compiler import compile_model

    package = tmp_path / "mimo_tiny"
    compile_model(MODEL, target="sm_90a", out=package)
    shown = cli("inspect", str(package), "--sass-stats")
    assert shown.code == 0
    report, _ = sass_stats(package)
    assert shown.out == render(report) + "\n"
    gemvs = {loop.op for loop in report.loops if loop.weights}
    assert gemvs == {
        "QkvGlobal", "QkvWindow32", "OProj", "GateUp", "Down", "Router", "ExpertsUp", "ExpertsDown", "Head",
    }  # fmt: skip
    assert {loop.op for loop in report.loops} - gemvs == {"AttentionGlobal", "AttentionWindow32"}
    listed = cli("inspect", str(package), "--sass-stats", "--listing", "OProj")
    made = sum(loop.opcodes["HMMA"] for loop in report.loops if loop.op == "OProj")
    assert listed.code == 0 and listed.out.count("HMMA.16816.F32.BF16") == made > 0
    wrong = cli("inspect", str(package), "--sass-stats", "--listing", "OProjj")
    assert wrong.code == 2 and "TC0703" in wrong.err and "OProj" in wrong.err
    compare(golden, "mimo_tiny", report)


def test_missing_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TileccError) as caught:
        find_tool("nvdisasm")
    (found,) = caught.value.diagnostics
    assert found.code == "TC0507" and exit_code_of([found]) == 3 and "tilecc[toolchain]" in found.help[0]


def test_a_disassembler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tilecc.build import disassemble

    fake = tmp_path / "nvdisasm"
    fake.write_text("#!/bin/sh\necho 'unknown architecture' >&2\necho more >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(TileccError) as caught:
        disassemble._run([str(fake)], tmp_path)
    (found,) = caught.value.diagnostics
    assert found.code == "TC0508" and "unknown architecture" in found.message and found.notes == ("more",)


def test_nvcc_version_is_what_goldens_are_named_after() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine")
    assert nvcc_version(find_nvcc()).count(".") == 2
