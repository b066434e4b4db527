"""Findings as values: code, both places, notes; as diagnostics that show the lines of the kernel."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

from tests.emulator.harness import Chain, LaunchOptions, aligned, build_text, mutated
from tilecc.diag import render
from tilecc.runtime.devices.emu_lib import (
    DETECT_RACES,
    RANDOM,
    Buffer,
    Finding,
    Place,
    parse_report,
    place_of,
)
from tilecc.runtime.devices.emulator import KernelFault, _stopped, diagnostic_of

EARLY_RELEASE = [
    (
        "        u32 a[kStepsPerStage][4], b[kStepsPerStage][2];\n",
        "        u32 a[kStepsPerStage][4], b[kStepsPerStage][2];\n"
        "        syncwarp();\n        mbar_arrive(sb + kEmpty + 8 * slot);\n",
    ),
    (
        "        mma_bf16_n<kStepsPerStage>(acc, a, b);\n"
        "        syncwarp();\n        mbar_arrive(sb + kEmpty + 8 * slot);\n",
        "        mma_bf16_n<kStepsPerStage>(acc, a, b);\n        syncwarp();\n",
    ),
]
"""Consumers free a stage before they read it."""


def test_race_has_both_places(tmp_path: Path) -> None:
    library = build_text(mutated("chain", *EARLY_RELEASE), "chain", tmp_path)
    result, _ = Chain(dim=256).launch(library, schedule=RANDOM, preempt=10, detect=DETECT_RACES)
    found = [f for f in result.findings if f.code == "TC0912"]
    assert found, result.report
    lines = (tmp_path / "chain.cu").read_text().splitlines()
    pairs = set()
    for f in found:
        assert f.where is not None and len(f.others) == 1
        for place in (f.where, *f.others):
            # Relative to the folder that holds kernel and headers, as in a package.
            assert place.file == f"{tmp_path.name}/chain.cu"
            assert str(place) == f"{place.file}:{place.line}:{place.column}"
        pairs.add(tuple(lines[p.line - 1].strip().split("(")[0] for p in (f.where, *f.others)))
    assert pairs & {("bulk_g2s", "const u32x4 av = lds128"), ("const u32x4 av = lds128", "bulk_g2s")}

    shown = render(diagnostic_of(found[0], tmp_path.parent))
    assert shown.startswith("error[TC0912]: cta ")
    for place in (found[0].where, *found[0].others):
        assert place is not None
        assert f"--> {tmp_path}/chain.cu:{place.line}:{place.column}" in shown
        assert f"{place.line} | {lines[place.line - 1]}" in shown
    assert "no chain of releases and acquires orders the two" in shown
    assert "the other access is a" in shown.split("^")[-1]


def test_deadlock_names_every_waiter_s_place(tmp_path: Path) -> None:
    text = mutated("chain", ("mbar_init(sb + kEmpty + 8 * i, 4);", "mbar_init(sb + kEmpty + 8 * i, 5);"))
    result, _ = Chain(dim=256).launch(build_text(text, "chain", tmp_path))
    (finding,) = result.findings
    assert finding.code == "TC0901" and finding.where is None and len(finding.others) >= 6
    assert any("mbar_wait on empty[0]" in p.text for p in finding.others)
    shown = render(diagnostic_of(finding, tmp_path.parent))
    assert "mbar_wait(sb + kEmpty + 8 * slot, phase, w);" in shown and "more here)" in shown

    fault = _stopped(result, tmp_path.parent)
    assert isinstance(fault, KernelFault) and fault.result is result
    assert [d.code for d in fault.diagnostics] == ["TC0404"]
    assert [d.code for d in pickle.loads(pickle.dumps(fault)).findings] == ["TC0901"]


def test_parsing() -> None:
    report = (
        "error[TC0912]: one at first\n  --> kernels/a.cu:3:14\n"
        "  note: the other access is a write by x: lds128 at include/b.cuh:7:2\n  note: a fact at large\n"
        "error[TC0902]: two\n  --> kernels/a.cu:9:1\n"
    )
    assert parse_report(report) == [
        Finding(
            "TC0912",
            "one at first",
            "kernels/a.cu:3:14",
            ("note: the other access is a write by x: lds128 at include/b.cuh:7:2", "note: a fact at large"),
            (Place("include/b.cuh", 7, 2, "the other access is a write by x: lds128"),),
        ),
        Finding("TC0902", "two", "kernels/a.cu:9:1", ()),
    ]
    assert place_of("lanes 0-3 wait in mma at shared offset 12, at b.cu:1:2") == Place(
        "b.cu", 1, 2, "lanes 0-3 wait in mma at shared offset 12"
    )
    assert place_of("nothing here") is None


def test_stack_of_a_thread_is_bounded(tmp_path: Path) -> None:
    text = """
#include "tk_prim.cuh"
struct DeepParams { uint32_t* counter; uint32_t* status; };
TK_KERNEL(deep, 32)(TK_GRID_CONST DeepParams p) {
  volatile char large[68 << 10];
  for (int i = 0; i < 68 << 10; i += 64) large[i] = 1;
  tk::wait_ge(p.counter, large[64], tk::Watch{p.status, 0, 0, 0, 0});
}
TK_EMU_ENTRY(deep, DeepParams)
"""
    counter, status = aligned(128), aligned(256)
    params = struct.pack("2Q", counter.ctypes.data, status.ctypes.data)
    buffers = [Buffer("counter", counter), Buffer("status", status)]
    result = build_text(text, "deep", tmp_path).launch(params, buffers, LaunchOptions(1, 32, 1024))
    (finding,) = result.findings
    assert finding.code == "TC0917" and "used up its emulated stack" in finding.message
