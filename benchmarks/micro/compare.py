"""What the passes decide with planning figures, and with measured costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import FUSE, PROGRAM, SHARD, TILE_PASSES
from tilecc.target import Target, find_target
from tilecc.trace.capture import trace_model


def decisions(
    graph: Any, target: Target, max_context: int
) -> tuple[dict[tuple[str, str], tuple[str, str]], str]:
    """(choice and reason of every decision, by pass and subject; text of the program)."""
    ctx = PassContext(target, max_context, 1)
    tiles = FUSE(SHARD(graph, ctx), ctx)
    for tile_pass in TILE_PASSES:
        tiles = tile_pass(tiles, ctx)
    program = PROGRAM(tiles, ctx)
    return {(d.pass_name, d.subject): (d.choice, d.reason) for d in ctx.decisions}, program.to_text()


def compare(model: Path, target: str = "sm_90a", max_context: int = 1024) -> str:
    """A report: costs that differ, choices that differ, and whether the Program does."""
    planned, measured = find_target(target, planned=True), find_target(target)
    graph = trace_model(model, None)
    old, old_text = decisions(graph, planned, max_context)
    new, new_text = decisions(graph, measured, max_context)
    lines = [f"{model.name} for {target}", "", "costs:"]
    for before, after in zip(planned.costs, measured.costs, strict=True):
        change = f"{before.text()} -> {after.text()}" if after.measured else f"{before.text()}, not measured"
        lines.append(f"  {after.name:18} {change:24} {after.source}")
    choices = [k for k in new if k not in old or new[k][0] != old[k][0]]
    reasons = [k for k in new if k in old and new[k][0] == old[k][0] and new[k][1] != old[k][1]]
    lines += ["", f"choices that differ: {len(choices)}"]
    lines += [f"  [{k[0]}] {k[1]}: {old.get(k, ('none',))[0]} -> {new[k][0]}" for k in choices]
    lines += [f"reasons that name another cost: {len(reasons)}"]
    lines += ["the Program " + ("is the same" if old_text == new_text else "differs")]
    return "\n".join(lines) + "\n"
