"""What is measured. The cases run on a GPU and, with tiny sizes, on the emulator, where the protocols are
checked and the times mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.micro.cases_copy import stream_costs
from benchmarks.micro.cases_latency import activation_costs, chase_costs, latency_costs, prefetch_costs
from benchmarks.micro.cases_rates import rate_costs
from benchmarks.micro.cases_sync import (
    clock_costs,
    flag_costs,
    grid_costs,
    launch_costs,
    local_costs,
    pair_costs,
)
from benchmarks.micro.cost import FULL, SANITIZE, TINY, Cost, Scale
from benchmarks.micro.device import Machine

__all__ = ["FULL", "GROUPS", "SANITIZE", "TINY"]

GROUPS: dict[str, tuple[Callable[[Machine, Scale], Iterator[Cost]], ...]] = {
    "launch": (clock_costs, launch_costs),
    "sync": (local_costs, pair_costs, flag_costs, grid_costs),
    "stream": (stream_costs,),
    "latency": (latency_costs, chase_costs),
    "activations": (activation_costs, prefetch_costs),
    "rates": (rate_costs,),
}
"""Each group runs in a process of its own, so that a kernel that stops one leaves the others."""
