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
    from tilecc.diag import TileccError, to_json
    from tilecc.ir.program import Program
    from tilecc.ir.read import read_ir, reading
    from tilecc.package import Manifest
    from tilecc.target import find_target

    if program.is_dir():
        Manifest.load(program)
        path = program / FILES["program"]
        package_text(program, path)  # the error of a package that lacks it
    else:
        path = program
    parsed = read_ir(path, (Program,))
    assert isinstance(parsed, Program)
    machine = find_target(target or parsed.target)
    text = path.read_text(encoding="utf-8")
    with status(f"checking {parsed.name}"), reading(path, text, "the checker"):
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
