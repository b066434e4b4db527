"""Scopes, data-as-flag words, several ranks in one process, and counters at their wrap."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.harness import (
    CONFIGS,
    UNINITIALISED,
    Buffer,
    EmulatorLibrary,
    LaunchOptions,
    LaunchResult,
    aligned,
    build_text,
    library,
    mutated,
    places,
)
from tilecc.runtime.devices.emu_lib import DETECT_PARITY, DETECT_RACES, DETECT_UNINIT, Finding

ALL = DETECT_RACES | DETECT_UNINIT | DETECT_PARITY
POISON, WORDS = 0x7FA57FA5, 64
ALL_REDUCE, RANKS, CTAS = 0, 1, 2
RACE, SCOPE, FLAG, DISTANCE = "TC0912", "TC0918", "TC0919", "TC0915"
SEEDS = range(10)


def terms(ranks: int, epochs: int, words: int) -> NDArray[np.uint32]:
    """[rank, epoch, word]: what each rank contributes."""
    r, e, w = np.ogrid[:ranks, :epochs, :words]
    return (r * 1000003 + e * 101 + w).astype(np.uint32)


class Peers:
    """The problem of ``kernels/peers.cu``."""

    def __init__(self, mode: int, ranks: int = 2, epochs: int = 4, base: int = 0) -> None:
        self.mode, self.ranks, self.epochs, self.base = mode, ranks, epochs, base % 2**32

    def launch(
        self, lib: EmulatorLibrary, seed: int, detect: int = ALL, prefilled: bool = True, shared: bool = True
    ) -> tuple[LaunchResult, list[NDArray[np.uint32]]]:
        """Run once with configuration and seed of ``seed``; returns (result, [epochs, words] per rank)."""
        sizes = {
            "slots": 2 * self.ranks * WORDS * 4,
            "wide": 2 * self.ranks * WORDS * 8,
            "counters": 256,
            "values": 128,
        }
        memory = {name: [aligned(n) for _ in range(self.ranks)] for name, n in sizes.items()}
        buffers = []
        for rank in range(self.ranks):
            memory["counters"][rank].view(np.uint32)[:] = self.base
            for name in ("slots", "wide"):
                memory[name][rank].view(np.uint32)[:] = POISON if prefilled else 0xFFFFFFFF
            for name in sizes:
                written = prefilled or name not in ("slots", "wide")
                buffers.append(
                    Buffer(
                        f"{name} of rank {rank}",
                        memory[name][rank],
                        2 if written else UNINITIALISED,
                        rank,
                        shared,
                    )
                )
        outs = [aligned(self.epochs * WORDS * 4) for _ in range(self.ranks)]
        self.status = [aligned(256) for _ in range(self.ranks)]
        params = b""
        for rank in range(self.ranks):
            for name in sizes:
                params += struct.pack("4Q", *[a.ctypes.data for a in memory[name]] + [0] * (4 - self.ranks))
            params += struct.pack("2Q", outs[rank].ctypes.data, self.status[rank].ctypes.data)
            params += struct.pack("6I", rank, self.ranks, self.epochs, self.mode, self.base, 0)
            buffers.append(Buffer("out", outs[rank], UNINITIALISED, rank))
            buffers.append(Buffer("status", self.status[rank], 2, rank))
        schedule, landing, preempt = CONFIGS[seed % 4]
        options = LaunchOptions(
            2, 32, 16, schedule, landing, detect, preempt, seed, max_switches=2_000_000, ranks=self.ranks
        )
        result = lib.launch(params, buffers, options)
        return result, [o.view(np.uint32).reshape(self.epochs, WORDS) for o in outs]

    def expected(self) -> list[NDArray[np.uint32]]:
        """[epochs, words] per rank; only the words that the mode writes."""
        t = terms(self.ranks, self.epochs, WORDS)
        if self.mode == ALL_REDUCE:
            return [2 * t.sum(0, dtype=np.uint32)] * self.ranks
        if self.mode == CTAS:
            return [t[r, :, :32] for r in range(self.ranks)]
        order = t[:, :, :32].transpose(1, 0, 2).reshape(-1, 32)
        running = np.cumsum(order, 0, dtype=np.uint32).reshape(self.epochs, self.ranks, 32)
        return [running[:, r] for r in range(self.ranks)]


@pytest.mark.parametrize("base", [0, 2**32 - 2])
@pytest.mark.parametrize("mode", [ALL_REDUCE, RANKS, CTAS])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_right_protocols(mode: int, ranks: int, base: int) -> None:
    peers = Peers(mode, ranks, epochs=5, base=base)
    for seed in range(8):
        result, outs = peers.launch(library("peers"), seed)
        assert result.ok, result.report
        for out, want in zip(outs, peers.expected(), strict=True):
            assert (out[:, : want.shape[1]] == want).all()


# name -> (mode, edits, code, words of the finding or its notes, text in a line that it names)
MUTATIONS: dict[str, tuple[int, list[tuple[str, str]], str, str, str]] = {
    "release at .gpu across ranks": (
        RANKS,
        [("red_release<Scope::kSys>(p.counters[next]", "red_release<Scope::kGpu>(p.counters[next]")],
        SCOPE,
        "red_release at .gpu scope",
        "red_release<Scope::kGpu>(p.counters[next]",
    ),
    "acquire at .gpu across ranks": (
        RANKS,
        [("wait_ge<Scope::kSys>(p.counters[p.rank]", "wait_ge<Scope::kGpu>(p.counters[p.rank]")],
        SCOPE,
        "wait_ge at .gpu scope",
        "wait_ge<Scope::kGpu>(p.counters[p.rank]",
    ),
    "relaxed signal across ranks": (
        RANKS,
        [("red_release<Scope::kSys>(p.counters[next]", "red_relaxed<Scope::kSys>(p.counters[next]")],
        RACE,
        "ordered only by red_relaxed at .sys scope",
        "red_relaxed<Scope::kSys>(p.counters[next]",
    ),
    # The last signal has usually come by then, but nobody may count on it.
    "wait for one signal too few": (
        CTAS,
        [("p.counters[p.rank], p.base + e + 1, w)", "p.counters[p.rank], p.base + e, w)")],
        RACE,
        "no chain of releases and acquires",
        "ldg32(p.values[p.rank] + lane())",
    ),
    "release at .cta across CTAs": (
        CTAS,
        [
            (
                "red_release<Scope::kGpu>(p.counters[p.rank], 1)",
                "red_release<Scope::kCta>(p.counters[p.rank], 1)",
            )
        ],
        SCOPE,
        "red_release at .cta scope",
        "red_release<Scope::kCta>(p.counters[p.rank]",
    ),
    "acquire at .cta across CTAs": (
        CTAS,
        [("wait_ge<Scope::kGpu>(p.counters[p.rank], ", "wait_ge<Scope::kCta>(p.counters[p.rank], ")],
        SCOPE,
        "on another CTA",
        "wait_ge<Scope::kCta>(p.counters[p.rank]",
    ),
    "fence at .cta before a relaxed signal": (
        CTAS,
        [("fence<Scope::kGpu>();\n      red_relaxed", "fence<Scope::kCta>();\n      red_relaxed")],
        SCOPE,
        "red_relaxed at .cta scope",
        "red_relaxed<Scope::kGpu>(p.counters[p.rank] + 32",
    ),
    "fence at .cta after a relaxed wait": (
        CTAS,
        [("fence<Scope::kGpu>();\n      syncwarp", "fence<Scope::kCta>();\n      syncwarp")],
        SCOPE,
        "fence at .cta scope",
        "fence<Scope::kCta>();",
    ),
    "no fence after a relaxed wait": (
        CTAS,
        [("fence<Scope::kGpu>();\n      syncwarp", "syncwarp")],
        RACE,
        "a relaxed wait acquires only at a fence",
        "wait_ge_relaxed<Scope::kGpu>(",
    ),
    "no fence around data as flag": (
        ALL_REDUCE,
        [("    fence<Scope::kSys>();\n", "")],
        RACE,
        "poison_word at",
        "poison_word(",
    ),
    "fence at .gpu around data as flag": (
        ALL_REDUCE,
        [("    fence<Scope::kSys>();\n", "    fence<Scope::kGpu>();\n")],
        SCOPE,
        "at .gpu scope",
        "push_word<Scope::kSys>(p.",
    ),
    "fence before the words are poisoned": (
        ALL_REDUCE,
        [
            ("    fence<Scope::kSys>();\n", ""),
            ("      poison_word(mine,", "      fence<Scope::kSys>();\n      poison_word(mine,"),
        ],
        RACE,
        "poison_word at",
        "poison_word(",
    ),
    "push at .gpu": (
        ALL_REDUCE,
        [("push_word<Scope::kSys>(p.slots", "push_word<Scope::kGpu>(p.slots")],
        SCOPE,
        "both are atomic, but at .gpu and .sys scope, and the other side is on another rank",
        "push_word<Scope::kGpu>(p.slots",
    ),
    "poll at .gpu": (
        ALL_REDUCE,
        [("poll_word<Scope::kSys>(mine", "poll_word<Scope::kGpu>(mine")],
        SCOPE,
        "both are atomic",
        "poll_word<Scope::kGpu>(mine",
    ),
    "not poisoned again": (
        ALL_REDUCE,
        [("      poison_word(mine, kFlagPoison);\n", "")],
        FLAG,
        "slots of rank",
        "push_word<Scope::kSys>(p.",
    ),
    "pushed with an ordinary store": (
        ALL_REDUCE,
        [
            (
                "push_word<Scope::kSys>(p.slots[r] + (base + p.rank) * kWords + word, ",
                "stg32(p.slots[r] + (base + p.rank) * kWords + word, ",
            )
        ],
        RACE,
        "stg32",
        "stg32(p.slots[r]",
    ),
}


def matches(finding: Finding, code: str, words: str, source: str, line: str) -> bool:
    """Code and words are the finding's, and ``line`` is part of a line that it names."""
    if finding.code != code or not any(words in text for text in (finding.message, *finding.notes)):
        return False
    lines = source.splitlines()
    return any(line in lines[number - 1] for _, number in places(finding))


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_mutation_is_reported_in_every_seed(name: str, tmp_path: Path) -> None:
    mode, edits, code, words, line = MUTATIONS[name]
    source = mutated("peers", *edits)
    lib = build_text(source, "peers_mutant", tmp_path)
    peers = Peers(mode, ranks=1 if mode == CTAS else 2)
    for seed in SEEDS:
        result, _ = peers.launch(lib, seed)
        assert any(matches(f, code, words, source, line) for f in result.findings), (seed, result.report)


def test_missing_prefill_is_reported_in_every_seed() -> None:
    for seed in SEEDS:
        result, _ = Peers(ALL_REDUCE).launch(library("peers"), seed, prefilled=False)
        assert FLAG in {f.code for f in result.findings}, (seed, result.report)


def test_pushing_the_poison_is_reported(tmp_path: Path) -> None:
    edit = (
        "word, term(p.rank, e, word));\n      push_word",
        "word, e == 2 ? kFlagPoison : term(p.rank, e, word));\n      push_word",
    )
    lib = build_text(mutated("peers", edit), "peers_mutant", tmp_path)
    for seed in SEEDS:
        result, _ = Peers(ALL_REDUCE).launch(lib, seed)
        assert FLAG in {f.code for f in result.findings}
        assert "push_word writes the poison 0x7fa57fa5 to slots of rank" in result.report


def test_memory_of_a_rank_is_its_own_unless_shared() -> None:
    for seed in SEEDS:
        result, _ = Peers(RANKS).launch(library("peers"), seed, shared=False)
        assert [f.code for f in result.findings] == ["TC0904"]
        assert "which belongs to rank 1 and is not shared with its peers" in result.report
    assert Peers(RANKS, ranks=1).launch(library("peers"), 0, shared=False)[0].ok


def test_deadlock_names_ranks_words_and_counters(tmp_path: Path) -> None:
    lost = (
        "    for (u32 r = 0; r < p.ranks; r++) {\n      push_word",
        "    for (u32 r = 0; r < p.ranks; r++) {\n"
        "      if (p.rank == 1 && r == 0 && e == 1 && cta() == 1) continue;\n      push_word",
    )
    lib = build_text(mutated("peers", lost), "peers_mutant", tmp_path)
    peers = Peers(ALL_REDUCE)
    for seed in SEEDS:
        result, _ = peers.launch(lib, seed, detect=0)
        assert result.status == 2
        # Rank 0 misses one word per lane; rank 1 waits for rank 0 in one of the next two epochs.
        place = 4 * ((1 * 2 + 1) * WORDS + 32)
        want = (
            "rank 0 cta 1 warp 0 (exchanger) lane 0: poll_word on slots of rank 0 "
            f"+ {place}, which still holds the poison 0x7fa57fa5"
        )
        assert want in result.report, result.report
        assert "op all-reduce, layer 1, item 1, at " in result.report
        assert "rank 1 cta 1 warp 0 (exchanger)" in result.report
        # Both ranks leave a record: kind 3 is a word.
        for status in peers.status:
            words = status.view(np.uint32)
            assert words[0] == 0x7443C0DE and words[9] == 3 and words[7] == POISON


# name -> (edits, start of the counters, codes, text in a line that the finding names)
WRAP: dict[str, tuple[list[tuple[str, str]], int, set[str], str]] = {
    # The value 0 is skipped, as a protocol does for which 0 means "never".
    "target that skips the wrap": (
        [
            (
                "p.base + e + (p.rank == 0 ? 0u : 1u), w)",
                "p.base + e + (p.rank == 0 ? 0u : 1u) + (p.base + e < p.base ? 1u : 0u), w)",
            )
        ],
        2**32 - 2,
        {"TC0901"},
        "wait_ge<Scope::kSys>(p.counters[p.rank]",
    ),
    "saturated target": (
        [
            (
                "p.base + e + (p.rank == 0 ? 0u : 1u), w)",
                "p.base > 0xffffffffu - e - 1u ? 0xffffffffu : p.base + e + (p.rank == 0 ? 0u : 1u), w)",
            )
        ],
        2**32 - 2,
        {RACE},
        "p.values[",
    ),
    "base of another counter": (
        [
            (
                "p.base + e + (p.rank == 0 ? 0u : 1u), w)",
                "p.base + 0x80000000u + e + (p.rank == 0 ? 0u : 1u), w)",
            )
        ],
        5,
        {DISTANCE},
        "wait_ge<Scope::kSys>(p.counters[p.rank]",
    ),
}


@pytest.mark.parametrize("name", sorted(WRAP))
def test_protocol_that_does_not_wrap_is_reported(name: str, tmp_path: Path) -> None:
    edits, base, codes, line = WRAP[name]
    source = mutated("peers", *edits)
    lib = build_text(source, "peers_mutant", tmp_path)
    for seed in SEEDS:
        result, _ = Peers(RANKS, epochs=6, base=base).launch(lib, seed)
        found = [f for f in result.findings if any(matches(f, code, "", source, line) for code in codes)]
        assert found, (seed, result.report)


def test_a_narrow_scope_is_explained_with_both_places(tmp_path: Path) -> None:
    mode, edits, *_ = MUTATIONS["release at .gpu across ranks"]
    text = mutated("peers", *edits)
    result, _ = Peers(mode).launch(build_text(text, "peers_mutant", tmp_path), 1)
    found = [f for f in result.findings if f.code == SCOPE and any("ordered only by" in n for n in f.notes)]
    assert found, result.report
    note: Any = next(n for n in found[0].notes if "ordered only by" in n)
    lines = text.splitlines()
    release = next(
        i for i, line in enumerate(lines, 1) if "red_release<Scope::kGpu>(p.counters[next]" in line
    )
    wait = next(i for i, line in enumerate(lines, 1) if "wait_ge<Scope::kSys>(p.counters[p.rank]" in line)
    assert "red_release at .gpu scope (" in note and f"peers_mutant.cu:{release}:" in note
    assert "wait_ge at .sys scope (" in note and f"peers_mutant.cu:{wait}:" in note
    assert "on another rank" in note
