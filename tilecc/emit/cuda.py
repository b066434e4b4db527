"""Program -> CUDA text: the Jinja skeleton with constants and op lists, tile bodies from TIRx, then
clang-format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from tilecc.emit.bodies import COMMON_BODIES, lower_bodies
from tilecc.emit.format import clang_format
from tilecc.emit.ops import OpContext, constant, op_context
from tilecc.ir.program import Program, RegionSpec
from tilecc.ir.rows import routing_bytes
from tilecc.passes.tile import MAX_GRID

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

ROLE_ENUM = {"loader": "kLoader", "store": "kStore", "activations": "kActivations", "consumer": "kConsumer"}


@dataclass(frozen=True)
class RoleContext:
    """One branch of the kernel's role switch: warps [first, end)."""

    name: str
    enum: str
    first: int
    end: int


@dataclass(frozen=True)
class PrefetchContext:
    """What the loader of class `name` asks for: (class, rows of the op table further on, stages)."""

    name: str
    ops: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class KernelContext:
    """Everything that templates/kernel/step.cu.j2 reads."""

    program: Program
    model_file: str
    symbol: str
    max_grid: int
    smem: int
    bodies: str
    config: tuple[tuple[str, int], ...]
    ops: tuple[OpContext, ...]
    ids: dict[str, int]
    roles: tuple[RoleContext, ...]
    prefetches: tuple[PrefetchContext, ...]
    commit_counter: int
    words: tuple[RegionSpec, ...]


def emit_cuda(program: Program, model_file: str) -> str:
    """The formatted text of the kernel. Deterministic."""
    ops = tuple(op_context(op, program) for op in program.classes)
    specs = {body.name: body for body in (*COMMON_BODIES, *(b for op in ops for b in op.bodies))}
    warps = {role.name: role.warps for role in program.roles}
    weights, activations, exchange = (program.ring(n) for n in ("weights", "activations", "exchange"))
    context = KernelContext(
        program=program,
        model_file=model_file,
        symbol=symbol(program),
        max_grid=MAX_GRID,
        smem=smem_bytes(program),
        bodies=lower_bodies(list(specs.values())),
        config=(
            ("kConsumerWarps", warps["consumer"]), ("kActWarps", warps["activations"]),
            ("kWStages", weights.slots), ("kWStageBytes", weights.slot_bytes),
            ("kASlots", activations.slots), ("kASlotBytes", activations.slot_bytes),
            ("kXSlots", exchange.slots), ("kXSlotBytes", exchange.slot_bytes),
        ),
        ops=ops,
        ids={op.name: i for i, op in enumerate(program.classes)},
        roles=tuple(
            RoleContext(r.name, ROLE_ENUM[r.name], r.first_warp, r.first_warp + r.warps)
            for r in program.roles
        ),
        prefetches=prefetches(program),
        commit_counter=next(op.counter for op in program.classes if op.kind == "commit"),
        words=tuple(r for r in program.workspace if r.init == "poison"),
    )  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES / "kernel"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["constant"] = constant
    text = environment.get_template("step.cu.j2").render(
        {f: getattr(context, f) for f in context.__dataclass_fields__}
    )
    return clang_format(text)


def prefetches(program: Program) -> tuple[PrefetchContext, ...]:
    """The prefetches of all classes, in the order of the op table."""
    made = []
    for section in (program.prologue, program.body, program.epilogue):
        for at, name in enumerate(section):
            found = program.op_class(name).prefetch
            ops = tuple((p.op, section.index(p.op) - at, p.stages) for p in found)
            if ops:
                made.append(PrefetchContext(name, ops))
    return tuple(made)


def symbol(program: Program) -> str:
    """Symbol of the kernel."""
    return f"tilecc_{program.name}"


def smem_bytes(program: Program) -> int:
    """Dynamic shared memory of one CTA: the layout of `Smem` in op_common.cuh, which the emitted kernel
    asserts."""
    weights, activations, exchange = (program.ring(n) for n in ("weights", "activations", "exchange"))
    barriers = -(-8 * (2 * (weights.slots + activations.slots + exchange.slots) + 2) // 128) * 128
    route = routing_bytes(program.max_rows)
    return barriers + route + sum(r.slots * r.slot_bytes for r in (weights, activations, exchange))
