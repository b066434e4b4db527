"""Cases of ``kernels/memory.cu``, ``sync.cu`` and ``copy.cu``: accesses, barriers, counters, copies."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conformance.case import Array, Case, Launch, Verdict, both, exact, raw, rng, within, words

BLOCK = 1024
SYNC_SMEM = 1024 + 4 * BLOCK * 4


def memory_launch() -> Launch:
    source = words(1, 1024).view(np.uint8)
    # Words that travel through float registers: no NaN.
    for start in (1024, 2176):
        source[start : start + 128].view(np.uint32)[:] &= 0x7F7FFFFF
    want = np.zeros(5632, np.uint8)
    want[:3840] = source[:3840]
    want[32:64] = source[31::-1][:32]
    a, b, c = source[3840:3852].view(np.uint32).astype(np.uint64)
    lane = np.arange(32, dtype=np.uint32)
    want[3840:3968] = raw((a + 3 * b + 5 * c + lane).astype(np.uint32))
    other = lane ^ 5
    bytes_, shorts = source[:32] ^ 0x5A, source[64:128].view(np.uint16) ^ 0x5AA5
    small = bytes_[other].astype(np.uint32) | other << 8 | shorts[other].astype(np.uint32) << 16
    want[3968:4096] = raw(small)
    want[4096:4224] = raw((source[128:256].view(np.uint32) ^ 0x12345678)[other])
    want[4224:4480] = raw(source[256:512].view(np.uint64)[other])
    want[4480:4992] = raw(source[512:1024].reshape(32, 16)[other])
    want[4992:5120] = raw(source[1024:1152].view(np.uint32)[other])
    low = np.concatenate([bytes_, np.arange(32, dtype=np.uint8), raw(shorts)])
    low = np.concatenate([low, raw(source[128:256].view(np.uint32) ^ 0x12345678)])
    want[5120:5632] = raw(low.reshape(16, 16)[other & 15])
    return Launch(source, 5632, lambda out, _: exact(want, out), smem=4096)


# ---- barriers and counters ---------------------------------------


def change(v: Array) -> NDArray[np.uint32]:
    """What ``sync.cu`` makes of word i."""
    return v * np.uint32(5) + np.arange(v.size, dtype=np.uint32)


def sync_launch(op: int, blocks: int, grid: int, gpu_grid: int = 0) -> Launch:
    data = words(op, blocks * BLOCK)
    want = change(data)
    smem = SYNC_SMEM
    return Launch(
        raw(data),
        data.nbytes,
        lambda out, _: exact(want, out),
        op,
        data.size,
        grid=grid,
        smem=smem,
        gpu_grid=gpu_grid,
    )


def chain_launch(kind: int, grid: int = 4) -> Launch:
    per = 256
    data = words(50 + kind, grid * per)
    want = change(data)
    start = np.zeros(2048 + grid * per, np.uint32)
    start[0 : 32 * grid : 32] = 0x80000000
    sums = np.cumsum(want.reshape(grid, per), axis=0, dtype=np.uint32)
    after = start.copy()
    after[0 : 32 * grid : 32] += 1
    after[2048:] = sums.reshape(-1)
    if kind in (4, 6):
        after[1 : 32 * grid : 32] = 0x80000001

    def check(out: NDArray[np.uint8], work: NDArray[np.uint8]) -> Verdict:
        return both(exact(want, out), exact(after, work))

    return Launch(
        raw(data), data.nbytes, check, 5, data.size, (kind,), work=raw(start), grid=grid, smem=SYNC_SMEM
    )


def words_launch(op: int, grid: int = 4) -> Launch:
    """Words of 32 or 64 bits that CTAs hand on: running sums; the inboxes hold poison again afterwards."""
    per, dtype = 128, {7: np.uint32, 8: np.uint64, 10: np.uint32, 11: np.uint64}[op]
    data = words(op, grid * per)
    want = np.cumsum(change(data).view(dtype).reshape(grid, -1), axis=0, dtype=dtype)
    inboxes = np.full((grid + 1) * per, 0x7FFFDEAD, np.uint32)

    def check(out: NDArray[np.uint8], work: NDArray[np.uint8]) -> Verdict:
        return both(exact(want, out), exact(inboxes, work))

    return Launch(raw(data), data.nbytes, check, op, data.size, work=raw(inboxes), grid=grid, smem=SYNC_SMEM)


def within_cta_launch(grid: int = 4) -> Launch:
    data = words(9, grid * 256)
    want = change(data)
    start = np.zeros(2048 + data.size, np.uint32)
    start[0 : 32 * grid : 32] = 0x80000000
    return Launch(
        raw(data), data.nbytes, lambda out, _: exact(want, out), 9, data.size, work=raw(start), grid=grid,
        smem=SYNC_SMEM,
    )  # fmt: skip


# ---- copies ---------------------------------------


def stream_launch(cut: int) -> Launch:
    tiles = 7
    data = words(60 + cut, tiles, 128, 4).view(np.uint8)  # [tiles, 128 lanes, 16]
    want = data.copy()
    want[2::3, :, cut:] = 0
    return Launch(raw(data), data.nbytes, lambda out, _: exact(want, out), 0, tiles, (cut,), smem=3 * 2048)


def reduce_launch(op: int, grid: int) -> Launch:
    """Every CTA adds its slice. u32 and small integers are exact in any order; floats within the rounding of
    ``grid`` additions."""
    n, dtype = 96, {1: np.float32, 2: ml_dtypes.bfloat16, 3: np.uint32}[op]
    count = n * 16 // np.dtype(dtype).itemsize
    if op == 3:
        data, start = words(70, grid, count), words(71, count)
    else:
        data = rng(72 + op).integers(-16, 17, (grid, count)).astype(np.float32).astype(dtype)
        start = rng(74 + op).integers(-16, 17, count).astype(np.float32).astype(dtype)
        data[:, count // 2 :] = rng(76 + op).standard_normal((grid, count - count // 2)).astype(dtype)
    total = (
        (start + data.sum(axis=0, dtype=np.uint32))
        if op == 3
        else start.astype(np.float64) + data.astype(np.float64).sum(0)
    )

    def check(out: NDArray[np.uint8], work: NDArray[np.uint8]) -> Verdict:
        copied = exact(data, out)
        if op == 3:
            return both(copied, exact(total.astype(np.uint32), work))
        got, half = work.view(dtype).astype(np.float32), count // 2
        unit = 2.0 ** (-24 if op == 1 else -8)
        largest = np.abs(start.astype(np.float64)) + np.abs(data.astype(np.float64)).sum(0)
        integers = exact(total[:half].astype(np.float32), got[:half], "equal: sums of small integers")
        rule = f"{grid} additions, each rounded to nearest"
        return both(copied, integers, within(total[half:], got[half:], (grid * unit * largest)[half:], rule))

    return Launch(raw(data), data.nbytes, check, op, n, work=raw(start), grid=grid, smem=3 * 2048)


def reduce_subnormal_launch() -> Launch:
    """float32 subnormals: every sum is kept, or every sum is zero; the figure says which."""
    data, start = words(80, 384) & 0x807FFFFF, words(81, 384) & 0x807FFFFF
    total = (data.view(np.float32).astype(np.float64) + start.view(np.float32)).astype(np.float32)

    def check(out: NDArray[np.uint8], work: NDArray[np.uint8]) -> Verdict:
        got = work.view(np.float32)
        kept = bool((got == total).all())
        sums = exact(total, got) if kept else exact(np.zeros_like(total), np.abs(got))
        verdict = both(exact(data, out), sums)
        return replace(verdict, rule="subnormal sums kept, or all zero", figures={"kept": float(kept)})

    return Launch(raw(data), data.nbytes, check, 1, 96, work=raw(start), smem=3 * 2048)


MBAR = ("mbar_init", "fence_mbar_init", "mbar_arrive", "mbar_wait")
LOADS = "ldg_u8 ldg_u16 ldg32 ldg64 ldg128 ldg_f32 ldg_i32 ldg_nc32 ldg_nc64 ldg_nc128 ldg_nc_f32 ld_uniform"
STORES = "stg_u8 stg_u16 stg32 stg64 stg128 stg_f32 stg_i32"
SHARED = "lds_u8 lds_u16 lds32 lds64 lds128 lds_f32 sts_u8 sts_u16 sts32 sts64 sts128 sts_f32"
HINTS = "ldg_nc128_noalloc ldg_nc128_stream ldg_nc128_hint l2_evict_first l2_evict_last"
ACCESSES = tuple(f"{LOADS} {STORES} {SHARED} {HINTS} smem_base smem_region".split())
WORDS = ("ld_word", "poll_word", "push_word", "poison_word")
BATCH = ("poll_words", "push_word", "poison_word")
CP_ASYNC = ("cp_async16", "cp_async16_zfill", "cp_async_commit", "cp_async_wait")
COUNTERS = {
    0: ("red_release", "wait_ge"),
    1: ("st_release", "wait_ge"),
    2: ("red_relaxed", "fence_gpu", "wait_ge"),
    3: ("atom_add_acqrel", "wait_ge"),
    4: ("ld_acquire", "nanosleep", "red_release"),
    5: ("red_release<kSys>", "wait_ge<kSys>"),
    6: ("st_relaxed", "ld_relaxed", "wait_ge_relaxed", "fence"),
    7: ("red_relaxed<kSys>", "wait_ge_relaxed<kSys>", "fence<kSys>"),
}

CASES = [
    Case("memory.widths", "memory", ACCESSES, memory_launch),
    Case("sync.mbarrier_ring", "sync", MBAR, lambda: sync_launch(0, 8, 2)),
    Case(
        "sync.bulk_ring",
        "sync",
        (*MBAR, "mbar_arrive_expect_tx", "bulk_g2s", "bulk_g2s_hint", "bulk_s2g", "bulk_commit", "bulk_wait",
         "bulk_wait_read", "fence_proxy_async", "prefetch_l2"),
        lambda: sync_launch(1, 9, 2),
    ),
    Case("sync.named_barriers", "sync", ("bar_sync", "bar_arrive"), lambda: sync_launch(2, 7, 2)),
    Case("sync.cta_sync", "sync", ("cta_sync",), lambda: sync_launch(3, 4, 2)),
    Case("sync.syncwarp", "sync", ("syncwarp",), lambda: sync_launch(4, 4, 2)),
    *(
        Case(f"sync.{names[0]}", "sync", names, lambda kind=kind: chain_launch(kind))
        for kind, names in COUNTERS.items()
    ),
    Case("sync.words_u32", "sync", WORDS, lambda: words_launch(7)),
    Case("sync.words_u64_sys", "sync", WORDS, lambda: words_launch(8)),
    Case("sync.words_u32_together", "sync", BATCH, lambda: words_launch(10)),
    Case("sync.words_u64_sys_together", "sync", BATCH, lambda: words_launch(11)),
    Case("sync.cta_scope", "sync", ("red_release<kCta>", "wait_ge<kCta>"), within_cta_launch),
    Case("sync.setmaxnreg", "sync", ("setmaxnreg_dec", "setmaxnreg_inc"), lambda: sync_launch(6, 2, 2)),
    *(
        Case(f"copy.cp_async_{cut}", "copy", CP_ASYNC, lambda cut=cut: stream_launch(cut))
        for cut in (0, 4, 11, 16)
    ),
    Case("copy.reduce_f32", "copy", ("bulk_reduce_add_f32",), lambda: reduce_launch(1, 4)),
    Case("copy.reduce_f32_subnormal", "copy", ("bulk_reduce_add_f32",), reduce_subnormal_launch),
    Case("copy.reduce_bf16", "copy", ("bulk_reduce_add_bf16",), lambda: reduce_launch(2, 4)),
    Case("copy.reduce_u32", "copy", ("bulk_reduce_add_u32",), lambda: reduce_launch(3, 4)),
]  # fmt: skip
