"""Streams: bandwidth, and the bytes in flight that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.micro.cost import KIB, MIB, Cost, Scale, cost, require
from benchmarks.micro.device import Gpu, Machine, Run, sum_of_words


def ring_smem(stages: int, size: int) -> int:
    return KIB + stages * size


def stream(
    m: Machine, total: int, size: int, stages: int, offset: int, region: int, check: bool = False
) -> tuple[Run, int]:
    """All CTAs copy ``total`` bytes of ``region`` through rings; (run, bytes really copied)."""
    rounds = max(1, total // (size * m.sms))
    run = m.launch(
        "copy",
        "stream",
        grid=m.sms,
        smem=ring_smem(stages, size),
        rounds=rounds,
        size=size,
        stages=stages,
        offset=offset,
        nbytes=region,
        a=int(check),
        keep=True,
    )
    require(not run.sums[:, :4].any(), "stream", "words differ from the pattern")
    if check:
        copies = region // size
        for cta in range(m.sms):
            want = sum(
                sum_of_words((offset + (i * m.sms + cta) % copies * size) // 4, size // 4)
                for i in range(rounds)
            )
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
        copied = cost(
            "copy_rate",
            rates,
            "B/s",
            f"device-to-device copy of {total >> 20} MiB, read plus write",
            "last words",
        )
        copy = copied.value
        yield copied
    reads = []
    for i in range(s.sweep_launches):
        offset = i % 4 * quarter
        run = m.launch("rates", "read_only", grid=m.sms, smem=40 * KIB, offset=offset, nbytes=total)
        require(
            int(run.sums[:, 0].sum(dtype=np.uint64)) % 2**32 == sum_of_words(offset // 4, total // 4),
            "read_only",
        )
        reads.append(total / run.seconds)
    yield cost(
        "read_rate", reads, "B/s", f"ld.global.nc.v4 by all threads, {total >> 20} MiB", "sum of all words"
    )

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
    yield Cost(
        "stream_rate",
        peak.value,
        "B/s",
        peak.low,
        peak.high,
        peak.samples,
        f"the best: {peak.what}",
        peak.checked,
    )
    # A copy reads and writes: its rate counts both, and a stream that only reads is held against the same
    # figure.
    for name, against in (("copy", copy), ("stream", peak.value)):
        for size in sorted({z for z, _ in best}):
            enough = [(z * n, c) for (z, n), c in best.items() if z == size and c.value >= 0.9 * against]
            if against and enough:
                need, at = min(enough, key=lambda e: e[0])
                text = f"bytes in flight per SM for 90 % of the {name} rate, copies of {size // KIB} KiB"
                yield Cost(
                    f"in_flight_{name}_{size // KIB}k", need, "B", need, need, at.samples, text, at.checked
                )

    footprint = min(16 * MIB, total)
    for size, stages in (
        [(16 * KIB, 4), (16 * KIB, 8), (16 * KIB, 12)] if s.name == "full" else [(4 * KIB, 2)]
    ):
        rates = []
        for _ in range(s.sweep_launches):
            # One pass brings the region into L2; the long one reads it from there.
            stream(m, footprint, size, stages, 0, footprint)
            run, nbytes = stream(m, max(s.stream // 4, footprint), size, stages, 0, footprint)
            rates.append(nbytes / run.seconds)
        text = f"the same from L2: {footprint >> 20} MiB again and again, {size // KIB} KiB x {stages}"
        yield cost(f"l2_stream_{size // KIB}k_x{stages}", rates, "B/s", text, "128 words of each copy")
