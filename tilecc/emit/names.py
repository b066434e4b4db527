"""Names for the numbers that a kernel's watchdog writes into its status record."""

from __future__ import annotations

from tilecc.ir.program import Program
from tilecc.package import Names

ROLES = ("loader", "store", "activations", "consumer")
"""In the order of `enum class Role` in op_common.cuh."""


def status_names(program: Program) -> Names:
    """Roles, ops, counters and mbarriers of a Program, by the numbers of the emitted kernel. The mbarriers
    come in the order of `Smem` in op_common.cuh, under the names that the kernel gives them."""
    counters = {op.counter: op.name for op in program.classes if op.counter >= 0}
    rings = [program.ring(name) for name in ("weights", "activations", "exchange")]
    barriers = [
        f"{ring.name} {state}[{slot}]"
        for ring in rings
        for state in ("full", "empty")
        for slot in range(ring.slots)
    ]
    return Names(
        roles=list(ROLES),
        ops=[op.name for op in program.classes],
        counters=[counters.get(i, "") for i in range(max(counters, default=-1) + 1)],
        barriers=[*barriers, "routing full[0]", "routing empty[0]"],
    )
