"""`tilecc explain CODE`: the long form of a diagnostic."""

from __future__ import annotations

from typing import Annotated

import typer

from tilecc.cli.console import emit, table
from tilecc.diag import CATALOGUE, explain


def explain_command(
    code: Annotated[str | None, typer.Argument(help="A code such as TC0302.", show_default=False)] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List all codes with their titles.")] = False,
) -> None:
    """Explain a diagnostic code: why the rule exists, a wrong and a right input."""
    if list_all:
        emit(table([(name, entry.title) for name, entry in CATALOGUE.items()]))
        return
    if code is None:
        raise typer.BadParameter("give a code such as TC0302, or --list")
    emit(explain(code), end="")
