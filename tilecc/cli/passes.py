"""`tilecc passes`: the pass list, in order."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, table


def passes_command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the compiler passes in the order in which they run."""
    from tilecc.passes.pipeline import PASSES

    rows = []
    for number, one in enumerate(PASSES, 1):
        module = inspect.getmodule(one)
        doc = inspect.getdoc(module) or inspect.getdoc(one) or ""
        rows.append((str(number), getattr(one, "__name__", str(one)), _summary(doc)))
    if json:
        emit_json([{"order": int(n), "name": name, "doc": doc} for n, name, doc in rows])
    else:
        emit(table(rows))


def _summary(doc: str) -> str:
    """The first sentence of the first paragraph, on one line, without the pass's own name."""
    text = " ".join(doc.strip().partition("\n\n")[0].split())
    _, named, rest = text.partition(": ")
    text = rest if named else text
    return text.partition(". ")[0].rstrip(".")
