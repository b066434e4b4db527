"""rings: shared memory of one CTA. The weight ring runs across operator boundaries and takes what the
others leave, up to what keeps the memory system busy; activations and KV blocks share a ring of K chunks,
long enough, if it fits, that what the tasks of a CTA share is loaded once; the exchange carries the
consumers' partial sums to the store warp.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from tilecc.diag import TileccError, error
from tilecc.ir.attention import exchange_bytes, key_bytes, query_bytes, value_bytes
from tilecc.ir.rows import BASE_ROWS, ROW_COUNTS, act_block_bytes, routing_bytes
from tilecc.ir.tile import RingSpec, TileGraph
from tilecc.passes.context import PassContext, ring_subject
from tilecc.passes.tile import ceil_div, tile
from tilecc.target import show
from tilecc.weights.layout import BLOCK_BYTES

ACTIVATION_SLOTS = 8
MIN_ACTIVATION_SLOTS = 3
SMALLER_HEADS = "use smaller attention heads"
MAX_ACTIVATION_SLOTS = 16
EXCHANGE_SLOTS = 2
WEIGHT_STAGES = 8
MAX_WEIGHT_STAGES = 16
"""Short stages, of small matrices: as many of them as RING_BYTES take, beyond WEIGHT_STAGES."""
MAX_SHORT_STAGES = 32
"""The same for more than 8 rows, whose stages hold fewer K blocks."""
MIN_WEIGHT_STAGES = 3
SLOT_STEP = 1024
RING_BYTES = 96 * 1024
"""Weights requested and not yet read that keep the memory system busy; activations give way to them."""
FIXED_BYTES = 4096 - routing_bytes(BASE_ROWS)
"""Barriers: what the routing record of 8 rows leaves of 4 KiB. Checked against the emitted layout by a
static_assert."""


def rings(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `rings`. Raises TileccError TC0223 if not even the shortest weight ring fits."""
    return _rings(graph, ctx, lambda g, c: _other_rows(g, c) or SMALLER_HEADS)


def _rings(
    graph: TileGraph, ctx: PassContext, advice: Callable[[TileGraph, PassContext], str] = lambda g, c: ""
) -> TileGraph:
    consumers = next(r.warps for r in graph.roles if r.name == "consumer")
    weights = {w.name: w for w in graph.weights}
    stage = activation = exchange = 128  # a step of few ops may leave a ring unused
    resident = 0  # slots that hold all activations of the op with most of them
    for op in graph.ops:
        if "chunk" in op.tiles:
            block = BLOCK_BYTES[weights[op.weights["matrix"]].format]
            group, chunk = op.tiles["group"], op.tiles["slots"] * op.tiles["chunk"]
            stage = max(stage, group * chunk * block)
            act_chunk = op.tiles["act_chunk"]
            activation = max(activation, op.tiles["slots"] * act_chunk * act_block_bytes(graph.max_rows))
            if op.kind != "experts_down":
                blocks = ceil_div(op.tiles["blocks"], op.tiles["splits"])
                resident = max(resident, ceil_div(blocks, act_chunk))
            exchange = max(exchange, op.tiles["warps_k"] * group * 512)
        if op.kind == "attention":
            dim, v_dim, kv = int(op.attrs["head_dim"]), int(op.attrs["v_head_dim"]), str(op.attrs["kv"])
            parts = key_bytes(dim, kv), value_bytes(v_dim, kv)  # a global layer copies whole blocks
            block = max(parts) if int(op.attrs["window"]) else sum(parts)
            activation = max(activation, query_bytes(dim), block)
            exchange = max(exchange, exchange_bytes(int(op.attrs["window"]), consumers))
    stage, activation, exchange = (ceil_div(n, 128) * 128 for n in (stage, activation, exchange))
    room = ctx.target.smem_per_cta - FIXED_BYTES - routing_bytes(graph.max_rows) - EXCHANGE_SLOTS * exchange
    slots = min(max(ACTIVATION_SLOTS, resident), MAX_ACTIVATION_SLOTS)
    longest = MAX_WEIGHT_STAGES if graph.max_rows == BASE_ROWS else MAX_SHORT_STAGES
    most = min(longest, max(WEIGHT_STAGES, ceil_div(RING_BYTES, stage)))
    wanted = min(ceil_div(RING_BYTES, stage), most) * stage
    while slots > MIN_ACTIVATION_SLOTS and (room - slots * activation) // stage * stage < wanted:
        slots -= 1
    stages = min(most, max(0, room - slots * activation) // stage)
    if stages < MIN_WEIGHT_STAGES:
        heads = [op for op in graph.ops if op.kind == "attention"] or list(graph.ops)
        largest = max(
            heads, key=lambda op: int(op.attrs.get("head_dim", 0)) + int(op.attrs.get("v_head_dim", 0))
        )
        raise error(
            "TC0223",
            f"shared memory of `{ctx.target.name}` does not hold {MIN_WEIGHT_STAGES} weight stages",
            span=largest.loc.span(largest.name),
            note=f"{ctx.target.smem_per_cta} B per CTA; activations {slots} x {activation} B,"
            f" exchange {EXCHANGE_SLOTS} x {exchange} B, one weight stage {stage} B",
            help=advice(graph, ctx),
        )
    in_flight = (
        f"{stages * stage // 1024} KiB in flight per SM; the memory system needs "
        f"{show(ctx.target.in_flight, 'B')}"
    )
    left = room - MIN_ACTIVATION_SLOTS * activation
    shape = _shape("weights", (stages, stage), MIN_WEIGHT_STAGES, most, left, in_flight, ctx)
    stages, stage = shape
    left = room - stages * stage
    wanted_slots = max(MIN_ACTIVATION_SLOTS, min(slots, left // activation))
    slots, activation = _shape(
        "activations", (wanted_slots, activation), MIN_ACTIVATION_SLOTS, MAX_ACTIVATION_SLOTS, left,
        "what the weight ring leaves", ctx,
    )  # fmt: skip
    return dataclasses.replace(
        graph,
        rings=(
            RingSpec("weights", stages, stage),
            RingSpec("activations", slots, activation),
            RingSpec("exchange", EXCHANGE_SLOTS, exchange),
        ),
    )


def _other_rows(graph: TileGraph, ctx: PassContext) -> str:
    """The nearest other number of rows whose rings fit, as advice; empty if there is none. What does not fit
    with 8 rows has no program of more: theirs have its bits."""
    if graph.max_rows == BASE_ROWS:
        return ""
    others = (n for n in ROW_COUNTS if n != graph.max_rows)
    for rows in sorted(others, key=lambda n: abs(n - graph.max_rows)):
        trial = dataclasses.replace(ctx, max_rows=rows, decisions=[], problems=[])
        fewer = dataclasses.replace(graph, max_rows=rows, buffers=())
        with contextlib.suppress(TileccError):
            _rings(tile(fewer, trial), trial)
            return f"nearest: --rows {rows}"
    return ""


def _shape(
    name: str, wanted: tuple[int, int], fewest: int, most: int, room: int, reason: str, ctx: PassContext
) -> tuple[int, int]:
    """Slots of a ring and bytes of one: as `wanted`, unless the schedule says otherwise, within `room`. Slots
    may be larger than the ops need."""
    slots, need = wanted
    sizes = [need, *range(ceil_div(need + 1, SLOT_STEP) * SLOT_STEP, room // fewest + 1, SLOT_STEP)]
    chosen = ctx.choose(
        "rings", ring_subject(name),
        [{"depth": n, "slot_bytes": b} for b in sizes for n in range(fewest, min(most, room // b) + 1)],
        default={"depth": slots, "slot_bytes": need}, reason=reason,
        words=lambda c: f"{c['depth']} stages of {c['slot_bytes']} B",
    )  # fmt: skip
    return int(chosen["depth"]), int(chosen["slot_bytes"])
