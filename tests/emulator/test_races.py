"""The detectors: injected mistakes are reported in every seed with their class, harmless edits in none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.harness import CONFIGS, KERNELS, Chain, build_text, library, mutated
from tests.emulator.test_execution import run_sync
from tests.emulator.test_findings import run_misuse
from tilecc.runtime.devices.emu_lib import (
    DETECT_PARITY,
    DETECT_RACES,
    DETECT_UNINIT,
    EmulatorLibrary,
    Finding,
)

ALL = DETECT_RACES | DETECT_UNINIT | DETECT_PARITY
RACE, FENCE, PARITY, UNINIT = "TC0912", "TC0914", "TC0911", "TC0913"
SEEDS = range(10)

READ_STAGE = "sb + kRing + slot * kStageBytes + i * 2048"
RELEASE_STAGE = """        syncwarp();
        mbar_arrive(sb + kEmpty + 8 * slot);
"""
WAIT_FULL = "        mbar_wait(sb + kFull + 8 * slot, phase, w);\n"
HALF_WAIT = "        if (lane() < 16) mbar_wait(sb + kFull + 8 * slot, phase, w);\n"
WAIT_EMPTY = "        mbar_wait(sb + kEmpty + 8 * slot, phase, w);\n"
WAIT_X = "    mbar_wait(sb + kXFull, x_phase, w);\n"
FENCE_OUT = """      fence_proxy_async();
      syncwarp();
      mbar_arrive(sb + kOutFull);"""
SIGNAL = "red_release(p.counters + (op + 1) * 32, 1);"
DEPEND = "      wait_ge(p.counters + op * 32, p.tiles, w);\n"

# name -> (edits, codes one of which must be the class of some finding, part of the line a race points to)
MUTATIONS: dict[str, tuple[list[tuple[str, str]], set[str], str]] = {
    "full wait dropped": ([(WAIT_FULL, "")], {RACE, "TC0907", UNINIT}, ""),
    "half of the lanes wait": ([(WAIT_FULL, HALF_WAIT)], {RACE, UNINIT}, ""),
    "empty wait dropped": ([(WAIT_EMPTY, "")], {RACE, "TC0907"}, ""),
    "acts wait dropped": ([(WAIT_X, "")], {RACE, UNINIT}, "lds64("),
    "stage released before it is read": (
        [(WAIT_FULL, WAIT_FULL + RELEASE_STAGE), ("b);\n" + RELEASE_STAGE, "b);\n")],
        {RACE},
        "",
    ),
    "relaxed signal": ([(SIGNAL, SIGNAL.replace("release", "relaxed"))], {RACE}, ""),
    "dependency wait dropped": ([(DEPEND, "")], {RACE, UNINIT}, ""),
    "dependency target off by one": ([(DEPEND, DEPEND.replace("p.tiles", "p.tiles - 1"))], {RACE}, ""),
    "no proxy fence before the bulk store": (
        [(FENCE_OUT, FENCE_OUT.replace("fence_proxy_async();", ""))],
        {FENCE},
        "bulk_s2g",
    ),
    "no syncwarp before the elected release": (
        [(RELEASE_STAGE, RELEASE_STAGE.replace("syncwarp();", ""))],
        {RACE},
        "",
    ),
    "no syncwarp before the output is handed over": (
        [(FENCE_OUT, FENCE_OUT.replace("syncwarp();", ""))],
        {RACE, FENCE},
        "bulk_s2g",
    ),
    "bulk store not complete when signalled": (
        [("bulk_wait<0>();", "bulk_wait_read<0>();")],
        {RACE, "TC0909"},
        "",
    ),
    "output slot overwritten": (
        [("      mbar_wait(sb + kOutEmpty, out_phase, w);\n", "")],
        {RACE},
        "sts_u16",
    ),
    "stage read one step too far": (
        [(READ_STAGE, READ_STAGE.replace("i *", "(i + (c == 3 && k)) *"))],
        {RACE, "TC0903"},
        "",
    ),
    "whole warp loads without syncwarp": (
        [("if (elect()) load_weights(p, sb, w);", "load_weights(p, sb, w);")],
        {PARITY, "TC0901"},
        "",
    ),
    "no barrier after init": ([("  cta_sync();\n", "")], {"TC0907"}, ""),
    "start parity wrong": ([("u32 slot = 0, phase = 1;", "u32 slot = 0, phase = 0;")], {"TC0901"}, ""),
    "count too high": (
        [("mbar_init(sb + kEmpty + 8 * i, 4);", "mbar_init(sb + kEmpty + 8 * i, 5);")],
        {"TC0901"},
        "",
    ),
    "expects too few bytes": (
        [("expect_tx(sb + kXFull, p.k16 * 256)", "expect_tx(sb + kXFull, p.k16 * 256 - 16)")],
        {"TC0901", RACE, "TC0907"},
        "",
    ),
    "weights past their end": (
        [("from + k * 2048,", "from + k * 2048 + (k + 4 == p.k16 ? 16 : 0),")],
        {"TC0904"},
        "bulk_g2s",
    ),
}

HARMLESS = {
    "half of the lanes wait for all": [(WAIT_FULL, HALF_WAIT + "        syncwarp();\n")],
    "second syncwarp": [
        (
            "    syncwarp();\n    mbar_arrive(sb + kXEmpty);",
            "    syncwarp();\n    syncwarp();\n    mbar_arrive(sb + kXEmpty);",
        )
    ],
    # The outputs are written by bulk stores only: no generic write needs a proxy fence.
    "redundant proxy fences": [
        (
            "      fence_proxy_async();\n    }\n    mbar_arrive_expect_tx(sb + kXFull",
            "    }\n    mbar_arrive_expect_tx(sb + kXFull",
        ),
        ("      fence_proxy_async();\n      red_release", "      red_release"),
    ],
    "fence and relaxed signal": [(SIGNAL, "fence_gpu();\n      " + SIGNAL.replace("release", "relaxed"))],
}


def campaign(lib: EmulatorLibrary, seeds: range) -> list[list[Finding]]:
    """One adversarial run with all detectors per seed; returns the findings of each."""
    chain = Chain(dim=256, n_ops=3, grid=2)
    runs = []
    for seed in seeds:
        schedule, landing, preempt = CONFIGS[1 + seed % 3]
        result, _ = chain.launch(
            lib,
            schedule=schedule,
            landing=landing,
            preempt=preempt,
            seed=seed,
            detect=ALL,
            max_switches=20_000_000,
        )
        assert result.ok == (not result.findings)
        runs.append(result.findings)
    return runs


def test_clean_seeds_have_no_findings() -> None:
    assert campaign(library("chain"), range(60)) == [[]] * 60
    for seed in range(12):
        config = CONFIGS[seed % 4]
        result, _, _ = run_sync(3, 2**32 - 2, 4, config, seed, ALL)
        assert result.ok, result.report
        result, _ = run_misuse(0, config, seed, ALL)
        assert result.ok, result.report


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_mutation_is_reported_in_every_seed(name: str, tmp_path: Path) -> None:
    edits, codes, line_text = MUTATIONS[name]
    text = mutated("chain", *edits)
    lib = build_text(text, "chain_mutant", tmp_path)
    for seed, findings in zip(SEEDS, campaign(lib, SEEDS), strict=True):
        assert codes & {f.code for f in findings}, (seed, findings)
        if line_text:
            first = next(f for f in findings if f.code in codes)
            places = [first.place, *(n for n in first.notes if " at " in n)]
            lines = [text.splitlines()[int(p.rsplit(":", 2)[1]) - 1] for p in places]
            assert any(line_text in line for line in lines), (seed, first)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_harmless_edit_is_not_reported(name: str, tmp_path: Path) -> None:
    lib = build_text(mutated("chain", *HARMLESS[name]), "chain_harmless", tmp_path)
    assert campaign(lib, SEEDS) == [[]] * len(SEEDS)


def test_a_race_names_both_places(tmp_path: Path) -> None:
    lib = build_text(mutated("chain", *MUTATIONS["output slot overwritten"][0]), "chain_mutant", tmp_path)
    findings = [f for f in campaign(lib, range(1))[0] if f.code == RACE]
    lines = (KERNELS / "chain.cu").read_text().splitlines()
    assert "(consumer)" in findings[0].message and "writes out +" in findings[0].message
    store = next(i for i, line in enumerate(lines, 1) if "bulk_s2g(" in line)
    assert any("bulk_s2g at" in n and f"chain_mutant.cu:{store}:" in n for n in findings[0].notes), findings[
        0
    ]
