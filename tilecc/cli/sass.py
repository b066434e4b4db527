"""`tilecc inspect --sass-stats`: the machine code of the main loops as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tilecc.cli.console import emit, emit_json, status, table
from tilecc.diag import error
from tilecc.diag.model import nearest
from tilecc.target import find_target

if TYPE_CHECKING:
    from tilecc.build.sass_stats import LoopStats, SassReport

COLUMNS = (
    "integer", "imad", "conversion", "fp32", "half2", "special", "tensor", "shared", "global", "move",
    "barrier", "control", "uniform", "other",
)  # fmt: skip
RESOURCES = ("issue slots", "integer pipe", "FMA pipe", "shared memory", "tensor pipe", "stalls")

NOTES = """\
Counted is one warp in one iteration of the steady state: a full chunk, every wait satisfied at once.
integer: ALU pipe (IADD3, LOP3, SHF, PRMT, LEA, comparisons). imad: FMA-heavy pipe on Hopper, also where IMAD
only moves or shifts. stalls: sum of the stall clocks of the control codes, decoded from the encoding; what
scoreboards wait for comes on top. share: what each resource allows, as if all others were free; above 100 %
it leaves room; the stalls, which more warps would fill, are not among the bounds. The sizes of the
instruction caches are planning figures, measured on Volta: none is published for this machine."""


def show_sass(package: Path, targets: Sequence[str], listing: str | None, json: bool) -> None:
    """Print the statistics of each target, or the steady path of one op's main loop."""
    from tilecc.build.sass_stats import listing_lines, sass_stats

    reports = []
    for target in targets:
        find_target(target)
        with status(f"reading the machine code for {target}"):
            report, code = sass_stats(package, target)
        reports.append(report)
        if listing is not None:
            known = [loop.op for loop in report.loops]
            if listing not in known:
                raise error(
                    "TC0703",
                    f"`--listing {listing}` names no op with a main loop",
                    note="known: " + ", ".join(dict.fromkeys(known)),
                    help=nearest(listing, known),
                )
            for line in listing_lines(package, report, code, listing):
                emit(line)
    if json:
        emit_json(msgspec.to_builtins(reports))
    elif listing is None:
        emit("\n\n".join(render(report) for report in reports))


def render(report: SassReport) -> str:
    """The report of one target as text; equal code gives equal text."""
    rates, sms = find_target(report.target).sm, find_target(report.target).sms
    k = report.kernel
    rings = ", ".join(f"{name} {size:,} B" for name, size in report.ring_bytes.items())
    roles = ", ".join(f"{name} {size:,} B" for name, size in report.role_bytes.items())
    weighing = [loop for loop in report.loops if loop.weights]
    where = ", ".join(f"{name} {count}" for name, count in report.local_accesses.items())
    local = [f"  instructions on the stack: {where}"] if where else []
    parts = [
        f"{k.name} for {report.target}, nvcc {report.compiler}",
        f"  {k.registers} registers, {k.stack_bytes} B stack, {k.spill_store_bytes} + {k.spill_load_bytes} B"
        f" spilled, {k.static_smem_bytes:,} B static, {report.dynamic_smem_bytes:,} B dynamic shared memory",
        f"  rings: {rings}",
        f"  code {report.code_bytes:,} B: {roles}",
        f"  instruction cache: {rates.l0_icache // 1024} KiB per scheduler,"
        f" {rates.l1_icache // 1024} KiB behind it",
        *local,
        "",
        "main loops, one warp and iteration",
        table([_LOOP_HEAD, *(_loop_row(loop) for loop in report.loops)]),
        "",
        "lane instructions per weight",
        table(_pipe_rows(weighing)),
        "",
        f"modelled share of {rates.hbm_nominal / 1e12:.1f} TB/s:"
        f" {rates.hbm_bytes(sms):.1f} B per clock and SM at {rates.clock / 1e9:.3f} GHz",
        table([("op", "share", "bound", *RESOURCES), *(_share_row(loop) for loop in weighing)]),
        "",
        NOTES,
    ]  # fmt: skip
    return "\n".join(parts)


_LOOP_HEAD = (
    "op", "format", "rows x cols", "instructions", "weights", "stalls", "scoreboard waits", "mbarrier waits",
    "shared passes", "path bytes", "loop bytes",
)  # fmt: skip


def _loop_row(loop: LoopStats) -> tuple[str, ...]:
    shape = " x ".join(str(n) for n in loop.shape) or "-"
    waits = f"{loop.waits}" + (
        f" (+{loop.unknown_inner_loops} inner loops)" if loop.unknown_inner_loops else ""
    )
    numbers = (loop.stalls, loop.scoreboard_waits)
    return (
        loop.op, loop.format, shape, str(loop.instructions), str(loop.weights or "-"), *map(str, numbers),
        waits, str(loop.wavefronts), str(loop.path_bytes), str(loop.loop_bytes),
    )  # fmt: skip


def _pipe_rows(loops: Sequence[LoopStats]) -> list[tuple[str, ...]]:
    used = [name for name in COLUMNS if any(name in loop.per_weight for loop in loops)]
    rows = [("op", "format", "all", "integer and logic", *used)]
    for loop in loops:
        both = (f"{loop.all_per_weight:.3f}", f"{loop.integer_per_weight:.3f}")
        rows.append((loop.op, loop.format, *both, *(f"{loop.per_weight.get(n, 0):.3f}" for n in used)))
    return rows


def _share_row(loop: LoopStats) -> tuple[str, ...]:
    bound = loop.bound()
    shares = {b.resource: f"{100 * b.share:.0f} %" for b in loop.bounds}
    first = (f"{100 * min(1.0, bound.share):.0f} %", bound.resource) if bound else ("-", "-")
    return (loop.op, *first, *(shares.get(name, "-") for name in RESOURCES))
