"""`tilecc inspect`: what is in a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tilecc.cli.console import emit, emit_json, table
from tilecc.diag import error

VIEWS = {
    "cuda": "the emitted kernel",
    "graph": "the traced graph",
    "tiles": "the tile graph with hand-offs",
    "program": "the program",
    "decisions": "what the passes chose, and why",
}

FILES = {"graph": "ir/00-graph.txt", "tiles": "ir/10-tiles.txt", "program": "ir/20-program.txt"}


def inspect_command(
    package: Annotated[Path, typer.Argument(help="Package directory.", show_default=False)],
    view: Annotated[
        str | None, typer.Option("--as", help=f"Print one part: {', '.join(VIEWS)}.", show_default=False)
    ] = None,
    sass: Annotated[
        bool, typer.Option("--sass-stats", help="Count the machine code of the main loops (needs nvcc).")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Machine of --sass-stats; repeatable.", show_default=False),
    ] = None,
    listing: Annotated[
        str | None,
        typer.Option("--listing", help="With --sass-stats: print the loop of one op.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the summary of a package, print one of its parts as text, or count its machine code."""
    from tilecc.cli.logits import check_choice
    from tilecc.package import Manifest

    manifest = Manifest.load(package)
    if sass:
        from tilecc.cli.sass import show_sass

        show_sass(package, target or [manifest.target], listing, json)
        return
    if view is None:
        facts = _summary(package, manifest)
        if json:
            emit_json(facts)
        else:
            emit(table([(name, _text(value)) for name, value in facts.items() if value not in (None, [])]))
        return
    check_choice("--as", view, tuple(VIEWS))
    if view == "decisions":
        if json:
            emit_json(manifest.decisions)
        else:
            for d in manifest.decisions:
                emit(f"[{d['pass_name']}] {d['subject']}: {d['choice']}\n    {d['reason']}")
        return
    file = package / (FILES.get(view) or manifest.source)
    text = package_text(package, file)
    if json:
        emit_json({"file": str(file), "text": text})
    else:
        emit(text, end="" if text.endswith("\n") else "\n")


def package_text(package: Path, file: Path) -> str:
    """A text file of a package. Raises TileccError TC0603 if it is missing."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as reason:
        raise error(
            "TC0603",
            f"the package lacks `{file.relative_to(package)}`",
            note=reason.strerror or str(reason),
            help="compile the model again",
        ) from None


def _summary(package: Path, manifest: Any) -> dict[str, Any]:
    library = package / f"lib{manifest.name}.so"
    formats: dict[str, int] = {}
    for entry in manifest.image:
        formats[entry.format] = formats.get(entry.format, 0) + entry.nbytes
    return {
        "name": manifest.name,
        "model": manifest.model_file,
        "target": manifest.target,
        "compiled by": f"tilecc {manifest.tilecc_version}",
        "kernel": manifest.kernel,
        "threads": manifest.threads,
        "smem_bytes": manifest.smem_bytes,
        "grid": manifest.default_grid,
        "rows per step": manifest.max_rows,
        "context": manifest.max_context,
        "sequences": manifest.max_seqs,
        "vocabulary": manifest.vocab,
        "hidden": manifest.hidden,
        "image_bytes": manifest.image_bytes,
        "image_formats": {("plain" if k == "-" else k): v for k, v in sorted(formats.items())},
        "workspace_bytes": manifest.workspace_bytes,
        "kv_bytes": manifest.kv_bytes,
        "source": str(package / manifest.source),
        "library": str(library) if library.is_file() else None,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
