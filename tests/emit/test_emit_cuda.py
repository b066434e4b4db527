"""The emitted kernel of the tiny model: golden text, determinism, IRs that print and parse back."""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecc.build.nvcc import build_cuda
from tilecc.emit.compiler import CompileResult, compile_model
from tilecc.emit.tables import ROW
from tilecc.ir.graph import Graph
from tilecc.ir.program import Program
from tilecc.ir.text import print_ir
from tilecc.ir.tile import TileGraph

MODEL = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny.py"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    return compile_model(MODEL, target="sm_90a", out=tmp_path_factory.mktemp("emit") / "mimo_tiny")


def test_golden(compiled: CompileResult, golden: Callable[[str, str], None]) -> None:
    for name in ("10-tiles.txt", "20-program.txt"):
        golden(f"mimo_tiny/{name}", compiled.texts[name])
    golden("mimo_tiny/mimo_tiny.cu", compiled.texts["step.cu"])


def test_every_ir_prints_and_parses_back(compiled: CompileResult) -> None:
    for name, kind in (("00-graph.txt", Graph), ("10-tiles.txt", TileGraph), ("20-program.txt", Program)):
        text = compiled.texts[name]
        assert print_ir(kind.from_text(text)) == text


def test_one_kernel_and_no_primitive_outside_the_header(compiled: CompileResult) -> None:
    text = compiled.texts["step.cu"]
    assert len(re.findall(r"TK_KERNEL\(tilecc_mimo_tiny", text)) == 1
    assert not re.search(r"\basm\b|__shfl|threadIdx|__shared__|\bvolatile\b|<<<", text)


def test_each_op_says_where_it_comes_from(compiled: CompileResult) -> None:
    text = compiled.texts["step.cu"]
    program = Program.from_text(compiled.texts["20-program.txt"])
    for op in program.classes:
        block = text[: text.index(f"struct {op.name}Op {{")].rstrip().splitlines()
        comment = []
        while block and block[-1].startswith("//"):
            comment.append(block.pop())
        assert any(op.loc.file in line for line in comment), op.name


def test_two_processes_write_the_same_package(compiled: CompileResult, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tilecc.emit.compiler import compile_model; "
        "compile_model(Path(sys.argv[1]), target='sm_90a', out=Path(sys.argv[2]))"
    )
    out = tmp_path / "other"
    subprocess.run(
        [sys.executable, "-c", code, str(MODEL), str(out)], check=True, env={"PYTHONHASHSEED": "7"}
    )
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(compiled.package_dir) for p in compiled.package_dir.rglob("*") if p.is_file()
    )
    for file in files:
        assert (out / file).read_bytes() == (compiled.package_dir / file).read_bytes(), file


def test_table_rows_are_the_rows_of_the_program(compiled: CompileResult) -> None:
    class Wait(ctypes.Structure):
        _fields_ = [("counter", ctypes.c_uint32), ("per_step", ctypes.c_uint32), ("ordinal", ctypes.c_int32)]

    assert ROW.size == 8 * 4 + 3 * ctypes.sizeof(Wait) + 3 * 4  # struct OpRow of op_common.cuh
    program = Program.from_text(compiled.texts["20-program.txt"])
    data = (compiled.package_dir / "tables.bin").read_bytes()
    rows = [data[i : i + ROW.size] for i in range(0, len(data), ROW.size)]
    assert len(rows) == len(program.prologue) + program.layers * len(program.body) + len(program.epilogue)
    present = [row for row in rows if struct.unpack_from("<I", row)[0]]
    assert len(present) == len(program.rows)
    order = {name: i for i, name in enumerate(program.body)}
    inside = sorted((r for r in program.rows if r.layer >= 0), key=lambda r: (r.layer, order[r.op]))
    outside = [r for r in program.rows if r.layer < 0]
    cut = len(program.prologue)
    for row, spec in zip(present, [*outside[:cut], *inside, *outside[cut:]], strict=True):
        words = ROW.unpack(row)
        assert words[1] == max(spec.layer, 0) and words[6] == len(spec.waits)
        waits = [tuple(words[8 + 3 * i : 11 + 3 * i]) for i in range(len(spec.waits))]
        assert waits == [(w.counter, w.per_step, w.ordinal) for w in spec.waits]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_nvcc_needs_neither_stack_nor_spills(compiled: CompileResult) -> None:
    report = build_cuda(compiled.package_dir, ["sm_90a", "sm_100a"])
    assert [(k.name, k.target) for k in report.kernels] == [
        ("tilecc_mimo_tiny", "sm_90a"),
        ("tilecc_mimo_tiny", "sm_100a"),
    ]
    for k in report.kernels:
        assert (k.stack_bytes, k.spill_store_bytes, k.spill_load_bytes) == (0, 0, 0), k
