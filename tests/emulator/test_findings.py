"""Mistakes in a kernel are reported with the right code, place and names; a right kernel is not."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.harness import (
    CONFIGS,
    KERNELS,
    READ_ONLY,
    UNINITIALISED,
    Buffer,
    Chain,
    LaunchOptions,
    aligned,
    build_text,
    library,
    mutated,
    places,
)
from tilecc.runtime.devices.emu_lib import DETECT_ALL, LaunchResult


def run_misuse(
    mode: int, config: tuple[int, int, int] = CONFIGS[0], seed: int = 0, detect: int = 0
) -> tuple[LaunchResult, np.ndarray]:
    source, out, counter, status = aligned(256), aligned(256), aligned(128), aligned(256)
    params = struct.pack("4QI4x", *(b.ctypes.data for b in (source, out, counter, status)), mode)
    buffers = [
        Buffer("in", source, READ_ONLY),
        Buffer("out", out, UNINITIALISED),
        Buffer("counter", counter),
        Buffer("status", status),
    ]
    schedule, landing, preempt = config
    options = LaunchOptions(1, 64, 1024, schedule, landing, detect, preempt, seed, max_switches=200_000)
    return library("misuse").launch(params, buffers, options), status.view(np.uint32)


# mode -> code, words of the report, text of the line it points to
MISTAKES = {
    1: ("TC0907", "initialises mbarrier", "mode == 1)"),
    2: ("TC0903", "outside every region", "mode == 2)"),
    3: ("TC0905", "lds128 at data + 248 (shared offset 376) is not aligned to 16 bytes", "mode == 3)"),
    4: ("TC0903", "touches an mbarrier", "mode == 4)"),
    5: ("TC0903", "leaves shared memory", "mode == 5)"),
    6: ("TC0903", "leaves shared memory", "mode == 6)"),
    7: ("TC0904", "ldg32 of 4 bytes at in + 256, past its 256 bytes", "mode == 7)"),
    8: ("TC0910", "stg32 writes to in + 0, which is read-only", "mode == 8)"),
    9: ("TC0905", "ldg64 at in + 4 is not aligned to 8 bytes", "mode == 9)"),
    10: ("TC0904", "the null pointer", "mode == 10)"),
    11: ("TC0906", "while other lanes of its warp are elsewhere", "if (ln < 16) syncwarp()"),
    12: ("TC0906", "other lanes", "syncwarp();"),
    13: ("TC0907", "one arrival too many on mbarrier first[0]", "mbar_arrive(sb + kBar);"),
    14: ("TC0907", "where no mbarrier was initialised", "mode == 14)"),
    15: ("TC0908", "named barrier 1 with 48 threads", "mode == 15)"),
    17: ("TC0905", "bulk_g2s destination at data + 8", "bulk_g2s(data + 8"),
    18: ("TC0905", "24 bytes; the size must be a multiple of 16", "mode == 18)"),
    19: ("TC0903", "crosses the end of its region", "mode == 19)"),
    20: ("TC0904", "bulk_g2s source of 144 bytes at in + 128", "mode == 20)"),
    21: ("TC0909", "bulk store of 64 bytes to out + 0 that was not waited for", "bulk_s2g(p.out"),
    22: ("TC0909", "bulk_wait<0> is missing", "bulk_s2g(p.out"),
    29: ("TC0944", "of its warpgroup executed different sequences of setmaxnreg", "mode == 29)"),
    26: ("TC0902", "did not end within 200000 thread switches", "nanosleep("),
    27: ("TC0903", "region overlap [256, 512) overlaps region data [128, 384)", "mode == 27)"),
    28: ("TC0904", "outside the registered buffers", "mode == 28)"),
    30: (
        "TC0909",
        "nobody waited for a load on mbarrier first[0]",
        "bulk_g2s(data, p.in, 32, sb + kBar);  //",
    ),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_right_kernel_has_no_findings(config: tuple[int, int, int]) -> None:
    for seed in range(5):
        result, _ = run_misuse(0, config, seed)
        assert result.ok and result.report == "", result.report


@pytest.mark.parametrize("mode", sorted(MISTAKES))
def test_mistake_is_reported(mode: int) -> None:
    code, words, line_text = MISTAKES[mode]
    lines = (KERNELS / "misuse.cu").read_text().splitlines()
    for config in CONFIGS:
        result, _ = run_misuse(mode, config)
        assert result.status == 1, (config, result.report)
        assert result.findings[0].code == code, result.report
        assert words in result.report
        if line_text:
            file, line, _column = result.findings[0].place.rsplit(":", 2)
            assert file.endswith("misuse.cu") and line_text in lines[int(line) - 1], result.report


# With the detectors: mode -> code, words, text of the line, configurations that show it.
DETECTED = {
    31: ("TC0907", "1 of its loads are still in flight", "bulk_g2s(data + 32, p.in, 32", (1, 3)),
    32: ("TC0943", "ldg_nc32 reads out + ", "ldg_nc32(p.out", range(4)),
    33: ("TC0943", "stg32 writes counter + 0, which the same launch reads", "stg32(p.counter, 5)", range(4)),
    34: ("TC0913", "ldg32 reads out + 16", "mode == 34)", range(4)),
    35: ("TC0913", "lds32 reads data + 28", "lds32(data + 28)", range(4)),
    37: ("TC0912", "counter + ", "cp_async16(data", range(4)),
    36: ("TC0913", "bulk_reduce_add_u32 reads out + 32", "bulk_reduce_add_u32(", range(4)),
}


@pytest.mark.parametrize("mode", sorted(DETECTED))
def test_detected_mistake(mode: int) -> None:
    """A phase that completes without one of its loads, read-only loads of what is written, a source that is
    written under a cp.async, and unwritten bytes that copies carry on: each is the only finding."""
    code, words, line, configs = DETECTED[mode]
    source = (KERNELS / "misuse.cu").read_text().splitlines()
    for config in configs:
        result, _ = run_misuse(mode, CONFIGS[config], seed=mode, detect=DETECT_ALL)
        assert [f.code for f in result.findings] == [code], (config, result.report)
        assert words in result.findings[0].message
        assert any(line in source[number - 1] for _, number in places(result.findings[0]))


@pytest.mark.parametrize("mode", [16, 23, 24, 25])
def test_lost_signals_deadlock(mode: int) -> None:
    words = {
        # Warp 1 alone completes its round of the barrier; warp 0 waits for a second warp.
        16: "bar_sync on named barrier 1, where 32 of 64 threads arrived",
        23: "mbar_wait on first[0] (phase 0, 0 of 1 arrivals pending, tx-count 16) for parity 0; op mistake",
        24: "wait_ge on counter + 0 for 7, which holds 0; op mistake, layer 5, item 6",
        25: "bar_sync on named barrier 4, where 32 of 64 threads arrived",
    }[mode]
    result, status = run_misuse(mode)
    assert result.status == 2 and result.findings[0].code == "TC0901"
    assert words in result.report, result.report
    if mode in (23, 24):
        assert "cta 0 warp 0 (tester)" in result.report
        line = int(re.search(r"(?:mbar_wait|wait_ge) on .*misuse\.cu:(\d+):", result.report)[1])
        assert f"mode == {mode})" in "".join(
            (KERNELS / "misuse.cu").read_text().splitlines()[line - 5 : line]
        )
        # The record a GPU's watchdog would leave: magic, cta, role, op, layer, item.
        assert status[:6].tolist() == [0x7443C0DE, 0, 3, 4, 5, 6]
        assert status[7:10].tolist() == ([0, 1, 1] if mode == 23 else [7, 0, 2])


def test_different_counts_at_a_named_barrier() -> None:
    result, _ = run_misuse(16, CONFIGS[1], 3)
    # Depending on who comes first the counts clash or warp 0 is left alone; both are reported.
    assert result.status in (1, 2) and result.findings[0].code in ("TC0901", "TC0908")


# Edits of the chain kernel, each of which must be noticed in some run of each configuration given.
MUTATIONS = {
    "missing signal": [
        (
            "      red_release(p.counters + (op + 1) * 32, 1);",
            "      if (tile) red_release(p.counters + (op + 1) * 32, 1);",
        )
    ],
    "wrong start parity": [("u32 slot = 0, phase = 1;", "u32 slot = 0, phase = 0;")],
    "barrier count": [("mbar_init(sb + kEmpty + 8 * i, 4);", "mbar_init(sb + kEmpty + 8 * i, 5);")],
    "expects too much": [
        (
            "mbar_arrive_expect_tx(sb + kXFull, p.k16 * 256);",
            "mbar_arrive_expect_tx(sb + kXFull, p.k16 * 256 + 16);",
        )
    ],
    "full wait dropped": [("        mbar_wait(sb + kFull + 8 * slot, phase, w);\n", "")],
    "empty wait dropped": [("        mbar_wait(sb + kEmpty + 8 * slot, phase, w);\n", "")],
    "no barrier after init": [("  cta_sync();\n", "")],
    "dependency wait dropped": [("      wait_ge(p.counters + op * 32, p.tiles, w);\n", "")],
}


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_mutation_is_noticed(name: str, tmp_path: Path) -> None:
    lib = build_text(mutated("chain", *MUTATIONS[name]), "chain_mutant", tmp_path)
    chain = Chain(dim=256, n_ops=3, grid=2)
    want = chain.reference()
    for seed in range(6):
        schedule, landing, preempt = CONFIGS[1 + seed % 3]
        result, out = chain.launch(lib, schedule=schedule, landing=landing, preempt=preempt, seed=seed)
        error = np.abs(out.astype(np.float64) - want).max()
        if not result.ok or not error <= 0.05 * np.abs(want).max():
            return
    pytest.fail("no run noticed the mutation")


def test_deadlock_names_every_waiter(tmp_path: Path) -> None:
    lib = build_text(mutated("chain", *MUTATIONS["missing signal"]), "chain_mutant", tmp_path)
    chain = Chain(dim=128, n_ops=2, grid=2)
    result, _ = chain.launch(lib, schedule=1, landing=2, seed=1)
    assert result.status == 2
    report = result.report
    waits = {
        "1 (acts) lane 0": "wait_ge on counters + 128 for 2, which holds 1; op gemv, layer 1",
        "3 (consumer) lanes 0-31": (
            "mbar_wait on x_full[0] (phase 1, 1 of 1 arrivals pending, tx-count 0) for parity 1; op gemv"
        ),
        "2 (storer) lane 0": "mbar_wait on out_full[0]",
    }
    for cta in (0, 1):
        for thread, wait in waits.items():
            assert f"cta {cta} warp {thread}: {wait}" in report, report
    lines = (KERNELS / "chain.cu").read_text().splitlines()
    line = int(re.search(r"wait_ge on .*chain_mutant\.cu:(\d+):", report)[1])
    assert "wait_ge(" in lines[line - 1]
    assert chain.status[0] == 0x7443C0DE
