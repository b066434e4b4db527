"""`tilecc passes`: the pass list, in order."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, table


def passes_command(
    choices: Annotated[
        bool, typer.Option("--choices", help="List what a schedule can pin or bound instead.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the compiler passes in order, or the choices that they leave to a schedule."""
    from tilecc.passes.pipeline import PASSES

    if choices:
        _choices(json)
        return

    rows = []
    for number, one in enumerate(PASSES, 1):
        module = inspect.getmodule(one)
        doc = inspect.getdoc(module) or inspect.getdoc(one) or ""
        rows.append((str(number), getattr(one, "__name__", str(one)), _summary(doc)))
    if json:
        emit_json([{"order": int(n), "name": name, "doc": doc} for n, name, doc in rows])
    else:
        emit(table(rows))


def _choices(json: bool) -> None:
    from tilecc.passes.schedule import KNOBS

    if json:
        emit_json(
            [
                {"of": k.kind, "name": k.key, "pass": k.asked_by, "takes": k.takes.__name__, "doc": k.doc}
                for k in KNOBS
            ]
        )
    else:
        emit(table([(k.kind, k.key, k.takes.__name__, k.asked_by, k.doc) for k in KNOBS]))


def _summary(doc: str) -> str:
    """The first sentence of the first paragraph, on one line, without the pass's own name."""
    text = " ".join(doc.strip().partition("\n\n")[0].split())
    _, named, rest = text.partition(": ")
    text = rest if named else text
    return text.partition(". ")[0].rstrip(".")
