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
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Print every choice: alternatives, costs, reason.")
    ] = False,
    op: Annotated[
        str | None, typer.Option("--op", help="With --decisions: those about this op.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the summary of a package, print one of its parts as text, or count its machine code."""
    from tilecc.cli.logits import check_choice
    from tilecc.package import Manifest

    manifest = Manifest.load(package)
    if op is not None and not decisions:
        raise error("TC0703", "`--op` goes with `--decisions`", help="add --decisions")
    if decisions:
        found = _about(manifest.decisions, op) if op is not None else manifest.decisions
        if json:
            emit_json(found)
        else:
            for d in found:
                emit(_decision(d))
        return
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


def _about(decisions: list[dict[str, Any]], op: str) -> list[dict[str, Any]]:
    """The decisions about an op (its label, or the name of one instance). Raises TileccError TC0703."""
    from tilecc.diag.model import nearest

    label = op.rpartition(".")[2]
    found = [d for d in decisions if label in d["subject"].split()]
    if not found:
        known = sorted({word for d in decisions for word in d["subject"].split() if word != "->"})
        raise error(
            "TC0703",
            f"no decision is about an op `{op}`",
            note=f"decisions are about: {', '.join(known)}",
            help=nearest(label, known),
        )
    return found


def _decision(d: dict[str, Any]) -> str:
    """A decision with its alternatives, one per line, the cheapest first."""
    unit = d.get("unit", "")
    head = f"[{d['pass_name']}] {d['subject']}: {d['choice']}{_cost(d.get('cost'), unit)}"
    lines = [head, f"    {d['reason']}"]
    if d.get("pinned"):
        lines.append(f"    schedule: {d['pinned']}")
    for other in d.get("alternatives", ()):
        why = f"not legal: {other['why_not']}" if other["why_not"] else ""
        lines.append(f"    or {other['choice']}{_cost(other['cost'], unit)}{why and '  ' + why}")
    return "\n".join(lines)


def _cost(cost: float | None, unit: str) -> str:
    from tilecc.target import show

    return "" if cost is None else f"  {show(cost, unit)}"


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
