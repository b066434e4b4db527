"""`tilecc ops`: the ops that a model file may use."""

from __future__ import annotations

from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json


def ops_command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the ops that can be lowered, and how a model file writes each."""
    from tilecc.ir.graph_ops import GRAPH_OPS

    if json:
        emit_json([{"name": name, "torch": op.torch, "doc": op.doc} for name, op in GRAPH_OPS.items()])
        return
    for name, op in GRAPH_OPS.items():
        emit(f"{name}\n    {op.torch}\n    {op.doc}")
