"""What the simulator charges for, each number with its source. Nothing here is tuned to reach a figure.

Figures of the machine come from the target table, which has their sources.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tilecc.target import Target


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes per second, clocks in Hz. `SOURCES` has one entry per field."""

    hbm_rate: float
    hbm_latency: float
    l2_latency: float
    l2_rate_per_sm: float
    clock: float
    lanes: int
    counter: float
    mbarrier: float
    peer: float
    epilogue: float
    route: float
    attention_block: float
    reduce_unit: float
    commit: float


SOURCES: dict[str, str] = {
    "hbm_rate": "target table",
    "hbm_latency": "target table",
    "l2_latency": "target table",
    "l2_rate_per_sm": "target table",
    "clock": "target table",
    "lanes": "target table",
    "counter": "target table",
    "mbarrier": "target table",
    "peer": "target table",
    "epilogue": "two dependent exchanges through shared memory and one global store: planning figure",
    "route": "top-8 of 384 logits of 8 rows by two warps: planning figure, from its step count",
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
        "clock": target.sm.clock,
        "lanes": target.sm.issue,
        "counter": target.counter_hand_off,
        "mbarrier": target.mbarrier_hand_off,
        "peer": target.peer_hand_off,
        "epilogue": 0.3e-6,
        "route": 1.5e-6,
        "attention_block": 0.25e-6,
        "reduce_unit": 0.6e-6,
        "commit": 1.0e-6,
    }
    return Costs(**(made | changes))


assert set(SOURCES) == {f.name for f in fields(Costs)}
