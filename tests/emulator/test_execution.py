"""A persistent warp-specialised kernel under every schedule: numbers, determinism, statistics."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.emulator.harness import (
    CONFIGS,
    PCT,
    RANDOM,
    ROUND_ROBIN,
    UNINITIALISED,
    Buffer,
    Chain,
    LaunchOptions,
    aligned,
    library,
)
from tilecc.runtime.devices import emu_lib


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_chain_matches_numpy(grid: int, config: tuple[int, int, int]) -> None:
    chain = Chain(dim=192, n_ops=3, grid=grid)
    schedule, landing, preempt = config
    result, out = chain.launch(
        library("chain"), schedule=schedule, landing=landing, preempt=preempt, seed=grid
    )
    assert result.ok, result.report
    want = chain.reference()
    # One bf16 rounding may fall the other way per op (2^-8 relative), carried through three ops.
    assert np.abs(out.astype(np.float64) - want).max() <= 3 * 2**-8 * np.abs(want).max()
    assert np.abs(want).max() > 0.1


def test_mma_adds_in_float32_in_ascending_k() -> None:
    chain = Chain(dim=128, n_ops=1, activate=False)
    result, out = chain.launch(library("chain"))
    assert result.ok, result.report
    x, w = chain.x.astype(np.float32), chain.weights[0].astype(np.float32)
    acc = np.zeros((8, 128), np.float32)
    for k in range(128):
        acc += x[:, k : k + 1] * w[:, k]  # the product of two bf16 is exact
    assert (out.view(np.uint16) == acc.astype(out.dtype).view(np.uint16)).all()


def test_every_seed_gives_the_same_bits() -> None:
    chain = Chain(dim=128, n_ops=3, grid=2)
    _, want = chain.launch(library("chain"))
    seen = set()
    for seed in range(24):
        schedule, landing, preempt = CONFIGS[1 + seed % 3]
        result, out = chain.launch(
            library("chain"), schedule=schedule, landing=landing, preempt=preempt, seed=seed
        )
        assert result.ok, result.report
        assert (out.view(np.uint16) == want.view(np.uint16)).all()
        seen.add(result.stats.switches)
    assert len(seen) > 12  # the seeds really are different runs


@pytest.mark.parametrize("schedule", [ROUND_ROBIN, RANDOM, PCT])
def test_a_run_repeats_by_seed(schedule: int) -> None:
    chain = Chain(dim=128, n_ops=2)
    runs = [
        chain.launch(library("chain"), schedule=schedule, landing=1, preempt=20, seed=5)[0] for _ in range(2)
    ]
    assert runs[0].stats == runs[1].stats


def test_counts_per_role() -> None:
    chain = Chain(dim=128, n_ops=2, grid=2)
    result, _ = chain.launch(library("chain"))
    roles = result.stats.roles
    steps = chain.n_ops * chain.tiles * chain.k16
    assert roles["consumer"]["mma"] == steps * 4 == result.stats.total["mma"]
    assert roles["loader"]["bulk_load_bytes"] == steps * 2048
    assert roles["acts"]["bulk_load_bytes"] == chain.grid * chain.n_ops * chain.k16 * 256
    assert roles["storer"]["bulk_store_bytes"] == chain.n_ops * chain.dim * 16
    assert roles["storer"]["counter_signal"] == chain.n_ops * chain.tiles


def run_sync(grid: int, base: int, rounds: int, config: tuple[int, int, int], seed: int, detect: int = 0):
    counters, values = aligned((grid + 1) * 128), aligned(grid * 4)
    out, status = aligned(grid * 512), aligned(256)
    counters.view(np.uint32)[:] = base % 2**32
    # CTA 0 may start round 0 at once.
    params = struct.pack(
        "4Q2I", *(b.ctypes.data for b in (counters, values, out, status)), base % 2**32, rounds
    )
    buffers = [Buffer("counters", counters), Buffer("values", values), Buffer("out", out, UNINITIALISED)]
    schedule, landing, preempt = config
    options = LaunchOptions(grid, 160, 512, schedule, landing, detect, preempt, seed)
    result = library("sync").launch(params, [*buffers, Buffer("status", status)], options)
    return result, values.view(np.uint32), out.view(np.uint32).reshape(grid, 4, 32)


@pytest.mark.parametrize("base", [0, 2**32 - 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_counters_and_named_barriers(config: tuple[int, int, int], base: int) -> None:
    grid, rounds = 4, 6
    for seed in range(4):
        result, values, out = run_sync(grid, base, rounds, config, seed)
        assert result.ok, result.report
        # The token has passed `rounds` times through every CTA, each adding its number.
        total, want = 0, []
        for _ in range(rounds):
            want = []
            for cta in range(grid):
                total += cta + 1
                want.append(total)
        assert values.tolist() == want
        for consumer in (2, 3):
            lanes = np.arange(32)
            expected = sum(r * 1000 + (consumer - 2) * 100 + 31 - lanes for r in range(rounds))
            assert (out[:, consumer] == expected).all()
        assert (out[:, :2] == 0).all()


def test_bad_launch_arguments_are_named() -> None:
    chain = Chain()
    for change, words in [
        ({"threads": 192}, "launched with 192 threads, but the kernel is declared with 224"),
        ({"grid": 0}, "cannot launch 1 ranks of 0 CTAs"),
        ({"smem_bytes": 240000}, "240000 bytes of shared memory"),
        ({"schedule": 9}, "unknown schedule 9"),
    ]:
        result, _ = chain.launch(library("chain"), **change)
        assert result.status == 3 and words in result.report and result.findings[0].code == "TC0916"


def test_another_abi_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emu_lib, "ABI_VERSION", 99)
    result, _ = Chain().launch(library("chain"))
    assert result.status == 3 and result.findings[0].code == "TC0916"
    assert "the caller speaks emulator ABI 99, this library 4" in result.report


def test_read_only_memory_has_no_shadow() -> None:
    """Nor has what is never touched; the rest has a record of 56 bytes for each 16, by pages of 256."""
    chain = Chain(dim=256, n_ops=2)
    assert chain.launch(library("chain"))[0].stats.shadow_bytes == 0
    result, _ = chain.launch(library("chain"), detect=emu_lib.DETECT_ALL)
    written = -(-chain.SMEM // 4096) * chain.grid + 2 + 2 * (chain.n_ops + 1)
    assert 0 < result.stats.shadow_bytes <= written * 256 * 56 < chain.image.size * 56 // 16
