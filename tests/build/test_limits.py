"""Limits of the main loops in machine code, at matrices of MiMo-V2.5-Pro on one of eight ranks and whole.

Instructions per weight, the share of H200 bandwidth that they allow, registers without spills, weight rings.
An SM of an H200 at 4.8 TB/s has 3.3 lane instructions per MXFP4 weight to spend, of which 1.6 on the integer
pipe (tilecc/build/loop_model.py); the limits leave room for what the model does not know. They are upper
bounds: the counts themselves are golden files (tests/build/test_sass.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.build.test_one_rank import compiled
from tests.build.test_sass import MODEL, needs_tools
from tilecc.build.sass_stats import LoopStats, SassReport, sass_stats
from tilecc.emit.compiler import compile_model
from tilecc.emit.single import SingleOp, one_op_package
from tilecc.ir.attention import CHUNK_BLOCKS, block_bytes
from tilecc.ir.program import Program
from tilecc.ir.rows import act_block_bytes
from tilecc.passes.schedule import Schedule
from tilecc.target import find_target
from tilecc.weights.layout import BLOCK_BYTES

RING_BYTES = 96 * 1024
"""Weights in flight that an SM of every target needs at least (the larger figure of the target table)."""


WARPS = {"activations": 2, "consumer": 4}
"""Warps of one rank's kernel, whose attention leaves no registers for more. An op alone may get eight
consumers: they hide latency better, but a turn of a warp is half as long then, and FP8 takes 1.80."""


@dataclass(frozen=True)
class Limit:
    """Lane instructions per weight, all and those of the integer pipe and IMAD; share of bandwidth."""

    all: float
    integer: float
    share: float


LIMITS = {
    "mxfp4": Limit(2.3, 1.4, 0.85),
    "fp8_block": Limit(1.6, 1.4, 0.92),
    "bf16": Limit(0.9, 0.4, 0.92),
    "f32": Limit(7.2, 4.0, 0.92),
}
"""f32 is the router alone, 2 % of the bytes: its limit is what the split into three bf16 numbers costs."""

OPS = {
    # one of eight ranks
    "qkv": SingleOp("router", "fp8_block", 3392, 6144),
    "gate_up": SingleOp("gate_up", "fp8_block", 4096, 6144),
    "down": SingleOp("project", "fp8_block", 6144, 2048),
    "o_proj": SingleOp("project", "bf16", 6144, 2048),
    "router": SingleOp("router", "f32", 384, 6144),
    "experts": SingleOp("experts", "mxfp4", 512, 6144, experts=384, k=8),
    "head": SingleOp("head", "bf16", 19072, 6144),
    # the whole model on one
    "qkv_whole": SingleOp("router", "fp8_block", 27136, 6144),
    "gate_up_whole": SingleOp("gate_up", "fp8_block", 32768, 6144),
    "down_whole": SingleOp("project", "fp8_block", 6144, 16384),
    "o_proj_whole": SingleOp("project", "bf16", 6144, 16384),
    "experts_whole": SingleOp("experts", "mxfp4", 4096, 6144, experts=384, k=8),
    "head_whole": SingleOp("head", "bf16", 152576, 6144),
    # a matrix with fewer tiles than SMs, in short stages
    "small": SingleOp("gate_up", "mxfp4", 512, 6144),
    # tall matrices of either scaled format: the loops of benchmarks/mainloop.py
    "mxfp4_wide": SingleOp("gate_up", "mxfp4", 122880, 6144),
    "fp8_wide": SingleOp("router", "fp8_block", 65536, 6144),
}


def within(loop: LoopStats) -> list[str]:
    """What of a loop exceeds its limits, in words."""
    limit, bound = LIMITS[loop.format], loop.bound()
    assert loop.all_per_weight is not None and loop.integer_per_weight is not None and bound is not None
    found = [
        ("lane instructions per weight", loop.all_per_weight, limit.all),
        ("integer and logic per weight", loop.integer_per_weight, limit.integer),
        (f"share of bandwidth ({bound.resource})", -min(1.0, bound.share), -limit.share),
    ]
    return [
        f"{loop.op}: {name} {abs(got):.3f}, limit {abs(most):.3f}" for name, got, most in found if got > most
    ]


def no_stack(report: SassReport) -> None:
    k = report.kernel
    assert (k.stack_bytes, k.spill_store_bytes, k.spill_load_bytes) == (0, 0, 0), report.local_accesses
    assert report.local_accesses == {}


def ring_constant(package: Path) -> int:
    """Bytes of the weight ring, from the constants of the emitted file."""
    (source,) = (package / "kernels").glob("*.cu")
    text = source.read_text(encoding="utf-8")
    value = {name: int(n) for name, n in re.findall(r"constexpr u32 (kWStages|kWStageBytes) = (\d+);", text)}
    return value["kWStages"] * value["kWStageBytes"]


TARGETS = [
    pytest.param(
        name,
        target,
        marks=[pytest.mark.nightly] if target == "sm_100a" or name.endswith(("_whole", "_wide")) else [],
    )
    for target in ("sm_90a", "sm_100a")
    for name in OPS
]


@needs_tools
@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_one_op_is_within_its_limits(name: str, target: str, tmp_path: Path) -> None:
    schedule = Schedule(find_target("sm_90a"))
    schedule.roles(why="those of the kernel of one rank", **WARPS)
    package = one_op_package(tmp_path / "p", OPS[name], schedule=schedule)
    report, _ = sass_stats(package.directory, target)
    no_stack(report)
    ring = ring_constant(package.directory)
    assert ring == report.ring_bytes["weights"] >= RING_BYTES
    loops = [loop for loop in report.loops if loop.weights]
    assert len(loops) == (2 if OPS[name].kind == "experts" else 1)
    cache = find_target(target).sm.l1_icache
    for loop in loops:
        print(
            f"{name} {loop.op} {target}: {loop.all_per_weight:.3f} instructions per weight,"
            f" {loop.integer_per_weight:.3f} integer and logic, loop {loop.loop_bytes} B"
        )
        assert loop.loop_bytes <= cache // 4
    if target == "sm_90a":
        assert [line for loop in loops for line in within(loop)] == []


WIDE = {
    "mxfp4": OPS["small"], "experts": OPS["experts"], "fp8": OPS["qkv"], "bf16": OPS["o_proj"],
    "f32": OPS["router"], "head": OPS["head"],
    "experts_fp8": SingleOp("experts", "fp8_block", 512, 6144, experts=64, k=8),
    "experts_bf16": SingleOp("experts", "bf16", 512, 6144, experts=64, k=8),
}  # fmt: skip
WIDE_BY_DAY = {("experts", 64), ("fp8", 16), ("bf16", 32)}
PER_ROW_TILE = {"mxfp4": 0.75, "fp8_block": 0.5, "bf16": 0.35, "f32": 1.0}
"""Lane instructions per weight that eight more rows may add: two loads and two products per 16 weights (six
products of float32 weights), the scales' multiply-adds, and what addresses cost. The down projection looks up
each row's routing weight too, once for the two blocks of an expert: twice as many."""


@needs_tools
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param(name, rows, marks=[] if (name, rows) in WIDE_BY_DAY else [pytest.mark.nightly])
        for name in WIDE
        for rows in (16, 32, 64)
    ],
)
def test_loops_of_more_rows_decode_once_and_do_not_spill(name: str, rows: int, tmp_path: Path) -> None:
    schedule = Schedule(find_target("sm_90a"))
    schedule.roles(why="those of the kernel of one rank", **WARPS)
    op = dataclasses.replace(WIDE[name], max_rows=rows)
    package = one_op_package(tmp_path / "p", op, schedule=schedule)
    report, _ = sass_stats(package.directory, "sm_90a")
    no_stack(report)
    for loop in (x for x in report.loops if x.weights):
        limit, found, integer = LIMITS[loop.format], loop.all_per_weight, loop.integer_per_weight
        assert found is not None and integer is not None
        print(f"{name} {loop.op} {rows} rows: {found:.2f} instructions per weight, {integer:.2f} integer")
        down = loop.kind == "experts_down"
        each = PER_ROW_TILE[loop.format] * (2 if down else 1)
        assert found <= limit.all + each * (rows // 8 - 1), loop.op
        # Decoding once per row tile would cost the integer part as many times as there are tiles.
        assert integer <= (limit.integer + 1.8 if down else 1.5 * limit.integer), loop.op


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Packages of whole kernels: the small model, and one of eight ranks of MiMo-V2.5-Pro."""
    folder = tmp_path_factory.mktemp("whole")
    compile_model(MODEL, target="sm_90a", out=folder / "tiny")
    for kv in ("bf16", "fp8"):
        compiled(folder / kv, kv)
    yield {name: folder / name for name in ("tiny", "bf16", "fp8")}


@needs_tools
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("tiny", "sm_90a"),
        pytest.param("tiny", "sm_100a", marks=pytest.mark.nightly),
        ("bf16", "sm_90a"),
        pytest.param("bf16", "sm_100a", marks=pytest.mark.nightly),
        pytest.param("fp8", "sm_90a", marks=pytest.mark.nightly),
        pytest.param("fp8", "sm_100a", marks=pytest.mark.nightly),
    ],
)
def test_a_whole_kernel_is_within_its_limits(whole: dict[str, Path], name: str, target: str) -> None:
    """No stack and no spills with all ops and roles in one kernel. The loops of one rank keep the limits
    beside everything else; those of the small model have a block or two per turn, so waits count more."""
    report, _ = sass_stats(whole[name], target)
    no_stack(report)
    if name != "tiny":
        program = Program.from_text((whole[name] / "ir/20-program.txt").read_text(encoding="utf-8"))
        assert {role.name: role.warps for role in program.roles if role.name in WARPS} == WARPS
    assert ring_constant(whole[name]) == report.ring_bytes["weights"] >= RING_BYTES
    loops = [loop for loop in report.loops if loop.weights]
    assert len(loops) == 9
    if name != "tiny" and target == "sm_90a":
        assert [line for loop in loops for line in within(loop)] == []


COPY_BYTES = 8 * 1024
"""What one bulk copy of weights, activations or keys and values brings at least. Copies of 4 KiB end at
2.5 TB/s on an H100, of 8 KiB at 3.1, of 16 KiB at 3.16 (benchmarks/results)."""


def copies(program: Program) -> dict[str, int]:
    """Bytes of a whole bulk copy, by op and ring, of every op that streams."""
    slot = program.ring("activations").slot_bytes
    found: dict[str, int] = {}
    for op in program.classes:
        c = op.constants
        if "tile_chunk" in c:
            chunk, blocks = int(c["tile_chunk"]), int(c["tile_blocks"])
            tiles = int(c["tile_group"]) if chunk == blocks else 1
            found[f"{op.name} weights"] = chunk * tiles * BLOCK_BYTES[str(c["format"])]
            acts = int(c["tile_slots"]) * int(c["tile_act_chunk"])
            found[f"{op.name} activations"] = acts * act_block_bytes(8)
        elif op.kind == "attention" and not int(c["window"]):
            block = block_bytes(int(c["head_dim"]), int(c["v_head_dim"]), str(c["kv"]))
            found[f"{op.name} keys and values"] = min(CHUNK_BLOCKS, slot // block) * block
    return found


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_bulk_copies_are_long(tmp_path: Path, kv: str) -> None:
    """A sliding layer is left out: its window is 92 KiB of the L2 cache, and its time is latency."""
    result = compiled(tmp_path / "rank", kv)
    found = copies(Program.from_text(result.texts["20-program.txt"]))
    assert len(found) == 2 * 9 + 1
    assert {name: n for name, n in found.items() if n < COPY_BYTES} == {}


def test_a_loop_that_exceeds_its_limits_is_named() -> None:
    """The check of a loop with one instruction too many, on counts made by hand."""
    from tilecc.build.loop_model import Bound

    loop = LoopStats(
        op="O", kind="project", format="bf16", shape=[16, 128], role="consumer", at=0, line="k.cu:1",
        instructions=29, pipes={"integer": 12, "tensor": 8, "shared": 9}, opcodes={}, weights=1024,
        per_weight={}, stalls=0, scoreboard_waits=0, waits=1, unknown_inner_loops=0, wavefronts=0,
        path_bytes=0, loop_bytes=0, bounds=[Bound("shared memory", 1.0, 0.93)], lines={},
    )  # fmt: skip
    (one,) = within(loop)
    assert one == "O: lane instructions per weight 0.906, limit 0.900"
