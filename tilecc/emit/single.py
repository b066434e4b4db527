"""A package of one op: the real passes and the real emitter on a step that is one main loop and its commit.

For tests and benchmarks of a main loop. Nothing produces the op's input: the host writes it into the
workspace (`tilecc.runtime.bare`; `tilecc.runtime.fragments` has the order), and reads the result there. A
step runs the op once per layer, each layer with weights of its own, then the commit; several layers are
therefore rotating weight buffers.

* project: reads `hidden`; leaves `partials`, f32 [splits][fragments of rows]. Matrix: plain [rows, cols].
* gate_up: reads `y`, `sum_sq`; leaves `hidden`, bf16 fragments of rows / 2. Matrix: gate_up [rows, cols].
* router: reads `y`, `sum_sq`; leaves `router_logits`, f32 [max_rows][rows up to a multiple of 32]. Matrix:
  plain.
* head: reads `y`, `sum_sq`; leaves `argmax` and the caller's logits, f32 [steps][max_rows][rows]. Matrix:
  plain.
* experts: reads `y`, `sum_sq`, `router_logits`; leaves `routes`, `expert_hidden`, bf16 [active][fragments of
  rows / 2], and `partials`, f32 [splits][fragments of cols]. Matrices: gate_up [rows, cols] and plain
  [cols, rows / 2] per expert.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tilecc.diag import InternalError
from tilecc.emit.compiler import package_program
from tilecc.emit.cuda import emit_cuda
from tilecc.ir.graph import AttrValue
from tilecc.ir.loc import Loc
from tilecc.ir.program import Program
from tilecc.ir.program_rules import PROGRAM_RULES
from tilecc.ir.rows import BASE_ROWS
from tilecc.ir.tile import TileGraph, TileOp, Weight
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import expect
from tilecc.package import Manifest
from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import PROGRAM, TILE_PASSES
from tilecc.passes.schedule import Schedule
from tilecc.passes.tile import tile
from tilecc.target import find_target

KINDS = ("project", "gate_up", "router", "head", "experts")

# The host writes the inputs: the rule that wants a writer for every buffer does not hold here, all others do.
_RULES = tuple(rule for rule in TILE_RULES if rule.name != "reads-have-writers")


@dataclasses.dataclass(frozen=True)
class SingleOp:
    """What the one op is. `rows` and `cols` are those of the weight matrix: both halves of a gate_up matrix,
    the up matrix [2 width, hidden] of experts. `experts` and `k` (routed per row) are of kind "experts"."""

    kind: str
    format: str
    rows: int
    cols: int
    layers: int = 1
    experts: int = 0
    k: int = 0
    eps: float = 1e-5
    name: str = "single"
    max_rows: int = BASE_ROWS
    target: str = "sm_90a"


@dataclasses.dataclass(frozen=True)
class SinglePackage:
    """The package directory with its manifest and Program."""

    directory: Path
    manifest: Manifest
    program: Program


def one_op_package(
    out: Path,
    op: SingleOp,
    grid: int | None = None,
    like: SingleOp | None = None,
    schedule: Schedule | None = None,
) -> SinglePackage:
    """Compile one op into the package directory `out`, which appears whole or not at all.

    `like` is an op of the same kind with more rows: the loop gets the tile shape that the passes chose for
    that one, so that a few rows run the very loop of a large matrix. It counts where the columns are equal.
    `schedule` pins choices of the passes.

    Raises TileccError TC0222, TC0223 for sizes that the passes refuse, TC0701 for an unknown target.
    """
    ctx = PassContext(
        find_target(op.target), max_context=16, max_seqs=op.max_rows, max_rows=op.max_rows, schedule=schedule
    )
    shapes = one_op_tiles(like, ctx) if like is not None else None
    return tiles_package(out, tiled(_graph(op, ctx), ctx, shapes), ctx, grid)


def graph_package(out: Path, graph: TileGraph, ctx: PassContext, grid: int | None = None) -> SinglePackage:
    """The same for a TileGraph whose tiles are not chosen yet: any ops, and a commit as the last one."""
    return tiles_package(out, tiled(graph, ctx), ctx, grid)


def tiles_package(out: Path, tiles: TileGraph, ctx: PassContext, grid: int | None = None) -> SinglePackage:
    """The same for a finished TileGraph."""
    program = expect(PROGRAM(tiles, ctx), PROGRAM_RULES, "program")
    texts = {
        "10-tiles.txt": tiles.to_text(),
        "20-program.txt": program.to_text(),
        "step.cu": emit_cuda(program, "one op"),
    }
    manifest = package_program(program, ctx, texts, out, model_file="one op", config={}, grid=grid)
    return SinglePackage(out, manifest, program)


def one_op_tiles(op: SingleOp, ctx: PassContext) -> TileGraph:
    """The verified TileGraph of one op, all fields filled."""
    return tiled(_graph(op, ctx), ctx)


def tiled(graph: TileGraph, ctx: PassContext, like: TileGraph | None = None) -> TileGraph:
    """All tile passes; the commit reads what the op before it wrote. `like`: as of `one_op_package`."""
    for tile_pass in TILE_PASSES:
        graph = tile_pass(graph, ctx)
        if tile_pass is tile:
            # The step ends when the result is there: otherwise the next launch would not wait for it.
            last = graph.ops[-2].writes
            commit = graph.ops[-1]
            commit = dataclasses.replace(commit, reads=(*commit.reads, *last))
            shapes = {op.kind: op.tiles for op in like.ops} if like is not None else {}
            ops = (_shaped(op, shapes.get(op.kind, {})) for op in graph.ops[:-1])
            graph = dataclasses.replace(graph, ops=(*ops, commit))
    return expect(graph, _RULES, "tiles")


def _shaped(op: TileOp, other: dict[str, int]) -> TileOp:
    """The op with the tile shape of another one whose matrix has as many columns."""
    mine = op.tiles
    if "chunk" not in mine or other.get("blocks") != mine["blocks"]:
        return op
    if mine["splits"] != other["splits"]:
        raise InternalError(f"{op.name}: {mine['splits']} K splits, like one of {other['splits']}")
    tasks = -(-mine["tiles"] // other["group"]) * mine["tasks"] // -(-mine["tiles"] // mine["group"])
    shape = {name: other[name] for name in ("group", "chunk", "slots")}
    return dataclasses.replace(op, tiles={**mine, **shape, "tasks": tasks})


def _graph(op: SingleOp, ctx: PassContext) -> TileGraph:
    if op.kind not in KINDS:
        raise InternalError(f"a single op of kind {op.kind!r}; known: {', '.join(KINDS)}")
    ops: list[TileOp] = []
    weights: list[Weight] = []
    normed: dict[str, AttrValue] = {"source": "norm", "eps": op.eps}
    if op.kind == "experts":
        weights.append(Weight("bias", "f32", "f32", "-", ("bias",), 1, op.experts))
    for layer in range(op.layers):

        def add(kind: str, attrs: dict[str, AttrValue], uses: dict[str, str], layer: int = layer) -> None:
            ops.append(
                TileOp(
                    f"layers.{layer}.{kind}", kind, kind, layer, (kind,), attrs, uses, loc=Loc("one op", 1)
                )
            )

        def matrix(name: str, rule: str, rows: int, cols: int, experts: int = 0, layer: int = layer) -> str:
            full = f"layers.{layer}.{name}"
            part = f"{full}.{{e}}" if experts else full
            sources = (
                (f"{part}.gate.weight", f"{part}.up.weight") if rule == "gate_up" else (f"{part}.weight",)
            )
            weights.append(Weight(full, "matrix", op.format, rule, sources, rows, cols, experts))
            return full

        if op.kind == "project":
            add(
                "project",
                {"source": "fragment", "input": "hidden"},
                {"matrix": matrix("w", "plain", op.rows, op.cols)},
            )
        elif op.kind == "gate_up":
            uses = {"matrix": matrix("w", "gate_up", op.rows, op.cols)}
            add("gate_up", {**normed, "width": op.rows // 2}, uses)
        elif op.kind == "router":
            uses = {"matrix": matrix("w", "plain", op.rows, op.cols)}
            add("router", {**normed, "experts": op.rows}, uses)
        elif op.kind == "head":
            uses = {"matrix": matrix("w", "plain", op.rows, op.cols)}
            add("head", {**normed, "rows": op.rows}, uses)
        else:
            shape: dict[str, AttrValue] = {"experts": op.experts, "width": op.rows // 2, "k": op.k}
            route: dict[str, AttrValue] = {
                "k": op.k,
                "norm_topk": True,
                "scaling": 1.0,
                "experts": op.experts,
            }
            add("route", route, {"aux": "bias"})
            up = {"matrix": matrix("up", "gate_up", op.rows, op.cols, op.experts)}
            add("experts_up", {**normed, **shape}, up)
            down = {"matrix": matrix("down", "plain", op.cols, op.rows // 2, op.experts)}
            add("experts_down", {"source": "fragment", **shape}, down)
    ops.append(TileOp("commit", "commit", "commit", -1, ("commit",), loc=Loc("one op", 1)))
    return TileGraph(
        name=op.name, target=ctx.target.name, max_context=ctx.max_context, max_seqs=ctx.max_seqs,
        max_rows=ctx.max_rows,
        layers=op.layers, hidden=op.rows if op.kind == "project" else op.cols,
        vocab=op.rows if op.kind == "head" else 1, ops=tuple(ops), weights=tuple(weights),
    )  # fmt: skip
