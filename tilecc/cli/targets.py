"""`tilecc targets`: the machines that a kernel can be compiled for."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, table


def targets_command(
    costs: Annotated[
        bool, typer.Option("--costs", help="List the costs that the passes plan with, each with its source.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the targets and their limits, or their costs."""
    from tilecc.target import TARGETS

    if json:
        emit_json([dataclasses.asdict(t) for t in TARGETS.values()])
        return
    if costs:
        lines = [("target", "cost", "value", "5 % to 95 %", "source", "what it is")]
        for t in TARGETS.values():
            for c in t.costs:
                spread = "" if c.low is None else f"{c.text(c.low)} to {c.text(c.high)}"
                lines.append((t.name, c.name, c.text(), spread, c.source, c.what))
        emit(table(lines))
        return
    head = ("target", "SMs", "smem per CTA", "HBM", "machine")
    rows = [
        (t.name, str(t.sms), f"{t.smem_per_cta:,} B", f"{t.hbm_rate / 1e12:.1f} TB/s", t.title)
        for t in TARGETS.values()
    ]
    emit(table([head, *rows]))
