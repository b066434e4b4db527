"""`tilecc compile`: model file to package."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tilecc.cli.console import emit, emit_json, say, status
from tilecc.cli.packages import config_places, parse_numbers, read_config


def compile_command(
    model: Annotated[
        Path, typer.Argument(help="Python file that defines `decode_step`.", show_default=False)
    ],
    target: Annotated[
        str | None, typer.Option("--target", help="GPU architecture, see `tilecc targets` (required).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Package directory [default: build/MODEL-TARGET].", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The model's config.json.", show_default=False)
    ] = None,
    max_context: Annotated[int, typer.Option("--max-context", help="Largest context in positions.")] = 1024,
    max_seqs: Annotated[int, typer.Option("--max-seqs", help="Sequences that have a KV cache.")] = 1,
    rows: Annotated[int, typer.Option("--rows", help="Rows of a step: 8, 16, 32 or 64.")] = 8,
    grid: Annotated[
        int | None,
        typer.Option("--grid", help="CTAs to launch by default [default: one per SM].", show_default=False),
    ] = None,
    ranks: Annotated[int, typer.Option("--tp", help="Ranks of the tensor-parallel group.")] = 1,
    kv: Annotated[
        str, typer.Option("--kv", help="KV cache: bf16, or fp8 (e4m3 with scale 1, half the bytes).")
    ] = "bf16",
    taps: Annotated[
        str | None,
        typer.Option(
            "--taps",
            metavar="LAYERS",
            help="Layers whose outputs the step returns too, for a draft: 0,15,31.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option(
            "--schedule",
            metavar="FILE",
            help="Python file that pins or bounds choices of the passes (schedules/).",
            show_default=False,
        ),
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Also build the CUDA library with nvcc.")] = False,
    build_for: Annotated[
        list[str] | None,
        typer.Option("--build-for", metavar="TARGET", help="Build for this target too (repeatable)."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="PHASE",
            help="Stop after trace, a pass (`tilecc passes`), tiles, program or cuda; print its text, write"
            " nothing.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Go on from this IR text (of --to, --dump or a package) instead of tracing the model.",
            show_default=False,
        ),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump",
            metavar="DIR",
            help="Write the IR before and after each pass, numbered, as the passes run.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile a model file into a package: CUDA source, manifest, IR texts, report.

    Prints the package directory. The package appears whole or not at all.
    """
    from tilecc.diag import error
    from tilecc.diag.model import nearest
    from tilecc.target import TARGETS, find_target

    if target is None:
        raise error(
            "TC0704",
            "no target given",
            note="available: " + ", ".join(f"{t.name} ({t.title})" for t in TARGETS.values()),
            help="say which GPU the kernel is for: --target sm_90a",
        )
    for name in (target, *(build_for or ())):
        find_target(name)
    settings = read_config(config) if config is not None else None
    tapped = parse_numbers("--taps", taps) if taps is not None else ()

    from tilecc.emit.compiler import PHASES, compile_model

    if to is not None and to not in PHASES:
        raise error(
            "TC0703", f"unknown phase `{to}`", note=f"phases: {', '.join(PHASES)}", help=nearest(to, PHASES)
        )
    out = output if output is not None else Path("build") / f"{model.stem}-{target}"
    places = config_places(config) if config is not None else nullcontext()
    with places, status(f"compiling {model.name} for {target}"):
        result = compile_model(
            model,
            target=target,
            out=out,
            config=settings,
            max_context=max_context,
            max_seqs=max_seqs,
            max_rows=rows,
            grid=grid,
            ranks=ranks,
            stop_after=to,
            kv=kv,
            schedule=schedule,
            taps=tapped,
            resume=resume,
            dump=dump,
        )
    timing = ", ".join(f"{phase} {s:.1f} s" for phase, s in result.seconds.items())
    if result.manifest is None:
        name, text = list(result.texts.items())[-1]
        if json:
            emit_json({"phase": to, "seconds": result.seconds, "name": name, "text": text})
        else:
            emit(text, end="" if text.endswith("\n") else "\n")
        say(f"stopped after {to}: {timing}")
        return
    manifest = result.manifest
    summary = {
        "package": str(result.package_dir),
        "source": str(result.package_dir / manifest.source),
        "target": manifest.target,
        "kernel": manifest.kernel,
        "threads": manifest.threads,
        "smem_bytes": manifest.smem_bytes,
        "image_bytes": manifest.image_bytes,
        "seconds": result.seconds,
    }
    say(f"compiled in {sum(result.seconds.values()):.1f} s: {timing}")
    say(f"  kernel   {manifest.kernel}: {manifest.threads} threads, {manifest.smem_bytes:,} B smem per CTA")
    cache = f"{manifest.kv_bytes:,} B KV cache in {manifest.kv_format}"
    say(f"  weights  {manifest.image_bytes:,} B image, {cache}")
    say(f"  source   {summary['source']}")
    say(f"  report   {result.package_dir / 'report.txt'}")
    if build or build_for:
        summary["build"] = _build(result.package_dir, list(dict.fromkeys([target, *(build_for or ())])))
    if json:
        emit_json(summary)
    else:
        emit(str(result.package_dir))


def _build(package: Path, targets: list[str]) -> dict[str, object]:
    """Run nvcc on a written package; the package stays usable on the emulator if this fails."""
    import msgspec

    from tilecc.build.nvcc import build_cuda

    with status(f"building for {', '.join(targets)} with nvcc"):
        report = build_cuda(package, targets)
    for kernel in report.kernels:
        say(
            f"  {kernel.target}   {kernel.registers} registers, {kernel.stack_bytes} B stack,"
            f" {kernel.spill_store_bytes} + {kernel.spill_load_bytes} B spilled"
        )
    for problem in report.problems():
        say(f"warning: {problem}")
    say(f"  library  {report.library} ({'from the cache' if report.cached else f'{report.seconds:.1f} s'})")
    found: dict[str, object] = msgspec.to_builtins(report)
    return found
