"""`tilecc simulate`: the modelled time of one decode step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilecc.cli.console import emit, emit_json, say, status
from tilecc.cli.packages import read_config

if TYPE_CHECKING:
    from tilecc.ir.tile import TileGraph


def simulate_command(
    program: Annotated[Path, typer.Argument(help="A package, or a model file.", show_default=False)],
    target: Annotated[
        str, typer.Option("--target", help="GPU architecture of a model file; a package has its own.")
    ] = "sm_90a",
    config: Annotated[
        Path | None, typer.Option("--config", help="The model's config.json.", show_default=False)
    ] = None,
    ranks: Annotated[int, typer.Option("--tp", help="Ranks of a model file.")] = 1,
    rows: Annotated[int, typer.Option("--rows", help="Rows of the step, 1 to 8.")] = 8,
    active: Annotated[
        float | None,
        typer.Option(
            "--active",
            help="Distinct experts per layer [default: of independent routing].",
            show_default=False,
        ),
    ] = None,
    context: Annotated[int, typer.Option("--context", help="Positions in the KV cache.")] = 4096,
    grid: Annotated[
        int | None, typer.Option("--grid", help="CTAs [default: one per SM].", show_default=False)
    ] = None,
    loops: Annotated[
        str,
        typer.Option("--loops", help="Main loops: sass (by counts), ideal, exposed (with all waits)."),
    ] = "sass",
    l2_prefetch: Annotated[
        bool, typer.Option("--l2-prefetch/--no-l2-prefetch", help="The L2 prefetches of the program.")
    ] = True,
    across_ops: Annotated[
        bool, typer.Option("--across-ops/--no-across-ops", help="The ring runs across operator boundaries.")
    ] = True,
    timeline: Annotated[
        Path | None,
        typer.Option("--timeline", help="Write a Perfetto trace of a few SMs.", show_default=False),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Also the step without each part of the schedule.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Model the time of one decode step on the target: per op, HBM idle by cause, the chain of a layer.

    Costs come from the target table, each with its source (--json prints them). Nothing here was measured.
    """
    from tilecc.diag import error
    from tilecc.sim.costs import costs_of
    from tilecc.sim.loops import LOOPS
    from tilecc.sim.lower import Scenario, distinct_experts, lower
    from tilecc.sim.machine import machine_of, simulate
    from tilecc.sim.report import figures, text
    from tilecc.target import find_target

    for name, value, low, high in (("--rows", rows, 1, 8), ("--context", context, 1, 1 << 20)):
        if not low <= value <= high:
            raise error("TC0703", f"`{name} {value}` is outside {low} to {high}")
    if loops not in LOOPS:
        raise error("TC0703", f"unknown `--loops {loops}`", note=", ".join(LOOPS))
    graph = _tiles(program, target, config, ranks, context)
    machine_table = find_target(graph.target)
    scenario = Scenario(
        rows,
        active if active is not None else distinct_experts(graph, rows),
        context,
        grid or machine_table.sms,
        loops,
    )
    machine = dataclasses.replace(machine_of(graph), across_ops=across_ops, l2_prefetch=l2_prefetch)
    costs = costs_of(machine_table)
    ops = lower(graph, scenario)
    sample = tuple(dict.fromkeys((0, scenario.grid // 2, scenario.grid - 1)))
    with status(f"simulating {graph.name}"):
        result = simulate(ops, machine, costs, scenario, sample, spans=timeline is not None)
    data = figures(graph.name, ops, machine, costs, scenario, result)
    if ablate:
        from tilecc.sim.ablate import ablations, table

        with status("without each part"):
            parts = ablations(ops, machine, costs, scenario)
        data["ablations"] = [dataclasses.asdict(a) for a in parts]
    if timeline is not None:
        from tilecc.sim.timeline import write_timeline

        write_timeline(timeline, graph.name, ops, result)
        say(f"timeline {timeline}: open it at ui.perfetto.dev")
    if json:
        emit_json(data)
    else:
        emit(text(data))
        if ablate:
            emit(table(parts))


def _tiles(program: Path, target: str, config: Path | None, ranks: int, context: int) -> TileGraph:
    """The TileGraph of a package, or of a model file compiled as far as its tiles."""
    from tilecc.ir.tile import TileGraph

    if program.is_dir():
        from tilecc.cli.inspect import FILES, package_text
        from tilecc.package import Manifest

        Manifest.load(program)
        path = program / FILES["tiles"]
        return TileGraph.from_text(package_text(program, path), str(path))
    from tilecc.emit.compiler import compile_model

    result = compile_model(
        program,
        target=target,
        out=Path("none"),
        config=read_config(config) if config is not None else None,
        ranks=ranks,
        max_context=context,
        stop_after="tiles",
    )
    return TileGraph.from_text(result.texts["10-tiles.txt"])
