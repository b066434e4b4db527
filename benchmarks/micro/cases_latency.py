"""Latency of single copies and loads, activations that every SM loads, prefetches into L2."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.cases_copy import stream
from benchmarks.micro.cost import KIB, MIB, Cost, Scale, require, timed
from benchmarks.micro.device import Machine


def latency_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    full = s.name == "full"
    background = [(0, 0), (4, 16 * KIB), (8, 16 * KIB)] if full else [(0, 0), (2, 4 * KIB)]
    most = 200_000 if full else 4000
    half = m.data_bytes // 2
    region = min(half, 1 << 30)
    launch = 0
    for size in (128, 4 * KIB, 16 * KIB, 32 * KIB) if full else (128, 4 * KIB):
        for where in ("l2", "hbm", "hbm_far"):
            for stages, each in background:
                runs = []
                for _ in range(s.launches):
                    launch += 1
                    # HBM: every copy from another place, and other places in every launch.
                    stride = {"l2": 0, "hbm": 128 * KIB, "hbm_far": 4 * MIB + 32 * KIB}[where]
                    offset = {"l2": 0, "hbm": launch % 64 * 4 * MIB, "hbm_far": launch * 40 * KIB}[where]
                    span = m.data_bytes // 4
                    if not full:
                        stride, offset, span = min(stride, 8 * KIB), 0, half - 32 * KIB
                    run = m.launch(
                        "copy",
                        "latency",
                        grid=m.sms if stages else 1,
                        smem=KIB + max(size, stages * each),
                        cooperative=bool(stages),
                        rounds=most,
                        samples=s.samples,
                        size=size,
                        stages=stages,
                        offset=offset,
                        nbytes=region if full else half,
                        a=stride,
                        b=span,
                        c=each or size,
                    )
                    require(not run.sums[:, 0].any(), "latency", "words differ from the pattern")
                    if stages:
                        require(bool((run.sums[1:, 1] < most).all()), "latency", "the load ended early")
                    # The first copy of a launch brings an L2 line in, and warms the page tables.
                    runs.append((run, run.times[0, 1:] if s.samples > 1 else run.times[0]))
                load = f"loaded_{stages * each // KIB}k" if stages else "idle"
                place = {"l2": "L2", "hbm": "HBM, 128 KiB on", "hbm_far": "HBM, 4 MiB on"}[where]
                what = f"one bulk copy of {size} bytes from {place}, issue to mbarrier wait"
                what += (
                    f", the other SMs stream with {stages * each // KIB} KiB in flight"
                    if stages
                    else ", nothing else runs"
                )
                yield timed(f"bulk_{where}_{size}_{load}", runs, 1, what, "first and last word")


def chain(lines: int, hops: int, seed: int) -> NDArray[np.uint32]:
    """Lines of 32 words; word 0 of ``hops`` distinct lines leads through all of them and back to line 0."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([[0], 1 + rng.choice(lines - 1, hops - 1, replace=False)]).astype(np.uint32)
    memory = np.zeros((lines, 32), np.uint32)
    memory[order, 0] = np.roll(order, -1)
    return memory


def chase_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    full = s.name == "full"
    most = 200_000 if full else 4000
    l2 = 8 * MIB if full else 32 * KIB
    cases = [("l1", 64 * 128, 64, 64, 0), ("l2", l2, s.chain, s.chain, 0)]
    if full:
        cases += [("hbm_64m", 64 * MIB, 4096, 0, 0), ("hbm_512m", 512 * MIB, 4096, 0, 0)]
        cases += [("l2_loaded", 16 * 128, 16, 64, 4), ("hbm_loaded", 512 * MIB, 4096, 0, 4)]
    else:
        cases += [("l2_loaded", 16 * 128, 16, 64, 2), ("hbm_loaded", l2, s.chain, 0, 2)]
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
                "copy",
                "chase",
                grid=m.sms if stages else 1,
                smem=KIB + max(KIB, stages * each),
                cooperative=bool(stages),
                rounds=rounds,
                samples=s.samples,
                stages=stages,
                nbytes=m.data_bytes // 2,
                size=most,
                a=int(name == "l2_loaded"),
                b=warm,
                c=each,
                upload=upload,
                keep=upload is None,
            )
            at = int(path[(warm + rounds * s.samples) % hops])
            require(int(run.sums[0, 0]) == at, "chase", run.sums[0, 0])
            require(bool((run.sums[1:, 1] < most).all()) and not run.sums[1:, 0].any(), "chase", run.sums[1:])
            runs.append((run, run.times[0]))
        where = {"l1": "L1", "l2": "L2", "l2_loaded": "L2 under load"}.get(name, "HBM")
        how = "ld.relaxed.gpu" if name == "l2_loaded" else "ld.global.b32"
        what = f"dependent {how}, {where}, chain over {footprint // KIB} KiB"
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
                    "copy",
                    mode,
                    grid=m.sms,
                    smem=KIB + kib * KIB,
                    cooperative=True,
                    samples=s.samples + 1,
                    size=size,
                    nbytes=kib * KIB,
                    a=turned,
                )
                require(bool((run.sums[:, 0] == 8 * 32).all()), "activations", run.sums[:, 0])
                runs.append((run, run.times[:, 1:]))
                slowest.append((run, run.times[:, 1:].max(axis=0)))
            order = "each SM from another place on" if turned else "all in the same order"
            how = (
                f"bulk copies of {size // KIB} KiB"
                if mode == "activations"
                else "ld.global.v4, st.shared.v4 by 8 warps"
            )
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
                    "copy",
                    "prefetch",
                    grid=m.sms,
                    smem=KIB + size,
                    cooperative=True,
                    samples=s.samples,
                    size=size,
                    offset=launch % places * per_launch,
                    a=shuffles,
                    b=copies,
                    c=use,
                    rows=2 * m.sms,
                )
                require(bool((run.sums[:, 0] == 32).all()), "prefetch", run.sums[:, 0])
                delay.append((run, run.times[0::2]))
                load.append((run, run.times[1::2]))
            waited = timed("", delay, 1, "", "")
            tail = f"prefetch_{shuffles}" if use else "none"
            what = f"{size // KIB} KiB into every SM"
            what += (
                f", {waited.value * 1e6:.2f} us after its prefetch into L2"
                if use
                else " from HBM, not prefetched"
            )
            found = timed(f"load_after_{tail}", load, 1, what, "words of every 16 bytes")
            if use:
                loads[shuffles] = (waited.value, found.value)
            yield found
    resident = loads[delays[-1]][1]
    first = min((d for d, (_, load) in loads.items() if load <= 1.1 * resident), default=delays[-1])
    seconds = loads[first][0]
    total = m.sms * size
    yield Cost(
        "prefetch_l2_rate",
        total / seconds,
        "B/s",
        total / seconds,
        total / seconds,
        s.launches * s.samples,
        f"{total >> 20} MiB prefetched by all SMs are in L2 after {seconds * 1e6:.2f} us: loads then take "
        "at most 10 % longer than after the longest delay",
        "words of every 16 bytes",
    )
