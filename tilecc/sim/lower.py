"""From a TileGraph to what the simulator runs: per op its tasks, the stages of a task, and what it waits for.

Data-dependent extents get the values of a Scenario: rows, distinct experts, context length. Numbers of
tasks, of blocks and of bytes follow templates/include/op_*.cuh.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from tilecc.ir.attention import CHUNK_BLOCKS, KV_BLOCK, block_bytes, window_blocks
from tilecc.ir.rows import act_block_bytes
from tilecc.ir.tile import HandOffKind, TileGraph, TileOp
from tilecc.weights.layout import BLOCK_BYTES, BLOCK_COLS, TILE_ROWS

BLOCK_WEIGHTS = TILE_ROWS * BLOCK_COLS


@dataclass(frozen=True)
class Scenario:
    """`active` distinct experts per layer (may be fractional: an average), `context` positions of each
    row, all of one sequence."""

    rows: int = 8
    active: float = 59.5
    context: int = 4096
    grid: int = 132
    loops: str = "sass"
    """What limits the consumers: one of `tilecc.sim.loops.LOOPS`."""


class Path(enum.Enum):
    """How activations come into the ring."""

    NONE = "none"
    COPY = "copy"  # bulk copies for every task, as many in flight as the ring has slots
    RESIDENT = "resident"  # bulk copies for the first task of a CTA: the others find them in the ring


@dataclass(frozen=True)
class Wait:
    """An op of the step (index), of this step or the one before."""

    op: int
    kind: HandOffKind
    previous_step: bool


@dataclass(frozen=True)
class SimOp:
    """`tasks` are dealt over the CTAs from `rotation`; each streams `stages` of `stage_bytes` weights in
    `copies` bulk copies and `act_bytes` activations, and multiplies `weights` weights per stage.

    An op without stages takes its seconds after its inputs. Attention: `kv_bytes` come from HBM once for all
    rows, a warp goes through `warp_blocks` blocks of a task, each of `block_bytes`; a slot of the activation
    ring holds `slot_blocks` of them. Merge and reduce: `terms` are read per task. `expert` weights have an
    address only once the routing op `route` is done.
    """

    name: str
    kind: str
    label: str
    layer: int
    waits: tuple[Wait, ...]
    tasks: float
    rotation: int
    stages: float = 0.0
    stage_bytes: float = 0.0
    copies: int = 1
    act_bytes: float = 0.0
    path: Path = Path.NONE
    weights: float = 0.0
    warps: float = 0.0
    """Consumer warps that a stage keeps busy, as a mean: those along K times those that have a tile."""
    route: int = -1
    kv_bytes: float = 0.0
    warp_blocks: float = 0.0
    block_bytes: float = 0.0
    slot_blocks: float = 0.0
    terms: int = 1
    format: str = ""
    prefetch: tuple[tuple[int, int], ...] = ()
    """(op, stages): see `tilecc.ir.tile.Prefetch`."""


def lower(graph: TileGraph, scenario: Scenario) -> list[SimOp]:
    """The ops of one step. Needs a graph after `rings`."""
    place = {op.name: i for i, op in enumerate(graph.ops)}
    weights = {w.name: w for w in graph.weights}
    consumers = next(role.warps for role in graph.roles if role.name == "consumer")
    slot = next(ring.slot_bytes for ring in graph.rings if ring.name == "activations")
    slots = next(ring.slots for ring in graph.rings if ring.name == "activations")
    made: list[SimOp] = []
    route = -1
    for index, op in enumerate(graph.ops):
        waits = tuple(Wait(place[h.source], h.kind, h.previous_step) for h in op.hand_offs)
        ahead = tuple((place[p.op], p.stages) for p in op.prefetch)
        base = SimOp(
            op.name, op.kind, op.label, op.layer, waits, op.tiles["tasks"], op.rotation, prefetch=ahead
        )
        if op.kind == "route":
            route = index
        if "chunk" in op.tiles:
            format, block = weights[op.weights["matrix"]].format, act_block_bytes(graph.max_rows)
            gemv = _gemv(base, op, format, block, scenario, route, slots)
            abreast = consumers // op.tiles["warps_k"]
            turns = -(-op.tiles["group"] // abreast)
            made.append(dataclasses.replace(gemv, warps=op.tiles["warps_k"] * op.tiles["group"] / turns))
        elif op.kind == "attention":
            made.append(_attention(base, op, scenario, consumers, slot))
        elif op.kind == "attention_merge":
            made.append(_merge(base, op, scenario))
        elif op.kind == "reduce":
            terms = int(op.attrs["ranks"]) if "ranks" in op.attrs else op.tiles["splits"]
            made.append(dataclasses.replace(base, terms=terms))
        else:
            made.append(base)
    return made


def _gemv(
    base: SimOp, op: TileOp, format: str, act_block: int, scenario: Scenario, route: int, slots: int
) -> SimOp:
    t = op.tiles
    expert = op.kind in ("experts_up", "experts_down")
    tasks: float = -(-t["tiles"] // t["group"]) * t["splits"]
    blocks: float = t["blocks"] / t["splits"]
    if op.kind == "experts_up":
        tasks, blocks = tasks * scenario.active, t["blocks"]
    if op.kind == "experts_down":
        blocks = t["blocks"] * scenario.active / t["splits"]
    chunk = min(t["chunk"], t["blocks"]) * t["slots"]
    # Tiles that do not fill the last group carry no bytes.
    tiles = t["tiles"] / -(-t["tiles"] // t["group"])
    whole = t["chunk"] == t["blocks"]
    per_task = -(-t["blocks"] // t["splits"])
    held = -(-per_task // t["act_chunk"])
    resident = op.kind != "experts_down" and held <= slots
    return dataclasses.replace(
        base,
        tasks=tasks,
        stages=blocks / chunk,
        stage_bytes=tiles * chunk * BLOCK_BYTES[format],
        copies=t["slots"] if whole else t["group"],
        act_bytes=chunk * act_block,
        path=Path.RESIDENT if resident else Path.COPY,
        weights=tiles * chunk * BLOCK_WEIGHTS,
        route=route if expert else -1,
        format=format,
    )


def _attention(base: SimOp, op: TileOp, scenario: Scenario, consumers: int, slot: int) -> SimOp:
    """Sliding layer: a task is a row, its blocks are dealt over the warps. Global layer: a task is a split of
    some rows, and each warp goes through all blocks of the split for one row. A slot of the ring holds keys
    or values of a block for the former, whole blocks for the latter."""
    a = op.attrs
    window, kv_heads = int(a["window"]), int(a["kv_heads"])
    block = block_bytes(int(a["head_dim"]), int(a["v_head_dim"]), str(a["kv"]))
    blocks = -(-scenario.context // KV_BLOCK)
    if window:
        blocks = min(blocks, window_blocks(window))
        tasks, warp_blocks = scenario.rows * kv_heads, -(-blocks // consumers)
    else:
        chunks = -(-blocks // CHUNK_BLOCKS)
        splits = min(op.tiles["splits"], chunks)
        tasks = -(-scenario.rows // op.tiles["task_rows"]) * splits * kv_heads
        warp_blocks = -(-chunks // splits) * CHUNK_BLOCKS
    return dataclasses.replace(
        base,
        tasks=tasks,
        kv_bytes=blocks * block * kv_heads,
        warp_blocks=warp_blocks,
        block_bytes=block,
        slot_blocks=0.5 if window else min(CHUNK_BLOCKS, slot // block),
    )


def _merge(base: SimOp, op: TileOp, scenario: Scenario) -> SimOp:
    a = op.attrs
    blocks = -(-scenario.context // KV_BLOCK)
    chunks = -(-blocks // CHUNK_BLOCKS)
    tiles = -(-int(a["v_head_dim"]) // 8)
    return dataclasses.replace(
        base,
        tasks=scenario.rows * int(a["kv_heads"]) * tiles,
        terms=min(op.tiles["splits"], chunks),
    )


def distinct_experts(graph: TileGraph, rows: int) -> float:
    """Expected number of distinct experts of a layer when rows choose independently: E (1 - (1 -
    k/E)^rows). 0 without experts."""
    for op in graph.ops:
        if op.kind == "experts_up":
            experts, k = int(op.attrs["experts"]), int(op.attrs["k"])
            return experts * (1.0 - (1.0 - k / experts) ** rows)
    return 0.0
