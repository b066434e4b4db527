"""What is measured, and the check beside each number. The cases run on a GPU and, with tiny sizes, on the emulator, where
the protocols are checked and the times mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.device import Gpu, Machine, Run, sum_of_words

KIB, MIB = 1024, 1024 * 1024


class WrongData(AssertionError):
    """A kernel moved or computed something else than it should; its time means nothing."""


@dataclass(frozen=True)
class Scale:
    """How much is run. ``launches``: repetitions of a launch; ``samples``: per launch; ``rounds``: per sample (a multiple
    of 8); ``stream``: bytes of one streaming launch."""

    name: str
    launches: int
    samples: int
    rounds: int
    stream: int
    sweep_launches: int
    peers: int
    chain: int


FULL = Scale("full", 3, 24, 64, 1 << 30, 20, 8, 8192)
SANITIZE = Scale("sanitize", 1, 2, 8, 8 * MIB, 1, 2, 256)
TINY = Scale("tiny", 1, 2, 8, 64 * KIB, 1, 1, 64)


@dataclass(frozen=True)
class Cost:
    """One number. ``value`` is the median, ``low`` and ``high`` the 5th and 95th percentile of ``samples``; ``clocks`` the
    median in SM clocks, where it was measured so. ``unit``: s, B/s, B, Hz, B/clk/SM, op/clk/SM or clk."""

    key: str
    value: float
    unit: str
    low: float
    high: float
    samples: int
    what: str
    checked: str
    clocks: float | None = None


def require(ok: bool, what: str, detail: object = "") -> None:
    if not ok:
        raise WrongData(f"{what}: {detail}")


def cost(
    key: str, values: NDArray[Any] | list[float], unit: str, what: str, checked: str, clocks: float | None = None
) -> Cost:
    v = np.asarray(values, np.float64).reshape(-1)
    low, mid, high = (float(x) for x in np.percentile(v, [5, 50, 95]))
    return Cost(key, mid, unit, low, high, len(v), what, checked, clocks)


def timed(
    key: str, runs: list[tuple[Run, NDArray[Any]]], each: float, what: str, checked: str
) -> Cost:
    """Clocks of samples, ``each`` repetitions in one sample, as seconds at the clock of their own run."""
    clocks = np.concatenate([t.reshape(-1).astype(np.float64) / each for _, t in runs])
    seconds = np.concatenate([t.reshape(-1).astype(np.float64) / each / r.hertz for r, t in runs])
    return cost(key, seconds, "s", what, checked, float(np.median(clocks)))


# ---- synchronisation -------------------------------------------------------------------------------------------------

LOCAL = [
    # mode, key, repetitions per round, expected sums[0], what
    ("mbar_lane", "mbarrier_pass_lane", 1, 0, "one lane arrives on an mbarrier of count 1 and waits"),
    ("mbar_warp", "mbarrier_pass", 1, 0, "a warp synchronises, arrives on an mbarrier of count 1, and waits"),
    ("mbar_passed", "mbarrier_wait_passed", 15, 0, "wait on a phase that has completed"),
    ("warp_to_warp", "mbarrier_hand_off", 2, 32, "128 bytes from warp to warp: store, syncwarp, arrive | wait, load"),
    ("named_barrier", "named_barrier", 1, 32, "bar.sync of two warps"),
    ("cta_sync", "cta_sync", 1, 32, "bar.sync of four warps"),
    ("syncwarp", "syncwarp", 1, 32, "syncwarp"),
    ("shuffle", "shuffle", 1, 32, "one step of a chain of shfl.xor and an addition"),
    ("fence_gpu", "fence_gpu", 1, 32, "store to global memory and fence at GPU scope"),
    ("fence_proxy", "fence_proxy_async", 1, 32, "store to shared memory and fence.proxy.async"),
]

PAIRS = [
    ("counter", "counter_signal", "red.release by one lane | wait_ge by one lane"),
    ("counter_store", "counter_store", "st.release by one lane | wait_ge by one lane"),
    ("counter_data", "counter_hand_off", "512 bytes: st.global, syncwarp, red.release | wait_ge, syncwarp, ld.global"),
    ("counter_fence", "counter_hand_off_fence", "512 bytes: st.global, fence, red.relaxed | wait_ge, ld.global"),
]

GRIDS = [
    # key, kind, group, pollers, what
    ("grid_counter", 0, 1, 1, "every CTA arrives on one counter and waits for it"),
    ("grid_counter_3_pollers", 0, 1, 3, "the same, three warps of each CTA wait"),
    ("grid_flag", 1, 1, 1, "arrival counter; CTA 0 waits for it and sets one release flag"),
    ("grid_tree_4", 2, 4, 1, "groups of 4 on counters of their own, leaders on the root, all wait for the root"),
    ("grid_tree_12", 2, 12, 1, "groups of 12 on counters of their own, leaders on the root, all wait for the root"),
    ("grid_tree_33", 2, 33, 1, "groups of 33 on counters of their own, leaders on the root, all wait for the root"),
    ("grid_tree_12_flags", 3, 12, 1, "groups of 12 in and out: a release flag per group"),
]


def local_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    for mode, key, each, want, what in LOCAL:
        runs = []
        for _ in range(s.launches):
            run = m.launch("sync", mode, grid=1, smem=16 * KIB, rounds=4 * s.rounds, samples=s.samples)
            require(int(run.sums[0, 0]) == want, key, run.sums[0])
            runs.append((run, run.times[0]))
        yield timed(key, runs, 4 * s.rounds * each, what, "words exchanged, phases" if want else "phase at the end")


def pair_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    peers = sorted({1 + i * (m.sms - 2) // max(1, s.peers - 1) for i in range(s.peers)})
    total = s.samples * s.rounds
    for mode, key, what in PAIRS:
        runs = []
        for peer in peers:
            run = m.launch("sync", mode, grid=m.sms, smem=16 * KIB, rounds=s.rounds, samples=s.samples, a=peer)
            want = total if mode in ("counter", "counter_store") else 32
            require(int(run.sums[0, 0]) == want, key, run.sums[0])
            runs.append((run, run.times[0]))
        yield timed(key, runs, 2 * s.rounds, f"{what}; one way, {len(peers)} pairs of CTAs", "every word handed over")
    for size in (1024, 4096):
        runs = []
        for peer in peers:
            run = m.launch(
                "sync", "counter_bulk", grid=m.sms, smem=16 * KIB, rounds=s.rounds, samples=s.samples, a=peer, size=size
            )
            require(int(run.sums[0, 0]) == 32, "counter_bulk", run.sums[0])
            runs.append((run, run.times[0]))
        what = f"{size} bytes: st.shared, fence, bulk store, wait, red.release | wait_ge, fence, bulk load, wait, ld.shared"
        key = f"counter_bulk_hand_off_{size}"
        yield timed(key, runs, 2 * s.rounds, what + "; one way", "every word handed over")


def grid_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    smem = m.smem // 2 + KIB  # one CTA per SM
    sizes = [m.sms] if m.sms < 64 else [m.sms, m.sms // 2, 16]
    for mode, suffix, more in (("grid", "", ""), ("grid_data", "_data", "; 512 bytes stored before, 512 of another after")):
        for key, kind, group, pollers, what in GRIDS:
            for grid in sizes if kind == 0 and pollers == 1 else [m.sms]:
                runs = []
                for _ in range(s.launches):
                    run = m.launch(
                        "sync", mode, grid=grid, smem=smem, cooperative=True, rounds=s.rounds, samples=s.samples,
                        a=kind, b=group, c=pollers,
                    )
                    require(bool((run.sums[:, 0] == 32).all()), key, run.sums[:, 0])
                    arrivals = grid if kind < 2 else -(-grid // group)
                    require(int(run.sums[0, 1]) == arrivals * s.samples * s.rounds, key, run.sums[0, 1])
                    # The first sample includes the start of the CTAs, at different times.
                    runs.append((run, run.times[:, 1:]))
                name = key + suffix + ("" if grid == m.sms else f"_{grid}_ctas")
                yield timed(name, runs, s.rounds, f"{what}{more}; {grid} CTAs", "arrivals, every word")


# ---- copies ----------------------------------------------------------------------------------------------------------


def ring_smem(stages: int, size: int) -> int:
    return KIB + stages * size


def stream(m: Machine, total: int, size: int, stages: int, offset: int, region: int, check: bool = False) -> tuple[Run, int]:
    """All CTAs copy ``total`` bytes of ``region`` through rings; (run, bytes really copied)."""
    rounds = max(1, total // (size * m.sms))
    run = m.launch(
        "copy", "stream", grid=m.sms, smem=ring_smem(stages, size), rounds=rounds, size=size, stages=stages,
        offset=offset, nbytes=region, a=int(check),
    )
    require(not run.sums[:, :4].any(), "stream", "words differ from the pattern")
    if check:
        copies = region // size
        for cta in range(m.sms):
            want = sum(sum_of_words((offset + (i * m.sms + cta) % copies * size) // 4, size // 4) for i in range(rounds))
            require(int(run.sums[cta, 4]) == want % 2**32, "stream", f"sum of CTA {cta}")
    return run, rounds * size * m.sms


def in_flight(m: Machine, smallest: int) -> list[tuple[int, int]]:
    """(copy bytes, copies in flight) that fit into shared memory, up to 48 copies."""
    sizes = [k * KIB for k in (4, 8, 16, 32)]
    flights = [k * KIB for k in (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224)]
    found = [(z, f // z) for z in sizes for f in flights if f % z == 0 and 1 <= f // z <= 48]
    return [(z, n) for z, n in found if ring_smem(n, z) <= m.smem and z * n >= smallest]


def stream_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    quarter = m.data_bytes // 4
    total = min(s.stream, quarter)
    copy = 0.0
    if isinstance(m, Gpu):
        rates = [m.copy_rate(total, 1) for _ in range(s.sweep_launches)]
        copied = cost("copy_rate", rates, "B/s", f"device-to-device copy of {total >> 20} MiB, read plus write", "last words")
        copy = copied.value
        yield copied
    reads = []
    for i in range(s.sweep_launches):
        offset = i % 4 * quarter
        run = m.launch("rates", "read_only", grid=m.sms, smem=40 * KIB, offset=offset, nbytes=total)
        require(int(run.sums[:, 0].sum(dtype=np.uint64)) % 2**32 == sum_of_words(offset // 4, total // 4), "read_only")
        reads.append(total / run.seconds)
    yield cost("read_rate", reads, "B/s", f"ld.global.nc.v4 by all threads, {total >> 20} MiB", "sum of all words")

    # Every word once, before any is timed.
    stream(m, min(total, 64 * MIB), 16 * KIB, 4, 0, total, check=True)
    best: dict[tuple[int, int], Cost] = {}
    for size, stages in in_flight(m, 0) if s.name == "full" else [(4 * KIB, 2), (8 * KIB, 4), (16 * KIB, 3)]:
        rates = []
        for i in range(s.sweep_launches):
            run, nbytes = stream(m, total, size, stages, (i % 4) * quarter, total)
            rates.append(nbytes / run.seconds)
        flight = size * stages // KIB
        what = f"bulk copies of {size // KIB} KiB, {stages} in flight per SM ({flight} KiB), all SMs"
        found = cost(f"stream_{size // KIB}k_x{stages}", rates, "B/s", what, "128 words of each copy")
        best[size, stages] = found
        yield found
    peak = max(best.values(), key=lambda c: c.value)
    yield Cost("stream_rate", peak.value, "B/s", peak.low, peak.high, peak.samples, f"the best: {peak.what}", peak.checked)
    # A copy moves each byte twice; its rate is what both directions get, so a read stream is compared with the same figure.
    for name, against in (("copy", copy), ("stream", peak.value)):
        for size in sorted({z for z, _ in best}):
            enough = [(z * n, c) for (z, n), c in best.items() if z == size and c.value >= 0.9 * against]
            if against and enough:
                need, at = min(enough, key=lambda e: e[0])
                text = f"bytes in flight per SM that reach 90 % of the {name} rate with copies of {size // KIB} KiB"
                yield Cost(f"in_flight_{name}_{size // KIB}k", need, "B", need, need, at.samples, text, at.checked)

    footprint = min(16 * MIB, total)
    for size, stages in [(16 * KIB, 4), (16 * KIB, 8), (16 * KIB, 12)] if s.name == "full" else [(4 * KIB, 2)]:
        rates = []
        for _ in range(s.sweep_launches):
            # One pass brings the region into L2; the long one reads it from there.
            stream(m, footprint, size, stages, 0, footprint)
            run, nbytes = stream(m, max(s.stream // 4, footprint), size, stages, 0, footprint)
            rates.append(nbytes / run.seconds)
        text = f"the same from L2: {footprint >> 20} MiB again and again, {size // KIB} KiB x {stages}"
        yield cost(f"l2_stream_{size // KIB}k_x{stages}", rates, "B/s", text, "128 words of each copy")


def latency_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    full = s.name == "full"
    background = [(0, 0), (4, 16 * KIB), (8, 16 * KIB)] if full else [(0, 0), (2, 4 * KIB)]
    half = m.data_bytes // 2
    region = min(half, 1 << 30)
    launch = 0
    for size in (128, 4 * KIB, 16 * KIB, 32 * KIB) if full else (128, 4 * KIB):
        for where in ("l2", "hbm"):
            for stages, each in background:
                runs = []
                for _ in range(s.launches):
                    launch += 1
                    # In HBM: places 4 MiB + 32 KiB apart, another column of them in every launch.
                    stride = (4 * MIB + 32 * KIB if full else 8 * KIB) if where == "hbm" else 0
                    span = (m.data_bytes - half - 33 * KIB * (s.launches * 32) - stride) if full else half - 32 * KIB
                    offset = launch * 40 * KIB if full and where == "hbm" else 0
                    run = m.launch(
                        "copy", "latency", grid=m.sms if stages else 1,
                        smem=KIB + max(size, stages * each), cooperative=bool(stages), rounds=200_000 if full else 4000,
                        samples=s.samples, size=size, stages=stages, offset=offset, nbytes=region if full else half,
                        a=stride, b=max(span, 1) // 128 * 128, c=each or size,
                    )
                    require(not run.sums[:, 0].any(), "latency", "words differ from the pattern")
                    if stages:
                        require(bool((run.sums[1:, 1] < (200_000 if full else 4000)).all()), "latency", "load ended early")
                    # The first copy of a launch brings an L2 line in, and warms the page tables.
                    runs.append((run, run.times[0, 1:] if s.samples > 1 else run.times[0]))
                load = f"loaded_{stages * each // KIB}k" if stages else "idle"
                what = f"one bulk copy of {size} bytes from {where.upper()}, issue to mbarrier wait"
                what += f", the other SMs stream with {stages * each // KIB} KiB in flight" if stages else ", nothing else runs"
                yield timed(f"bulk_{where}_{size}_{load}", runs, 1, what, "first and last word")


def chain(lines: int, hops: int, seed: int) -> NDArray[np.uint32]:
    """Lines of 32 words; word 0 of ``hops`` distinct random lines leads through all of them and back to line 0."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([[0], 1 + rng.choice(lines - 1, hops - 1, replace=False)]).astype(np.uint32)
    memory = np.zeros((lines, 32), np.uint32)
    memory[order, 0] = np.roll(order, -1)
    return memory


def chase_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    full = s.name == "full"
    l2 = 8 * MIB if full else 32 * KIB
    cases = [("l1", 64 * 128, 64, 64, 0), ("l2", l2, s.chain, s.chain, 0)]
    if full:
        cases += [("hbm_64m", 64 * MIB, 4096, 0, 0), ("hbm_512m", 512 * MIB, 4096, 0, 0)]
        cases += [("l2_loaded", 128 * KIB, 1024, 1024, 4), ("hbm_loaded", 512 * MIB, 4096, 0, 4)]
    else:
        cases += [("hbm_loaded", l2, s.chain, 0, 2)]
    each = 16 * KIB if full else 4 * KIB
    for name, footprint, hops, warm, stages in cases:
        memory = chain(footprint // 128, hops, footprint)
        path = np.zeros(hops, np.int64)  # the lines in the order of the chain
        for i in range(1, hops):
            path[i] = memory[path[i - 1], 0]
        rounds = s.rounds if warm else min(s.rounds, hops // s.samples)
        runs = []
        for i in range(s.launches):
            upload = memory if i == 0 else None
            if i == 0 and not warm:
                m.launch("sync", "syncwarp", grid=1, smem=16 * KIB, rounds=8, samples=1, upload=upload)
                upload = None
            if not warm:  # push the chain out of L2
                stream(m, min(512 * MIB, s.stream), each, 2, 0, min(m.data_bytes // 4, 512 * MIB))
            run = m.launch(
                "copy", "chase", grid=m.sms if stages else 1, smem=KIB + max(KIB, stages * each), cooperative=bool(stages),
                rounds=rounds, samples=s.samples, stages=stages, nbytes=m.data_bytes // 2, b=warm, c=each, upload=upload,
                keep=upload is None,
            )
            at = int(path[(warm + rounds * s.samples) % hops])
            require(int(run.sums[0, 0]) == at, "chase", run.sums[0, 0])
            runs.append((run, run.times[0]))
        where = {"l1": "L1", "l2": "L2", "l2_loaded": "L2 under load"}.get(name, "HBM")
        what = f"dependent ld.global.b32, {where}, chain over {footprint // KIB} KiB"
        what += f", the other SMs stream with {stages * each // KIB} KiB in flight" if stages else ""
        yield timed(f"load_{name}", runs, rounds, what, "end of the chain")


def activation_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    full = s.name == "full"
    for kib in (16, 32, 48, 96) if full else (4, 16):
        for mode, size, turned in [
            *(("activations", z * KIB, t) for z in ((2, 4, 8, 16) if full else (2, 4)) for t in (0, 1)),
            ("staged", 16, 0),
            ("staged", 16, 1),
        ]:
            runs, slowest = [], []
            for _ in range(s.launches):
                run = m.launch(
                    "copy", mode, grid=m.sms, smem=KIB + kib * KIB, cooperative=True, samples=s.samples + 1, size=size,
                    nbytes=kib * KIB, a=turned,
                )
                require(bool((run.sums[:, 0] == 8 * 32).all()), "activations", run.sums[:, 0])
                runs.append((run, run.times[:, 1:]))
                slowest.append((run, run.times[:, 1:].max(axis=0)))
            order = "each SM from another place on" if turned else "all in the same order"
            how = f"bulk copies of {size // KIB} KiB" if mode == "activations" else "ld.global.v4, st.shared.v4 by 8 warps"
            what = f"{kib} KiB just written by all CTAs, into every SM: {how}, {order}"
            tail = f"{size // KIB}k" if mode == "activations" else "staged"
            key = f"activations_{kib}k_{tail}" + ("_turned" if turned else "")
            yield timed(key, runs, 1, what, "every word of every CTA")
            yield timed(key + "_slowest", slowest, 1, what + "; the slowest SM", "every word of every CTA")


def prefetch_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    full = s.name == "full"
    size, copies = (96 * KIB, 6) if full else (4 * KIB, 2)
    per_launch = m.sms * size * s.samples
    places = m.data_bytes // per_launch
    delays = [0, 40, 80, 120, 160, 200, 250, 300, 350, 400, 500, 600, 800, 1000, 1500] if full else [0, 16]
    launch = 0
    loads: dict[int, tuple[float, float]] = {}
    for use in (0, 1):
        for shuffles in delays if use else delays[:1]:
            delay, load = [], []
            for _ in range(s.launches):
                launch += 1
                run = m.launch(
                    "copy", "prefetch", grid=m.sms, smem=KIB + size, cooperative=True, samples=s.samples, size=size,
                    offset=launch % places * per_launch, a=shuffles, b=copies, c=use, rows=2 * m.sms,
                )
                require(bool((run.sums[:, 0] == 32).all()), "prefetch", run.sums[:, 0])
                delay.append((run, run.times[0::2]))
                load.append((run, run.times[1::2]))
            waited = timed("", delay, 1, "", "")
            tail = f"prefetch_{shuffles}" if use else "none"
            what = f"{size // KIB} KiB into every SM"
            what += f", {waited.value * 1e6:.2f} us after its prefetch into L2" if use else " from HBM, not prefetched"
            found = timed(f"load_after_{tail}", load, 1, what, "words of every 16 bytes")
            if use:
                loads[shuffles] = (waited.value, found.value)
            yield found
    resident = loads[delays[-1]][1]
    first = min((d for d, (_, load) in loads.items() if load <= 1.1 * resident), default=delays[-1])
    seconds = loads[first][0]
    total = m.sms * size
    yield Cost(
        "prefetch_l2_rate", total / seconds, "B/s", total / seconds, total / seconds, s.launches * s.samples,
        f"{total >> 20} MiB prefetched by all SMs are in L2 after {seconds * 1e6:.2f} us (loads within 10 % of L2 speed)",
        "words of every 16 bytes",
    )


# ---- instructions ----------------------------------------------------------------------------------------------------

UNROLL = 64
RATES = [
    # mode, key, warps for the rate, what
    ("lop3", "lop3", 32, "LOP3"),
    ("shift", "shf", 32, "SHF (funnel shift)"),
    ("prmt", "prmt", 32, "PRMT"),
    ("imad", "imad", 32, "IMAD"),
    ("ffma", "ffma", 32, "FFMA"),
    ("fadd", "fadd", 32, "FADD"),
    ("bf16_mul", "hmul2_bf16", 32, "HMUL2.BF16 (two products)"),
    ("bf16_fma", "hfma2_bf16", 32, "HFMA2.BF16 (two)"),
    ("cvt", "f2fp_bf16", 32, "F2FP.BF16 (two conversions)"),
    ("exp2", "mufu_ex2", 32, "MUFU.EX2"),
    ("lds128", "lds128", 32, "LDS.128"),
    ("lds64", "lds64", 32, "LDS.64"),
    ("lds32", "lds32", 32, "LDS.32"),
    ("mma", "mma_bf16_4_warps", 4, "mma.m16n8k16 bf16, one warp per sub-core"),
    ("mma", "mma_bf16_8_warps", 8, "mma.m16n8k16 bf16, two warps per sub-core"),
    ("mma", "mma_bf16_16_warps", 16, "mma.m16n8k16 bf16, four warps per sub-core"),
]


def bf16(f: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The bf16 of finite numbers, round to nearest even."""
    u = f.view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint32)


def as_float(u: NDArray[np.uint32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(u, np.uint32).view(np.float32)


def halves(f: Callable[..., NDArray[np.float32]], *u: NDArray[np.uint32]) -> NDArray[np.uint32]:
    low = bf16(f(*(as_float(x << np.uint32(16)) for x in u)))
    high = bf16(f(*(as_float(x & np.uint32(0xFFFF0000)) for x in u)))
    return low | high << np.uint32(16)


def prmt(x: NDArray[np.uint32], y: NDArray[np.uint32], z: NDArray[np.uint32]) -> NDArray[np.uint32]:
    both = x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)
    out = np.zeros_like(x)
    for i in range(4):
        nibble = (z >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> (8 * (nibble & 7)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & 128, 255, 0).astype(np.uint32)
        out |= np.where(nibble & 8, sign, byte) << np.uint32(8 * i)
    return out


STEPS: dict[str, Callable[..., NDArray[np.uint32]]] = {
    "lop3": lambda x, y, z: (x & y) ^ z,
    "shift": lambda x, y, z: x << (z & 31) | x >> (32 - (z & 31)),
    "prmt": prmt,
    "imad": lambda x, y, z: x * y + z,
    "ffma": lambda x, y, z: (as_float(x) * as_float(y) + as_float(z)).view(np.uint32),
    "fadd": lambda x, y, z: (as_float(x) + as_float(y)).view(np.uint32),
    "bf16_mul": lambda x, y, z: halves(np.multiply, x, y),
    "bf16_fma": lambda x, y, z: halves(lambda a, b, c: a * b + c, x, y, z),
    "cvt": lambda x, y, z: bf16(as_float(x)) | bf16(as_float(y)) << np.uint32(16),
}


def inputs(mode: str) -> NDArray[np.uint32]:
    """x, y, z of 1024 threads; chosen so that the float chains are exact or rounded once in the same way everywhere."""
    rng = np.random.default_rng(sum(mode.encode()))
    v = np.zeros((1024, 4), np.uint32)
    v[:, :3] = rng.integers(1, 2**32, (1024, 3), dtype=np.uint32)
    x = rng.uniform(1, 2, 1024).astype(np.float32)
    one = np.float32(1).view(np.uint32)
    if mode == "shift":
        v[:, 2] = rng.integers(1, 32, 1024)
    if mode in ("ffma", "fadd", "cvt", "exp2"):
        v[:, 0] = x.view(np.uint32) & 0xFFFFFFF0
        v[:, 1] = one  # a product with one is exact, fused or not
        v[:, 2] = rng.uniform(0, 1, 1024).astype(np.float32).view(np.uint32)
    if mode == "bf16_mul":
        v[:, 0] = 0x3F803F80 | (v[:, 0] & 0x007F0070)
        v[:, 1] = 0x3F80BF80
    if mode == "bf16_fma":
        v[:, 0] = 0x3F803F80 | (v[:, 0] & 0x007F0070)
        v[:, 1], v[:, 2] = 0x3F803F80, 0x3F803F80
    return v


def expected(mode: str, given: NDArray[np.uint32], rounds: int, chains: int) -> NDArray[np.uint32]:
    """The result of each of the 1024 threads."""
    lane = np.arange(1024, dtype=np.uint32) % 32
    if mode.startswith("lds"):
        width = int(mode[3:]) // 8
        n = rounds * UNROLL
        if chains == 1:
            return ((lane + n) % 32 * width).astype(np.uint32)
        return ((lane + 1) % 32 * width * n + lane * width).astype(np.uint32)
    if mode == "mma":
        total = np.float32(4 * 3 * rounds * UNROLL)
        return np.full(1024, total.view(np.uint32), np.uint32)
    with np.errstate(over="ignore"):
        x = given[:, :1] + np.arange(chains, dtype=np.uint32)
        y, z = (np.broadcast_to(given[:, k : k + 1], x.shape) for k in (1, 2))
        for _ in range(rounds * UNROLL // chains):
            x = STEPS[mode](x, y, z)
        return x.sum(axis=1, dtype=np.uint32)


def rate_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    rounds = 32 if s.name == "full" else 1
    samples = s.samples
    for mode, key, warps, what in RATES:
        for chains, active in ((8, warps), (1, 1)):
            if chains == 1 and key.endswith("_warps") and not key.endswith("_4_warps"):
                continue
            given = inputs(mode)
            values, clocks = [], []
            for _ in range(s.launches):
                run = m.launch(
                    "rates", mode, grid=m.sms, smem=40 * KIB, rounds=rounds, samples=samples, b=active, c=chains,
                    upload=given, rows=m.sms * 32, read=(1024 * 16 + m.sms * 4096),
                )
                got = run.work[4096:].reshape(m.sms, 1024)[:, : 32 * active]
                check(mode, key, got, given, rounds, chains, active)
                took = run.times.reshape(m.sms, 32, samples)[:, :active].max(axis=1).astype(np.float64)
                values.append(active * 32 * rounds * UNROLL / took)
                clocks.append(took / (rounds * UNROLL))
            if chains == 1:
                text = f"{what}: a dependent chain, one warp"
                yield cost(key.removesuffix("_4_warps") + "_latency", np.concatenate(clocks), "clk", text, "results")
            elif mode == "mma":
                text = f"{what}, 8 accumulators per warp; instructions per clock of an SM"
                yield cost(key, np.concatenate(values) / 32, "op/clk/SM", text, "results")
            else:
                text = f"{what}, lanes per clock of an SM, {warps} warps"
                yield cost(key, np.concatenate(values), "op/clk/SM", text, "results")


def check(
    mode: str, key: str, got: NDArray[np.uint32], given: NDArray[np.uint32], rounds: int, chains: int, active: int
) -> None:
    if mode == "exp2":
        # x = 2^-x has one fixed point, which the approximation reaches within a few units of its last place.
        want = int(np.float32(0.6411857445).view(np.uint32)) * chains
        require(bool((np.abs(got.astype(np.int64) - want % 2**32) <= 8 * chains).all()), key, got[0, :4])
        return
    want = expected(mode, given, rounds, chains)[: 32 * active]
    require(bool((got == want).all()), key, (got[0, :4], want[:4]))


def clock_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    """The SM clock as the kernels see it: while one SM works, and while all multiply."""
    for key, mode, grid, rounds in (("clock_one_sm", "sync", 1, 512 * s.rounds), ("clock_all_sms", "rates", m.sms, 4 * s.rounds)):
        found = []
        for _ in range(max(s.sweep_launches, s.launches)):
            if mode == "sync":
                run = m.launch("sync", "mbar_lane", grid=grid, smem=16 * KIB, rounds=rounds, samples=2)
            else:
                run = m.launch(
                    "rates", "ffma", grid=grid, smem=40 * KIB, rounds=rounds if s.name == "full" else 1, samples=8, b=32, c=8,
                    upload=inputs("ffma"), rows=grid * 32,
                )
            found.append(run.hertz)
        what = "SM clock seen while " + ("one SM passes mbarriers" if grid == 1 else "all SMs run FFMA")
        yield cost(key, found, "Hz", what, "clock against global timer")


LAUNCHES = (
    # kind, key, shared memory KiB, what
    (0, "launch", 0, "an empty kernel on all SMs, launched back to back"),
    (0, "launch_200k", 200, "the same with 200 KiB of shared memory"),
    (1, "cooperative_launch", 0, "the same by a cooperative launch"),
    (1, "cooperative_launch_200k", 200, "the same by a cooperative launch with 200 KiB of shared memory"),
    (2, "graph_launch", 200, "a graph of one such kernel, launched back to back"),
    (3, "graph_node", 200, "one of 64 such kernels in a graph"),
)


def launch_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    """Launch overhead; on a GPU only."""
    if not isinstance(m, Gpu):
        return
    for kind, key, kib, what in LAUNCHES:
        found = [m.launches(kind, kib * KIB, 64 if s.name == "full" else 4) for _ in range(max(s.sweep_launches, 2))]
        yield cost(key, [d for d, _ in found], "s", what + "; event time per kernel", "return codes")
        if kind < 3:
            text = f"{what.partition(',')[0]}: one, from the call until the host sees its end"
            yield cost(key + "_and_wait", [h for _, h in found], "s", text, "return codes")


GROUPS: dict[str, tuple[Callable[[Machine, Scale], Iterator[Cost]], ...]] = {
    "launch": (clock_costs, launch_costs),
    "sync": (local_costs, pair_costs, grid_costs),
    "stream": (stream_costs,),
    "latency": (latency_costs, chase_costs),
    "activations": (activation_costs, prefetch_costs),
    "rates": (rate_costs,),
}
"""Each group runs in a process of its own, so that a kernel that stops one leaves the others."""
