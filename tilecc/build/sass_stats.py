"""Statistics of the machine code of a package: per main loop what it issues per weight, and what bounds it.

An instruction belongs to the op and the role whose call it was inlined from: the inline chain passes the
lines ``run<R, OProj>(c, ...)`` and ``run_role<Role::kConsumer>(...)`` of the emitted kernel. The main loop of
an op is its innermost loop with tensor instructions (FFMA, where the op has none) in the consumer role.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import msgspec

from tilecc.build.disassemble import MachineCode, disassemble
from tilecc.build.loop_model import MMA_PRODUCTS, WARP, Bound, LoopCounts, bounds
from tilecc.build.ptxas import KernelFacts
from tilecc.build.sass import PIPES, Instruction, shared_wavefronts
from tilecc.build.sass_loops import FlowGraph, Loop
from tilecc.diag import InternalError, error
from tilecc.ir.program import OpClass, Program
from tilecc.package import Manifest
from tilecc.target import find_target
from tilecc.weights.layout import BLOCK_BYTES, BLOCK_COLS, TILE_ROWS

PRODUCTS = {"bf16": 1, "fp8_block": 1, "mxfp4": 1, "f32": 3}
"""Products that one weight takes part in per token row: a float32 weight enters as three bf16 numbers
(mma_formats.cuh)."""
FMAS = {"FFMA": 1, "FFMA2": 2}
"""Multiply-adds per lane of a loop without tensor instructions."""
KERNEL_ROLES = {
    "kLoader": "loader",
    "kStore": "store",
    "kActivations": "activations",
    "kConsumer": "consumer",
}


class LoopStats(msgspec.Struct, frozen=True, kw_only=True):
    """One main loop. Counts are warp instructions of one warp in one steady-state iteration (every wait
    satisfied, full chunk); per-weight figures are lane instructions. `waits` are tests of an mbarrier's
    phase; inner loops other than those that poll one are counted once: `unknown_inner_loops` says how many.
    The fields that are per weight, and the bounds, are empty for a loop without weights (attention)."""

    op: str
    kind: str
    format: str
    shape: list[int]
    role: str
    at: int
    line: str
    instructions: int
    pipes: dict[str, int]
    opcodes: dict[str, int]
    weights: int | None
    per_weight: dict[str, float]
    stalls: int
    scoreboard_waits: int
    waits: int
    unknown_inner_loops: int
    wavefronts: int
    path_bytes: int
    loop_bytes: int
    bounds: list[Bound]
    lines: dict[str, int]

    @property
    def all_per_weight(self) -> float | None:
        """Lane instructions per weight."""
        return WARP * self.instructions / self.weights if self.weights else None

    @property
    def integer_per_weight(self) -> float | None:
        """Integer and logic lane instructions per weight, IMAD included."""
        both = self.pipes.get("integer", 0) + self.pipes.get("imad", 0)
        return WARP * both / self.weights if self.weights else None

    def bound(self, stalls: bool = False) -> Bound | None:
        """The tightest bound; the stalls among them only if asked for."""
        return next((b for b in self.bounds if stalls or b.resource != "stalls"), None)


class SassReport(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel of one target. Code bytes per role and per op count every instruction once; `local_accesses`
    are the instructions that touch the stack (spills, local arrays), by "role op"."""

    target: str
    compiler: str
    kernel: KernelFacts
    dynamic_smem_bytes: int
    ring_bytes: dict[str, int]
    code_bytes: int
    role_bytes: dict[str, int]
    consumer_bytes: dict[str, int]
    local_accesses: dict[str, int]
    loops: list[LoopStats]


class Attribution:
    """Which op and which role an instruction belongs to, by its inline chain."""

    def __init__(self, manifest: Manifest, source: str) -> None:
        self.kernel = Path(manifest.source).name
        self.ops: dict[int, str] = {}
        self.roles: dict[int, str] = {}
        for number, line in enumerate(source.splitlines(), 1):
            if found := re.search(r"\brun<R, (\w+)>\(", line):
                self.ops[number] = found[1]
            if found := re.search(r"\brun_role<Role::(\w+)>\(p", line):
                self.roles[number] = KERNEL_ROLES[found[1]]

    def op(self, i: Instruction) -> str | None:
        """The op class, None for code that belongs to no op."""
        return self._find(i, self.ops)

    def role(self, i: Instruction) -> str | None:
        """The warp role, None for the code before the roles part and for functions that are called."""
        return self._find(i, self.roles)

    def _find(self, i: Instruction, lines: dict[int, str]) -> str | None:
        for frame in i.frames:
            if Path(frame.file).name == self.kernel and frame.line in lines:
                return lines[frame.line]
        return None


def sass_stats(package: Path, target: str | None = None) -> tuple[SassReport, MachineCode]:
    """Compile, disassemble and count the kernel of a package.

    Raises TC0601 to TC0603 for the package, TC05xx for the tools, TC0701 for an unknown target.
    """
    manifest = Manifest.load(package)
    machine = find_target(target or manifest.target)
    try:
        program = Program.from_text((package / "ir/20-program.txt").read_text(encoding="utf-8"))
        source = (package / manifest.source).read_text(encoding="utf-8")
    except OSError as reason:
        raise error(
            "TC0603",
            "the package lacks its program or its kernel",
            note=f"{reason.filename}: {reason.strerror}",
            help="compile the model again",
        ) from None
    code = disassemble(package, machine.name)
    attribution = Attribution(manifest, source)
    graph = FlowGraph(code.listing)
    roles: Counter[str] = Counter()
    ops: Counter[str] = Counter()
    local: Counter[str] = Counter()
    for i in code.listing.instructions:
        role = attribution.role(i) or "shared"
        roles[role] += 16
        if role == "consumer":
            ops[attribution.op(i) or "between ops"] += 16
        if i.base in ("LDL", "STL"):
            local[f"{role} {attribution.op(i) or 'between ops'}"] += 1
    consumers = next(r.warps for r in program.roles if r.name == "consumer")
    loops = [
        _loop_stats(graph, loop, op, attribution, program, machine.name, consumers)
        for loop, op in main_loops(graph, attribution, program)
    ]
    report = SassReport(
        target=machine.name,
        compiler=code.compiler,
        kernel=code.facts,
        dynamic_smem_bytes=manifest.smem_bytes,
        ring_bytes={r.name: r.slots * r.slot_bytes for r in program.rings},
        code_bytes=16 * len(code.listing.instructions),
        role_bytes=dict(sorted(roles.items())),
        consumer_bytes={c.name: ops[c.name] for c in program.classes if ops[c.name]},
        local_accesses=dict(local.most_common()),
        loops=loops,
    )
    return report, code


def main_loops(graph: FlowGraph, attribution: Attribution, program: Program) -> list[tuple[Loop, OpClass]]:
    """The main loops in the consumer role, with their op classes, in the order of the program."""
    holds: dict[int, set[str]] = {}
    consumer = [attribution.role(i) == "consumer" for i in graph.listing.instructions]
    multiplies: dict[str, set[int]] = {}
    for n, i in enumerate(graph.listing.instructions):
        op = attribution.op(i) if consumer[n] else None
        if op is not None and (i.pipe == "tensor" or i.base in FMAS):
            multiplies.setdefault(op, set()).add(n)
    for op, places in multiplies.items():
        tensor = {n for n in places if graph.listing.instructions[n].pipe == "tensor"}
        for loop in graph.loops:
            inside = (n for b in loop.blocks for n in range(graph.blocks[b].first, graph.blocks[b].end))
            if not (tensor or places).isdisjoint(inside):
                holds.setdefault(loop.header, set()).add(op)
    found: list[tuple[Loop, OpClass]] = []
    for c in program.classes:
        mine = [loop for loop in graph.loops if c.name in holds.get(loop.header, ())]
        if "matrix_rows" in c.constants or c.kind == "attention":
            found += [(x, c) for x in mine if not any(other.blocks < x.blocks for other in mine)]
    return found


def _loop_stats(
    graph: FlowGraph,
    loop: Loop,
    op: OpClass,
    attribution: Attribution,
    program: Program,
    target: str,
    consumers: int,
) -> LoopStats:
    path = graph.steady_path(loop)
    code = path.instructions
    pipes = Counter(i.pipe for i in code)
    mixed = {attribution.op(i) for i in code if i.pipe == "tensor"} - {op.name, None}
    if mixed:
        raise InternalError(f"the main loop of {op.name} also multiplies for {sorted(map(str, mixed))}")
    inner = [loop for loop in graph.loops if loop.header in path.inner_loops]
    polling = [x for x in inner if any(i.base in ("SYNCS", "NANOSLEEP") for i in graph.loop_code(x))]
    weights = weights_of(op, code, program.max_rows)
    stalls = sum(i.control.stall for i in code)
    wavefronts = sum(shared_wavefronts(i) for i in code if i.pipe == "shared")
    machine = find_target(target)
    found: list[Bound] = []
    if weights is not None:
        counts = LoopCounts(
            pipes=dict(pipes),
            wavefronts=wavefronts,
            products=sum(_mma_products(i) for i in code if i.pipe == "tensor"),
            stalls=stalls,
            weights=weights,
            weight_bytes=BLOCK_BYTES[str(op.constants["format"])] / (TILE_ROWS * BLOCK_COLS),
        )
        found = bounds(counts, machine.sm, machine.sms, consumers)
    first = graph.code(loop.header)[0]
    c = op.constants
    return LoopStats(
        op=op.name,
        kind=op.kind,
        format=str(c.get("format", "-")),
        shape=[int(c["matrix_rows"]), int(c["matrix_cols"])] if "matrix_rows" in c else [],
        role="consumer",
        at=first.offset,
        line=_place(first),
        instructions=len(code),
        pipes={name: pipes[name] for name in PIPES if pipes[name]},
        opcodes=dict(sorted(Counter(i.base for i in code).items(), key=lambda e: (-e[1], e[0]))),
        weights=weights,
        per_weight={n: WARP * pipes[n] / weights for n in PIPES if pipes[n]} if weights else {},
        stalls=stalls,
        scoreboard_waits=sum(bool(i.control.wait) for i in code),
        waits=sum(i.opcode.startswith("SYNCS.PHASECHK") for i in code),
        unknown_inner_loops=len(inner) - len(polling),
        wavefronts=wavefronts,
        path_bytes=16 * len(code),
        loop_bytes=16 * len(graph.loop_code(loop)),
        bounds=found,
        lines=dict(Counter(_place(i) for i in code).most_common()),
    )


def weights_of(op: OpClass, code: tuple[Instruction, ...], rows: int) -> int | None:
    """Weights that one warp multiplies in `code`: multiply-adds, divided by the rows of a step and by the
    products that a weight of this format takes part in (one, without tensor instructions). None for an op
    without a matrix.

    Raises InternalError where the division leaves a rest: the constants do not describe this loop.
    """
    if "matrix_rows" not in op.constants:
        return None
    tensor = any(i.pipe == "tensor" for i in code)
    each = rows * (PRODUCTS[str(op.constants["format"])] if tensor else 1)
    products = sum(_mma_products(i) if tensor else WARP * FMAS.get(i.base, 0) for i in code)
    weights, rest = divmod(products, each)
    if rest or weights == 0:
        raise InternalError(f"{products} multiply-adds in the main loop of {op.name}, {each} per weight")
    return weights


_SHAPE = re.compile(r"^(?:HMMA\.(?P<sync>\d{4,5})|HGMMA\.(?P<m>\d+)x(?P<n>\d+)x(?P<k>\d+))")
_SYNC = {"16816": MMA_PRODUCTS, "1688": MMA_PRODUCTS // 2}


def _mma_products(i: Instruction) -> int:
    """Multiply-adds of one warp's tensor instruction; a warpgroup's are shared by its four warps."""
    if i.pipe != "tensor":
        return 0
    found = _SHAPE.match(i.opcode)
    if found is None or (found["sync"] and found["sync"] not in _SYNC):
        raise InternalError(f"no multiply-add count for tensor instruction {i.opcode}")
    if found["sync"]:
        return _SYNC[found["sync"]]
    return int(found["m"]) * int(found["n"]) * int(found["k"]) // 4


def _place(i: Instruction) -> str:
    """Place ("file:line") of the innermost frame outside the primitive headers."""
    for frame in i.frames:
        if not Path(frame.file).name.startswith("tk_"):
            return f"{Path(frame.file).name}:{frame.line}"
    return f"{Path(i.frames[-1].file).name}:{i.frames[-1].line}" if i.frames else "?"


def listing_lines(package: Path, report: SassReport, code: MachineCode, op: str) -> list[str]:
    """The steady path of an op's main loop, one instruction per line: address, stall clocks, scoreboards set
    (w, r) and waited for (?), instruction, source line. For notes that argue about a loop."""
    graph = FlowGraph(code.listing)
    by_offset = {graph.code(loop.header)[0].offset: loop for loop in graph.loops}
    lines: list[str] = []
    for stats in report.loops:
        if stats.op != op:
            continue
        lines.append(f"{op}, {stats.instructions} instructions, {stats.weights or 'no'} weights")
        for i in graph.steady_path(by_offset[stats.at]).instructions:
            c = i.control
            marks = (f"w{c.write}" if c.write >= 0 else "") + (f"r{c.read}" if c.read >= 0 else "")
            marks += "?" + "".join(map(str, c.wait)) if c.wait else ""
            text = f"{i.predicate} {i.opcode} {i.operands}".strip()
            lines.append(f"{i.offset:6x} {c.stall:2} {marks:8} {text:60} {_place(i)}".rstrip())
    return lines
