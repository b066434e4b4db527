"""`tilecc targets`: the machines that a kernel can be compiled for."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, table


def targets_command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the targets and their limits."""
    from tilecc.target import TARGETS

    if json:
        emit_json([dataclasses.asdict(t) for t in TARGETS.values()])
        return
    head = ("target", "SMs", "smem per CTA", "HBM", "machine")
    rows = [
        (t.name, str(t.sms), f"{t.smem_per_cta:,} B", f"{t.hbm_rate / 1e12:.1f} TB/s", t.title)
        for t in TARGETS.values()
    ]
    emit(table([head, *rows]))
