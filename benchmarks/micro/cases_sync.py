"""Synchronisation: inside a CTA, between two, among all; launches and clocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.micro.cases_rates import WARPS, inputs
from benchmarks.micro.cost import KIB, Cost, Scale, cost, require, timed
from benchmarks.micro.device import FLAG_POISON, Gpu, Machine

LOCAL = [
    # mode, key, repetitions per round, expected sums[0], what
    ("mbar_lane", "mbarrier_pass_lane", 1, 0, "one lane arrives on an mbarrier of count 1 and waits"),
    ("mbar_warp", "mbarrier_pass", 1, 0, "a warp synchronises, arrives on an mbarrier of count 1, and waits"),
    ("mbar_passed", "mbarrier_wait_passed", 15, 0, "wait on a phase that has completed"),
    (
        "warp_to_warp",
        "mbarrier_hand_off",
        2,
        32,
        "128 bytes from warp to warp: store, syncwarp, arrive | wait, load",
    ),
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
    (
        "counter_data",
        "counter_hand_off",
        "512 bytes: st.global, syncwarp, red.release | wait_ge, syncwarp, ld.global",
    ),
    (
        "counter_fence",
        "counter_hand_off_fence",
        "512 bytes: st.global, syncwarp, fence, red.relaxed | wait_ge, ld.global",
    ),
]

GRIDS = [
    # key, kind, group, pollers, what
    ("grid_counter", 0, 1, 1, "every CTA arrives on one counter and waits for it"),
    ("grid_counter_3_pollers", 0, 1, 3, "the same, three warps of each CTA wait"),
    ("grid_flag", 1, 1, 1, "arrival counter; CTA 0 waits for it and sets one release flag"),
    (
        "grid_tree_4",
        2,
        4,
        1,
        "groups of 4 on counters of their own, leaders on the root, all wait for the root",
    ),
    (
        "grid_tree_12",
        2,
        12,
        1,
        "groups of 12 on counters of their own, leaders on the root, all wait for the root",
    ),
    (
        "grid_tree_33",
        2,
        33,
        1,
        "groups of 33 on counters of their own, leaders on the root, all wait for the root",
    ),
    ("grid_tree_12_flags", 3, 12, 1, "groups of 12 in and out: a release flag per group"),
]


def local_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    for mode, key, each, want, what in LOCAL:
        runs = []
        for _ in range(s.launches):
            run = m.launch("sync", mode, grid=1, smem=16 * KIB, rounds=4 * s.rounds, samples=s.samples)
            require(int(run.sums[0, 0]) == want, key, run.sums[0])
            runs.append((run, run.times[0]))
        yield timed(
            key, runs, 4 * s.rounds * each, what, "words exchanged, phases" if want else "phase at the end"
        )


def peers_of(m: Machine, s: Scale) -> list[int]:
    """The CTAs that CTA 0 talks to, spread over the grid."""
    return sorted({1 + i * (m.sms - 2) // max(1, s.peers - 1) for i in range(s.peers)})


def pair_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    peers = peers_of(m, s)
    total = s.samples * s.rounds
    for mode, key, what in PAIRS:
        runs = []
        for peer in peers:
            run = m.launch(
                "sync", mode, grid=m.sms, smem=16 * KIB, rounds=s.rounds, samples=s.samples, a=peer
            )
            want = total if mode in ("counter", "counter_store") else 32
            require(int(run.sums[0, 0]) == want, key, run.sums[0])
            runs.append((run, run.times[0]))
        yield timed(
            key, runs, 2 * s.rounds, f"{what}; one way, {len(peers)} pairs of CTAs", "every word handed over"
        )
    for size in (1024, 4096):
        runs = []
        for peer in peers:
            run = m.launch(
                "sync",
                "counter_bulk",
                grid=m.sms,
                smem=16 * KIB,
                rounds=s.rounds,
                samples=s.samples,
                a=peer,
                size=size,
            )
            require(int(run.sums[0, 0]) == 32, "counter_bulk", run.sums[0])
            runs.append((run, run.times[0]))
        what = (
            f"{size} bytes: st.shared, fence, bulk store, wait, red.release | wait_ge, fence, bulk load, wait"
        )
        key = f"counter_bulk_hand_off_{size}"
        yield timed(key, runs, 2 * s.rounds, what + "; one way", "every word handed over")


FLAGS = [
    ("flag32", "flag_hand_off", "a word of 32 bits per lane"),
    ("flag64", "flag_hand_off_64", "a word of 64 bits per lane"),
    ("flag512", "flag_hand_off_512", "512 bytes, two words of 64 bits per lane"),
]


def flag_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    """Data as flag. Every round has words of its own, so that nothing is poisoned again while it runs."""
    total = s.samples * s.rounds
    for mode, key, what in FLAGS:
        runs = []
        poison = np.full(total * 256, FLAG_POISON, np.uint32)
        for peer in peers_of(m, s):
            run = m.launch(
                "sync",
                mode,
                grid=m.sms,
                smem=16 * KIB,
                rounds=s.rounds,
                samples=s.samples,
                a=peer,
                upload=poison,
            )
            require(int(run.sums[0, 0]) == 32, key, run.sums[0])
            runs.append((run, run.times[0]))
        text = f"data as flag, {what}: st.relaxed | ld.relaxed; one way, {len(runs)} pairs of CTAs"
        yield timed(key, runs, 2 * s.rounds, text, "every word handed over")
    runs = []
    poison = np.full(total * m.sms, FLAG_POISON, np.uint32)
    for _ in range(s.launches):
        run = m.launch(
            "sync",
            "grid_flags",
            grid=m.sms,
            smem=m.smem // 2 + KIB,
            cooperative=True,
            rounds=s.rounds,
            samples=s.samples,
            upload=poison,
        )
        require(bool((run.sums[:, 0] == 32).all()), "grid_flags", run.sums[:, 0])
        runs.append((run, run.times[:, 1:]))
    text = f"every CTA pushes a word, one warp of each polls the words of all {m.sms}"
    yield timed("grid_flags", runs, s.rounds, text, "every word")


def grid_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    smem = m.smem // 2 + KIB  # one CTA per SM
    sizes = [m.sms] if m.sms < 64 else [m.sms, m.sms // 2, 16]
    for mode, suffix, more in (
        ("grid", "", ""),
        ("grid_stored", "_stored", "; 512 bytes stored by each before"),
        ("grid_data", "_data", "; 512 bytes stored before, 512 of another after"),
    ):
        for key, kind, group, pollers, what in GRIDS:
            for grid in sizes if kind == 0 and pollers == 1 else [m.sms]:
                runs = []
                for _ in range(s.launches):
                    run = m.launch(
                        "sync",
                        mode,
                        grid=grid,
                        smem=smem,
                        cooperative=True,
                        rounds=s.rounds,
                        samples=s.samples,
                        a=kind,
                        b=group,
                        c=pollers,
                    )
                    require(bool((run.sums[:, 0] == 32).all()), key, run.sums[:, 0])
                    arrivals = grid if kind < 2 else -(-grid // group)
                    require(int(run.sums[0, 1]) == arrivals * s.samples * s.rounds, key, run.sums[0, 1])
                    # The first sample includes the start of the CTAs, at different times.
                    runs.append((run, run.times[:, 1:]))
                name = key + suffix + ("" if grid == m.sms else f"_{grid}_ctas")
                yield timed(name, runs, s.rounds, f"{what}{more}; {grid} CTAs", "arrivals, every word")


def clock_costs(m: Machine, s: Scale) -> Iterator[Cost]:
    """The SM clock as the kernels see it: while one SM works, and while all multiply."""
    for key, mode, grid, rounds in (
        ("clock_one_sm", "sync", 1, 512 * s.rounds),
        ("clock_all_sms", "rates", m.sms, 4 * s.rounds),
    ):
        found = []
        for _ in range(max(s.sweep_launches, s.launches)):
            if mode == "sync":
                run = m.launch("sync", "mbar_lane", grid=grid, smem=16 * KIB, rounds=rounds, samples=2)
            else:
                run = m.launch(
                    "rates",
                    "ffma",
                    grid=grid,
                    smem=40 * KIB,
                    rounds=rounds if s.name == "full" else 1,
                    samples=8,
                    b=WARPS,
                    c=8,
                    upload=inputs("ffma"),
                    rows=grid * WARPS,
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
        found = [
            m.launches(kind, kib * KIB, 64 if s.name == "full" else 4)
            for _ in range(max(s.sweep_launches, 2))
        ]
        yield cost(key, [d for d, _ in found], "s", what + "; event time per kernel", "return codes")
        if kind < 3:
            text = f"{what.partition(',')[0]}: one, from the call until the host sees its end"
            yield cost(key + "_and_wait", [h for _, h in found], "s", text, "return codes")
