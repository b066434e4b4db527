"""The table of targets. Limits: CUDA C++ Programming Guide, compute capabilities 9.0 and 10.0. Rates and
costs: section 8 of the design (measured where it says so, otherwise planning figures until measured).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from tilecc.diag import error


@dataclass(frozen=True)
class Target:
    """One machine. Sizes in bytes, rates in bytes per second, costs in seconds."""

    name: str
    title: str
    gencode: str
    sms: int
    smem_per_cta: int
    registers_per_sm: int
    l2_bytes: int
    hbm_rate: float
    counter_hand_off: float
    mbarrier_hand_off: float
    peer_hand_off: float
    activation_load: float


KIB = 1024

TARGETS: dict[str, Target] = {
    "sm_90a": Target(
        name="sm_90a",
        title="Hopper, H100/H200 SXM (132 SMs)",
        gencode="arch=compute_90a,code=sm_90a",
        sms=132,
        smem_per_cta=227 * KIB,
        registers_per_sm=64 * KIB,
        l2_bytes=60 * KIB * KIB,  # H200, as PyTorch reports
        hbm_rate=4.3e12,  # H200, measured device-to-device copy
        counter_hand_off=1.25e-6,
        mbarrier_hand_off=60e-9,
        peer_hand_off=2.0e-6,  # peer flag over NVLink (design, peers 4.2)
        activation_load=1.5e-6,
    ),
    "sm_100a": Target(
        name="sm_100a",
        title="Blackwell, B200 (148 SMs)",
        gencode="arch=compute_100a,code=sm_100a",
        sms=148,
        smem_per_cta=227 * KIB,
        registers_per_sm=64 * KIB,
        l2_bytes=126 * KIB * KIB,
        hbm_rate=8.0e12,  # nominal
        counter_hand_off=1.25e-6,
        mbarrier_hand_off=60e-9,
        peer_hand_off=2.0e-6,  # peer flag over NVLink (design, peers 4.2)
        activation_load=1.5e-6,
    ),
}


def find_target(name: str) -> Target:
    """The target of that name. Raises TileccError TC0701 with the available names and the nearest one."""
    target = TARGETS.get(name)
    if target is None:
        near = difflib.get_close_matches(name, TARGETS, 1)
        raise error(
            "TC0701",
            f"unknown target `{name}`",
            note="available: " + ", ".join(f"{t.name} ({t.title})" for t in TARGETS.values()),
            help=f"use --target {near[0] if near else 'sm_90a'}",
        )
    return target
