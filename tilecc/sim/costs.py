"""What the simulator charges for, each number with its source. Nothing here is tuned to reach a figure.

Figures of the machine come from the target table, which has their sources. The others are rows of the
micro-benchmarks (benchmarks/costs.py) as one H100 gave them, or planning figures, and say which.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tilecc.ir.tile import HandOffKind
from tilecc.target import Target

H100 = "measured: H100 80GB HBM3, 2026-11-25"


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes per second, clocks in Hz, lanes per clock; `scoreboard` in clocks. `SOURCES` has one
    entry per field."""

    hbm_rate: float
    hbm_latency: float
    l2_latency: float
    l2_rate_per_sm: float
    l2_stream: float
    clock: float
    issue: int
    integer: int
    scoreboard: float
    counter: float
    flag: float
    mbarrier: float
    mbarrier_passed: float
    copy: float
    peer: float
    epilogue: float
    route: float
    attention_block: float
    reduce_unit: float
    commit: float

    def hand_off(self) -> dict[HandOffKind, float]:
        """Seconds from a producer's end to its consumer's start, per kind of hand-off."""
        return {
            HandOffKind.MBARRIER: self.mbarrier,
            HandOffKind.COUNTER: self.counter,
            HandOffKind.PEER_FLAG: self.peer,
            HandOffKind.FLAG: self.flag,
        }


SOURCES: dict[str, str] = {
    "hbm_rate": "target table",
    "hbm_latency": "target table",
    "l2_latency": "target table",
    "l2_rate_per_sm": "target table",
    "l2_stream": f"different bytes into every SM from L2, l2_stream_16k_x8, all SMs: {H100}",
    "clock": "target table",
    "issue": "target table",
    "integer": "target table",
    "scoreboard": f"mean of lds128_latency (33.8) and mma_bf16_latency (24.4): {H100}",
    "counter": "target table",
    "flag": "target table",
    "mbarrier": "target table",
    "mbarrier_passed": f"mbarrier_wait_passed: {H100}",
    "copy": f"one more bulk copy of one lane, activations_96k_2k / 48: {H100}",
    "peer": "target table",
    "epilogue": "two dependent exchanges through shared memory and one global store: planning figure",
    "route": "top-8 of 384 logits of 8 rows by six warps: planning figure, from its step count",
    "attention_block": "16 positions of one row: 24 + 32 MMA and two exponentials deep: planning figure",
    "reduce_unit": "64 columns of 8 rows: one load, 8 additions, one store: planning figure",
    "commit": "one CTA reads an argmax per CTA: planning figure",
}


def costs_of(target: Target, **changes: Any) -> Costs:
    """Costs of a target; `changes` replace fields. Raises TypeError for a field that does not exist."""
    made: dict[str, Any] = {
        "hbm_rate": target.hbm_rate,
        "hbm_latency": target.hbm_latency,
        "l2_latency": target.l2_latency,
        "l2_rate_per_sm": target.l2_rate_per_sm,
        "l2_stream": 7584e9,
        "clock": target.sm.clock,
        "issue": target.sm.issue,
        "integer": target.sm.alu,
        "scoreboard": 29.1,
        "counter": target.counter_hand_off,
        "flag": target.flag_hand_off,
        "mbarrier": target.mbarrier_hand_off,
        "mbarrier_passed": 84.6e-9,
        "copy": 82e-9,
        "peer": target.peer_hand_off,
        "epilogue": 0.3e-6,
        "route": 1.5e-6,
        "attention_block": 0.25e-6,
        "reduce_unit": 0.6e-6,
        "commit": 1.0e-6,
    }
    return Costs(**(made | changes))


assert set(SOURCES) == {f.name for f in fields(Costs)}
