"""Rates and latencies of instructions, each chain computed here too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.cost import KIB, Cost, Scale, cost, require
from benchmarks.micro.device import THREADS, Machine

UNROLL = 64
LANES = THREADS["rates"]
WARPS = LANES // 32
RATES = [
    # mode, key, warps for the rate, what
    ("lop3", "lop3", 16, "LOP3"),
    ("shift", "shf", 16, "SHF (right shift by a register)"),
    ("prmt", "prmt", 16, "PRMT"),
    ("imad", "imad", 16, "IMAD"),
    ("ffma", "ffma", 16, "FFMA"),
    ("fadd", "fadd", 16, "FADD"),
    ("bf16_mul", "hmul2_bf16", 16, "HMUL2.BF16 (two products)"),
    ("bf16_fma", "hfma2_bf16", 16, "HFMA2.BF16 (two)"),
    ("cvt", "f2fp_bf16", 16, "F2FP.BF16 (two conversions)"),
    ("exp2", "mufu_ex2", 16, "MUFU.EX2"),
    ("lds128", "lds128", 16, "LDS.128"),
    ("lds64", "lds64", 16, "LDS.64"),
    ("lds32", "lds32", 16, "LDS.32"),
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
    "shift": lambda x, y, z: y >> x,
    "prmt": prmt,
    "imad": lambda x, y, z: x * y + z,
    "ffma": lambda x, y, z: (as_float(x) * as_float(y) + as_float(z)).view(np.uint32),
    "fadd": lambda x, y, z: (as_float(x) + as_float(y)).view(np.uint32),
    "bf16_mul": lambda x, y, z: halves(np.multiply, x, y),
    "bf16_fma": lambda x, y, z: halves(lambda a, b, c: a * b + c, x, y, z),
    "cvt": lambda x, y, z: bf16(as_float(x)) | bf16(as_float(y)) << np.uint32(16),
}


def inputs(mode: str) -> NDArray[np.uint32]:
    """x, y, z of every thread: chains of floats are exact, or rounded once per step in the same way
    everywhere."""
    rng = np.random.default_rng(sum(mode.encode()))
    v = np.zeros((LANES, 4), np.uint32)
    v[:, :3] = rng.integers(1, 2**32, (LANES, 3), dtype=np.uint32)
    x = rng.uniform(1, 2, LANES).astype(np.float32)
    one = np.float32(1).view(np.uint32)
    if mode == "shift":
        v[:, 0], v[:, 1] = rng.integers(0, 24, LANES), rng.integers(1, 32, LANES)
    if mode in ("ffma", "fadd", "cvt", "exp2"):
        v[:, 0] = x.view(np.uint32) & 0xFFFFFFF0
        v[:, 1] = one  # a product with one is exact, fused or not
        v[:, 2] = rng.uniform(0, 1, LANES).astype(np.float32).view(np.uint32)
    if mode == "bf16_mul":
        v[:, 0] = 0x3F803F80 | (v[:, 0] & 0x007F0070)
        v[:, 1] = 0x3F80BF80
    if mode == "bf16_fma":
        v[:, 0] = 0x3F803F80 | (v[:, 0] & 0x007F0070)
        v[:, 1], v[:, 2] = 0x3F803F80, 0x3F803F80
    return v


def expected(mode: str, given: NDArray[np.uint32], rounds: int, chains: int) -> NDArray[np.uint32]:
    """The result of each thread of a CTA."""
    lane = np.arange(LANES, dtype=np.uint32) % 32
    if mode.startswith("lds"):
        width = int(mode[3:]) // 8
        n = rounds * UNROLL
        others = width // 4 - 1  # all words of an element say the same
        if chains == 1:
            steps = (lane[:, None] + np.arange(1, n + 1, dtype=np.uint32)) % 32 * width
            return (steps[:, -1] + others * steps.sum(axis=1, dtype=np.uint32)).astype(np.uint32)
        return ((lane + 1) % 32 * width * n * (1 + others) + lane * width).astype(np.uint32)
    if mode == "mma":
        total = np.float32(4 * 3 * rounds * UNROLL)
        return np.full(LANES, total.view(np.uint32), np.uint32)
    with np.errstate(over="ignore"):
        x = given[:, :1] + np.arange(chains, dtype=np.uint32)
        y, z = (np.broadcast_to(given[:, k : k + 1], x.shape) for k in (1, 2))
        ys, zs = ([v * np.uint32(f) for f in (1, 5, 7, 11)] for v in (y, z))
        for k in range(rounds * UNROLL // chains):
            x = (x & ys[k % 4]) ^ zs[k % 4] if mode == "lop3" else STEPS[mode](x, y, z)
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
                    "rates",
                    mode,
                    grid=m.sms,
                    smem=40 * KIB,
                    rounds=rounds,
                    samples=samples,
                    b=active,
                    c=chains,
                    upload=given,
                    rows=m.sms * WARPS,
                    read=LANES * 16 + m.sms * LANES * 4,
                )
                got = run.work[LANES * 4 :].reshape(m.sms, LANES)[:, : 32 * active]
                check(mode, key, got, given, rounds, chains, active)
                took = run.times.reshape(m.sms, WARPS, samples)[:, :active].max(axis=1).astype(np.float64)
                values.append(active * 32 * rounds * UNROLL / took)
                clocks.append(took / (rounds * UNROLL))
            if chains == 1:
                text = f"{what}: a dependent chain, one warp"
                yield cost(
                    key.removesuffix("_4_warps") + "_latency", np.concatenate(clocks), "clk", text, "results"
                )
            elif mode == "mma":
                text = f"{what}, 8 accumulators per warp; instructions per clock of an SM"
                yield cost(key, np.concatenate(values) / 32, "op/clk/SM", text, "results")
            else:
                text = f"{what}, lanes per clock of an SM, {warps} warps"
                yield cost(key, np.concatenate(values), "op/clk/SM", text, "results")


def check(
    mode: str,
    key: str,
    got: NDArray[np.uint32],
    given: NDArray[np.uint32],
    rounds: int,
    chains: int,
    active: int,
) -> None:
    if mode == "exp2":
        # x -> 2^-x contracts (its slope is below 1/2): the errors of the steps do not add up.
        x = as_float(given[: 32 * active, :1] + np.arange(chains, dtype=np.uint32)).astype(np.float64)
        for _ in range(rounds * UNROLL // chains):
            x = np.exp2(-x)
        want = x.astype(np.float32).view(np.uint32).sum(axis=1, dtype=np.uint32)
        away = (got - want).view(np.int32)
        require(bool((np.abs(away) <= 8 * chains).all()), key, (got[0, :4], want[:4]))
        return
    want = expected(mode, given, rounds, chains)[: 32 * active]
    require(bool((got == want).all()), key, (got[0, :4], want[:4]))
