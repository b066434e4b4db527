"""`tilecc opt`: run named passes on IR text."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tilecc.cli.console import emit, say


def opt_command(
    file: Annotated[Path, typer.Argument(help="IR text: graph or tiles.", show_default=False)],
    passes: Annotated[
        str, typer.Option("-p", "--passes", help="Passes to run, in order: a,b,c (`tilecc passes`).")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for the result [default: stdout].")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="GPU architecture, for a graph; tiles know theirs.")
    ] = "sm_90a",
    max_context: Annotated[
        int, typer.Option("--max-context", min=1, help="Largest context in positions, for a graph.")
    ] = 1024,
    max_seqs: Annotated[
        int, typer.Option("--max-seqs", min=1, help="Sequences that have a KV cache, for a graph.")
    ] = 1,
    ranks: Annotated[int, typer.Option("--tp", min=1, help="Ranks that `shard` cuts for.")] = 1,
    schedule: Annotated[
        Path | None, typer.Option("--schedule", metavar="FILE", help="The user's requests to the passes.")
    ] = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", metavar="DIR", help="Write the IR before and after each pass.")
    ] = None,
) -> None:
    """Read IR text, run passes on it one after the other, and print the IR that results.

    A pass that ran before may run again; what later passes had filled in is then stale, and the text says so
    in its field `passes`.
    """
    from tilecc.diag import error
    from tilecc.diag.model import nearest
    from tilecc.emit.dump import Dump
    from tilecc.ir.read import read_ir, reading
    from tilecc.ir.tile import TileGraph
    from tilecc.passes.context import PassContext
    from tilecc.passes.pipeline import PASSES, run_pass
    from tilecc.passes.schedule_file import load_schedule
    from tilecc.target import find_target

    known = [one.__name__ for one in PASSES]
    names = [name.strip() for name in passes.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"there is no pass `{unknown[0]}`" if unknown else "no pass was named"
        raise error(
            "TC0703",
            what,
            note=f"passes: {', '.join(known)}",
            help=nearest(unknown[0], known) if unknown else "name passes: -p edges,order",
        )
    machine = find_target(target)
    ir = read_ir(file)
    if isinstance(ir, TileGraph):
        machine = find_target(ir.target)
        max_context, max_seqs = ir.max_context, ir.max_seqs
    asked = (
        load_schedule(schedule, machine, ranks=ranks, max_context=max_context, max_seqs=max_seqs)
        if schedule is not None
        else None
    )
    ctx = PassContext(machine, max_context, max_seqs, ranks, asked)
    watch = Dump(dump) if dump is not None else None
    with reading(file, file.read_text(encoding="utf-8"), "a pass"), ctx.schedule_first():
        for name in names:
            ir = run_pass(name, ir, ctx, watch)
        ctx.settle(ir.ops if isinstance(ir, TileGraph) else (), whole=False)
        text = ir.to_text()
    say(f"ran {', '.join(names)}")
    if output is None:
        emit(text, end="")
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, output)
    except OSError as reason:
        why = reason.strerror or str(reason)
        raise error(
            "TC0703", f"`{output}` cannot be written", note=why, help="choose another -o FILE"
        ) from None
