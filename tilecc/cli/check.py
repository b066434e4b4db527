"""`tilecc check`: deadlocks, races and laps of a program, before anything is emitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, say, status


def check_command(
    program: Annotated[
        Path, typer.Argument(help="A package, or a Program as text (ir/20-program.txt).", show_default=False)
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", help="Limits of this machine [default: the program's].", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for deadlocks, races and counters that lap in a program, and for limits of its target exceeded.

    All violations are reported, each with the source lines of the ops it is about. Exit status 1 if there
    is one.
    """
    from tilecc.check import check
    from tilecc.cli.inspect import FILES, package_text
    from tilecc.diag import TileccError, error, to_json
    from tilecc.ir.program import Program
    from tilecc.ir.program_rules import PROGRAM_RULES
    from tilecc.ir.verify import require
    from tilecc.package import Manifest
    from tilecc.target import find_target

    if program.is_dir():
        Manifest.load(program)
        path = program / FILES["program"]
        text = package_text(program, path)
    else:
        path = program
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise error("TC0703", f"`{path}` cannot be read", note=str(reason)) from None
    parsed = require(Program.from_text(text, str(path)), PROGRAM_RULES)
    machine = find_target(target or parsed.target)
    with status(f"checking {parsed.name}"):
        report = check(parsed, machine)
    if json:
        emit_json(
            {
                "program": report.program,
                "target": machine.name,
                "assignments": [str(values) for values in report.assignments],
                "violations": [to_json(d) for d in report.diagnostics],
            }
        )
        if report.diagnostics:
            raise typer.Exit(1)
        return
    if report.diagnostics:
        raise TileccError(list(report.diagnostics))
    emit(f"{parsed.name}: no deadlock, no race, no lap")
    for values in report.assignments:
        say(f"  checked with {values}")
