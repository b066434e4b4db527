"""From a TileGraph to what the simulator runs: per op its tasks, the stages of a task, and what it waits for.

Data-dependent extents get the values of a Scenario: rows, distinct experts, context length.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilecc.ir.tile import HandOffKind, TileGraph, TileOp
from tilecc.ir.tile_rules import CHUNK_BYTES
from tilecc.weights.layout import BLOCK_BYTES, BLOCK_COLS, TILE_ROWS

BLOCK_WEIGHTS = TILE_ROWS * BLOCK_COLS
KV_BLOCK = 16

INSTRUCTIONS: dict[str, float] = {"bf16": 0.9, "fp8_block": 1.6, "mxfp4": 2.3, "f32": 4.0}
"""Lane instructions per weight of the main loops: the bounds that they are built to (main loops, SASS)."""


@dataclass(frozen=True)
class Scenario:
    """`active` distinct experts per layer (may be fractional: an average), `context` positions of each
    row."""

    rows: int = 8
    active: float = 59.5
    context: int = 4096
    grid: int = 132
    loops: str = "sass"
    """"sass": the instruction counts above; "ideal": consumers never limit."""


@dataclass(frozen=True)
class Wait:
    """An op of the step (index), of this step or the one before."""

    op: int
    kind: HandOffKind
    previous_step: bool


@dataclass(frozen=True)
class SimOp:
    """`tasks` are dealt over the CTAs from `rotation`; each streams `stages` of `stage_bytes` weights and
    `act_bytes` activations, and computes `lanes` lane instructions per stage. An op without stages takes
    `seconds` after its inputs; `kv_bytes` of it come from HBM. `expert` weights have an address only once the
    routing op `route` is done."""

    name: str
    kind: str
    label: str
    layer: int
    waits: tuple[Wait, ...]
    tasks: float
    rotation: int
    stages: float = 0.0
    stage_bytes: float = 0.0
    act_bytes: float = 0.0
    lanes: float = 0.0
    route: int = -1
    kv_bytes: float = 0.0
    format: str = ""


def lower(graph: TileGraph, scenario: Scenario) -> list[SimOp]:
    """The ops of one step. Needs a graph after `rings`."""
    place = {op.name: i for i, op in enumerate(graph.ops)}
    weights = {w.name: w for w in graph.weights}
    made: list[SimOp] = []
    consumers = next(role.warps for role in graph.roles if role.name == "consumer")
    route = -1
    for index, op in enumerate(graph.ops):
        waits = tuple(Wait(place[h.source], h.kind, h.previous_step) for h in op.hand_offs)
        base = SimOp(op.name, op.kind, op.label, op.layer, waits, op.tiles["tasks"], op.rotation)
        if op.kind == "route":
            route = index
        if "chunk" in op.tiles:
            made.append(_gemv(base, op, weights[op.weights["matrix"]].format, scenario, route))
        elif op.kind == "attention":
            made.append(_attention(base, op, scenario, consumers))
        else:
            made.append(base)
    return made


def _gemv(base: SimOp, op: TileOp, format: str, scenario: Scenario, route: int) -> SimOp:
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
    per_stage = tiles * chunk
    return dataclasses.replace(
        base,
        tasks=tasks,
        stages=blocks / chunk,
        stage_bytes=per_stage * BLOCK_BYTES[format],
        act_bytes=chunk * CHUNK_BYTES,
        lanes=per_stage * BLOCK_WEIGHTS * (INSTRUCTIONS[format] if scenario.loops == "sass" else 0.0),
        route=route if expert else -1,
        format=format,
    )


def _attention(base: SimOp, op: TileOp, scenario: Scenario, consumers: int) -> SimOp:
    a = op.attrs
    window, kv_heads = int(a["window"]), int(a["kv_heads"])
    splits = op.tiles.get("splits", 1)
    positions = min(scenario.context, window) if window else scenario.context
    blocks = positions / KV_BLOCK + 1
    per_block = (int(a["head_dim"]) + int(a["v_head_dim"])) * KV_BLOCK * 2
    return dataclasses.replace(
        base,
        # A task of a sliding layer is one row; one of a global layer has as many rows as there are consumers.
        tasks=(scenario.rows if window else -(-scenario.rows // consumers) * splits) * kv_heads,
        stages=0.0,
        stage_bytes=0.0,
        act_bytes=blocks / splits,
        kv_bytes=blocks * per_block * kv_heads,
    )


def distinct_experts(graph: TileGraph, rows: int) -> float:
    """Expected number of distinct experts of a layer when rows choose independently: E (1 - (1 -
    k/E)^rows). 0 without experts."""
    for op in graph.ops:
        if op.kind == "experts_up":
            experts, k = int(op.attrs["experts"]), int(op.attrs["k"])
            return experts * (1.0 - (1.0 - k / experts) ** rows)
    return 0.0
