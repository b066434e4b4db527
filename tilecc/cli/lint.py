"""`tilecc lint`: the rules for emitted text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, say
from tilecc.diag import error, render_all, to_json


def lint_command(
    given: Annotated[
        Path,
        typer.Argument(
            metavar="PACKAGE_OR_FILE", help="Package, or a file of kernel text.", show_default=False
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the text of a package (or one file) against the rules that emitted kernels follow.

    The same check runs before a build of a package whose text was edited. Exits with 1 if a rule is broken.
    """
    from tilecc.build.lint import lint_package, lint_texts
    from tilecc.package import Manifest, text_digest

    edited = None
    if given.is_file() and given.suffix in (".cu", ".cuh", ".h"):
        found = lint_texts({given: given.read_text(encoding="utf-8", errors="replace")})
    else:
        manifest = Manifest.load(given)
        try:
            edited = text_digest(given, manifest.source) != manifest.text_sha256
            found = lint_package(given, manifest.source)
        except OSError as reason:
            raise error("TC0603", f"the package lacks `{reason.filename}`", help="compile it again") from None
    if json:
        emit_json({"edited": edited, "diagnostics": [to_json(d) for d in found]})
    elif found:
        emit(render_all(found, show_all=True), end="")
    if edited:
        say("the text was edited since it was compiled")
    say(f"{len(found)} violations" if found else "no rule is broken")
    if found:
        raise typer.Exit(1)
