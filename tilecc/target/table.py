"""The table of targets. Limits: CUDA C++ Programming Guide, compute capabilities 9.0 and 10.0. Costs:
planning figures (sources in costs.py), replaced by what was measured where there is a measurement.

SM rates are results per clock and SM of the guide's table of arithmetic throughput, unless a field says
otherwise. Rates of sm_100a are those of sm_90a where the guide gives no other: planning figures.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from tilecc.diag import error
from tilecc.target.costs import COST_FIELDS, Cost, MeasuredFile, known_measurements, resolve


@dataclass(frozen=True)
class SmRates:
    """What one SM does per clock. Instructions are counted in lanes (32 per warp instruction).

    `clock` is the SM clock in Hz that the byte budget is derived with: a share of bandwidth modelled at a
    higher clock is higher in proportion. `hbm_nominal` in bytes per second, of the whole GPU. `tensor` in
    16-bit multiply-adds of `mma.sync` with float32 accumulation. The instruction caches are planning figures
    in bytes: none is published for these machines.
    """

    clock: float
    hbm_nominal: float
    issue: int
    alu: int
    fma: int
    fma_heavy: int
    conversion: int
    special: int
    tensor: int
    shared_bytes: int
    l0_icache: int
    l1_icache: int

    def hbm_bytes(self, sms: int) -> float:
        """Bytes of HBM per clock and SM at the nominal rate."""
        return self.hbm_nominal / sms / self.clock


@dataclass(frozen=True)
class Target:
    """One machine. Sizes in bytes, rates in bytes per second, costs in seconds; `costs` says where each is
    from. `machine` is the GPU that memory sizes and rates describe. What the costs mean: COST_FIELDS."""

    name: str
    title: str
    machine: str
    gencode: str
    sms: int
    smem_per_cta: int
    registers_per_sm: int
    l2_bytes: int
    hbm_rate: float
    hbm_latency: float
    in_flight: float
    l2_latency: float
    l2_rate_per_sm: float
    activation_load: float
    mbarrier_hand_off: float
    counter_hand_off: float
    flag_hand_off: float
    peer_hand_off: float
    launch: float
    sm: SmRates
    costs: tuple[Cost, ...] = ()


KIB = 1024

HOPPER_SM = SmRates(
    # 4.8 TB/s over 132 SMs at this clock is 20.7 B/clk, and 3.3 instructions per MXFP4 weight, the budget of
    # the design; an H200 may boost to 1.98 GHz.
    clock=1.755e9,
    hbm_nominal=4.8e12,
    issue=128,  # four schedulers, one warp instruction each
    alu=64,  # 32-bit integer add, compare, shift, logic
    fma=128,  # float32 add, multiply, fma; a packed 16-bit operation takes both halves of the pipe
    fma_heavy=64,  # integer multiply-add: one half of the pipe alone
    conversion=64,  # conversions among types of 32 bits and less
    special=16,  # reciprocal, exponent, population count
    # Half the rate of wgmma (2048): mma.sync reaches 63 % of the peak on average (arXiv:2402.13499).
    tensor=1024,
    shared_bytes=128,  # 32 banks of 4 bytes
    # Measured on Volta (arXiv:1804.06826): 12 KiB per scheduler, 128 KiB behind it.
    l0_icache=12 * KIB,
    l1_icache=128 * KIB,
)
BLACKWELL_SM = replace(
    HOPPER_SM,
    clock=1.83e9,  # with 8 TB/s over 148 SMs, 2.3 instructions per MXFP4 weight: section 9 of the design
    hbm_nominal=8.0e12,
)

PLANNED: dict[str, Target] = {
    "sm_90a": Target(
        name="sm_90a",
        title="Hopper, H100/H200 SXM (132 SMs)",
        machine="H200",
        gencode="arch=compute_90a,code=sm_90a",
        sms=132,
        smem_per_cta=227 * KIB,
        registers_per_sm=64 * KIB,
        l2_bytes=60 * KIB * KIB,  # H200, as PyTorch reports
        hbm_rate=4.3e12,
        hbm_latency=0.85e-6,
        in_flight=64 * KIB,
        l2_latency=0.5e-6,
        l2_rate_per_sm=64 * HOPPER_SM.clock,
        activation_load=1.5e-6,
        mbarrier_hand_off=60e-9,
        counter_hand_off=1.25e-6,
        flag_hand_off=0.85e-6,
        peer_hand_off=2.0e-6,
        launch=2.1e-6,
        sm=HOPPER_SM,
    ),
    "sm_100a": Target(
        name="sm_100a",
        title="Blackwell, B200 (148 SMs)",
        machine="B200",
        gencode="arch=compute_100a,code=sm_100a",
        sms=148,
        smem_per_cta=227 * KIB,
        registers_per_sm=64 * KIB,
        l2_bytes=126 * KIB * KIB,
        hbm_rate=8.0e12,  # nominal
        hbm_latency=0.85e-6,
        in_flight=96 * KIB,
        l2_latency=0.5e-6,
        l2_rate_per_sm=64 * HOPPER_SM.clock,
        activation_load=1.5e-6,
        mbarrier_hand_off=60e-9,
        counter_hand_off=1.25e-6,
        flag_hand_off=0.85e-6,
        peer_hand_off=2.0e-6,
        launch=2.1e-6,
        sm=BLACKWELL_SM,
    ),
}


def with_measured(target: Target, files: tuple[MeasuredFile, ...]) -> Target:
    """The target with its costs taken from ``files`` where they have them."""
    planned = {f.name: getattr(target, f.name) for f in COST_FIELDS}
    costs = resolve(target.name, target.machine, planned, files)
    values: dict[str, Any] = {c.name: c.value for c in costs}
    return replace(target, **values, costs=costs)


TARGETS: dict[str, Target] = {name: with_measured(t, known_measurements()) for name, t in PLANNED.items()}


def find_target(name: str, planned: bool = False) -> Target:
    """The target of that name; with ``planned`` its planning figures, whatever was measured. Raises
    TileccError TC0701 with the available names and the nearest one."""
    target = with_measured(PLANNED[name], ()) if planned and name in PLANNED else TARGETS.get(name)
    if target is None:
        near = difflib.get_close_matches(name, TARGETS, 1)
        raise error(
            "TC0701",
            f"unknown target `{name}`",
            note="available: " + ", ".join(f"{t.name} ({t.title})" for t in TARGETS.values()),
            help=f"use --target {near[0] if near else 'sm_90a'}",
        )
    return target
