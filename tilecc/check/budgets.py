"""What a CTA needs against what the target has: threads, registers, shared memory, co-residency."""

from __future__ import annotations

from collections.abc import Iterator

from tilecc.check.machine import Violation
from tilecc.ir.program import Program
from tilecc.target import Target

MAX_THREADS = 1024
MIN_REGISTERS = 24
"""The least that setmaxnreg can leave a thread with."""


def budgets(program: Program, target: Target) -> Iterator[Violation]:
    """One violation per limit of the target that a CTA exceeds."""
    threads = program.threads
    if threads > MAX_THREADS:
        yield Violation("budget", f"a CTA has {threads} threads; the limit is {MAX_THREADS}", ())
    registers = sum(32 * role.warps * (role.registers or MIN_REGISTERS) for role in program.roles)
    if registers > target.registers_per_sm:
        text = f"the roles ask for {registers} registers; {target.name} has {target.registers_per_sm} per SM"
        yield Violation("budget", text, ())
    rings = sum(ring.slots * ring.slot_bytes for ring in program.rings)
    if rings > target.smem_per_cta:
        text = f"the rings take {rings} B; a CTA of {target.name} may have {target.smem_per_cta} B"
        yield Violation("budget", text, ())
