"""What a main loop can reach of the memory bandwidth: counted instructions against the rates of the machine.

Every resource of the SM needs some clocks per weight; the largest need bounds the loop. HBM needs
bytes per weight / (bytes per clock and SM at the nominal rate) clocks; the ratio is the share of bandwidth
that the resource allows, if everything else were free. Counted is the consumers' steady state alone: the
other warp roles take issue slots too, few beside these.

The share says nothing about waiting. `stalls` is separate: the fixed latencies that the compiler wrote into
the control codes are clocks in which this warp issues nothing, and a scheduler that has few consumer warps
cannot fill them. Waits for scoreboards (loads, tensor results) come on top and are not known statically.
"""

from __future__ import annotations

import msgspec

from tilecc.target import SmRates

WARP = 32
MMA_PRODUCTS = 16 * 8 * 16
"""Multiply-adds of one m16n8k16."""
SCHEDULERS = 4


class Bound(msgspec.Struct, frozen=True):
    """One resource: clocks per weight and SM, and the share of the nominal HBM rate that it allows (1 and
    more: all of it)."""

    resource: str
    clocks_per_weight: float
    share: float


class LoopCounts(msgspec.Struct, frozen=True):
    """Per warp and iteration: warp instructions by pipe, 128-byte passes through shared memory, multiply-adds
    of tensor instructions, decoded stall clocks; the weights of the iteration, and the image bytes of one."""

    pipes: dict[str, int]
    wavefronts: int
    products: int
    stalls: int
    weights: int
    weight_bytes: float


def bounds(counts: LoopCounts, rates: SmRates, sms: int, warps: int) -> list[Bound]:
    """The bounds of a loop that `warps` consumer warps per SM run, tightest first."""
    p = {name: WARP * n / counts.weights for name, n in counts.pipes.items()}

    def lanes(*names: str) -> float:
        return sum(p.get(name, 0.0) for name in names)

    # A packed 16-bit operation takes both halves of the FMA pipe, half as long as IMAD takes the heavy one.
    heavy = lanes("imad") / rates.fma_heavy + lanes("half2") / rates.fma
    # The bulk copy writes every byte once, before the loop reads it.
    shared = (counts.wavefronts * 128 + counts.weights * counts.weight_bytes) / counts.weights
    need = {
        "issue slots": sum(p.values()) / rates.issue,
        "integer pipe": lanes("integer") / rates.alu,
        "FMA pipe": max(heavy, lanes("imad", "fp32", "half2") / rates.fma),
        "conversion": lanes("conversion") / rates.conversion,
        "special unit": lanes("special") / rates.special,
        "shared memory": shared / rates.shared_bytes,
        "tensor pipe": counts.products / counts.weights / rates.tensor,
        "stalls": counts.stalls / counts.weights / warps,
    }
    budget = counts.weight_bytes / rates.hbm_bytes(sms)
    found = [Bound(name, clocks, budget / clocks) for name, clocks in need.items() if clocks > 0]
    return sorted(found, key=lambda b: b.share)
