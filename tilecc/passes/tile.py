"""tile: chooses tile shapes and K splits, and gives every op its tile space and the boxes it reads and
writes.

    TileOp("layers.3.o_proj", attrs={...})
      =>  TileOp(..., tiles={"tiles": 16, "blocks": 2, "splits": 2, "group": 2, "chunk": 2, "tasks": 16},
                 reads=[Access("attention", [[0, 8], [0, 256]])], writes=[Access("partials", ...)])

Sizes that do not divide are padded with zero weights: an m16 tile takes up to 16 rows, a K block 128 columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tilecc.diag import error
from tilecc.ir.attention import (
    CHUNK_BLOCKS,
    KV_BLOCK,
    MAX_FRAGMENT_REGISTERS,
    block_bytes,
    fragment_registers,
    partial_bytes,
    query_bytes,
    task_rows,
    window_turns,
)
from tilecc.ir.rows import BASE_ROWS, MAX_TOP_K, act_block_bytes, row_tiles
from tilecc.ir.tile import Access, Buffer, Space, TileGraph, TileOp, Weight, warps_along_k
from tilecc.passes.context import Choice, PassContext, Subject, op_subject
from tilecc.weights.layout import BLOCK_BYTES

TILE_ROWS = 16
BLOCK_COLS = 128
UNIT_COLS = 64
MAX_GRID = 256
MAX_GROUP = 8
STAGE_COST = 1024
"""What waiting for a stage and giving it back costs, in bytes that a CTA could have fetched meanwhile: some
45 ns at an H100's 23 GB/s per SM. A passed wait takes 85 ns there (benchmarks/results), half of it hidden."""
MAX_CHUNK = 8
ACT_CHUNK = 8
"""K blocks of an activation slot, at most: bulk copies of 16 KiB."""
STAGE_BLOCKS = {"bf16": 8, "f32": 4, "fp8_block": 16, "mxfp4": 32}
"""Weight blocks of one ring stage: about 32 KiB, so that waiting and signalling cost little per weight."""
MIN_CHUNK = {"bf16": 2, "f32": 1, "fp8_block": 4, "mxfp4": 8}
"""K blocks of a tile that one bulk copy should bring at least: 8 KiB. Copies of 4 KiB do not reach the
bandwidth of an H100 (benchmarks/results)."""
MAX_WARP_TILES = 16
"""m16 x n8 results that one warp may keep: 64 registers, as many again for the sums of a block or a pair of
steps that its scales multiply. The down projection keeps a total besides: half as many. More spill."""
MAX_SPLITS = 4
MAX_EXPERTS = 1024
"""Of the routing record: one membership word per lane."""
PEER_SLOTS = 3
"""Epochs of pushed terms kept apart. A rank that has the terms of epoch e + 2 of every rank knows that all
have read those of epoch e: no rank waits before it pushes."""
MAX_CONTEXT_SPLITS = 64
CONSUMERS = 4
"""Consumer warps of a CTA until `roles` chooses: then `for_consumers` says again what depends on them."""


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below a / b."""
    return -(-a // b)


def pad(n: int, multiple: int = BLOCK_COLS) -> int:
    """n rounded up to a multiple."""
    return ceil_div(n, multiple) * multiple


def multiples(n: int, of: int) -> str:
    """The multiples of a number next to n, in words."""
    below = n // of * of
    return f"{below} or {below + of}" if below > 0 else str(of)


def deals(chunk: int, warps_k: int, blocks: int) -> bool:
    """Whether chunks of that many K blocks deal block i of `blocks` to warp i modulo `warps_k`, chunk after
    chunk."""
    return chunk >= blocks or chunk % warps_k == 0 or warps_k % chunk == 0


def tile(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `tiles`, `reads`, `writes` and the buffers. Raises TileccError TC0222 for sizes that do not
    fit."""
    return _Tiler(graph, ctx).run()


def for_consumers(graph: TileGraph, consumers: int) -> TileGraph:
    """The graph with what follows from the number of consumer warps: how attention deals its blocks. Main
    loops deal more tiles at a time; `warps_k` stays, and with it the order of every sum."""

    def changed(op: TileOp) -> TileOp:
        if op.kind != "attention":
            return op
        window, kv_heads = int(op.attrs["window"]), int(op.attrs["kv_heads"])
        if window:
            return dataclasses.replace(op, tiles=op.tiles | {"turns": window_turns(window, consumers)})
        rows = task_rows(consumers)
        tasks = ceil_div(graph.max_rows, rows) * kv_heads * op.tiles["splits"]
        return dataclasses.replace(op, tiles=op.tiles | {"task_rows": rows, "tasks": tasks})

    return dataclasses.replace(graph, ops=tuple(changed(op) for op in graph.ops))


class _Tiler:
    def __init__(self, graph: TileGraph, ctx: PassContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.weights = {w.name: w for w in graph.weights}
        self.buffers: dict[str, Buffer] = {}
        self.columns = pad(graph.hidden)
        self.rows = graph.max_rows

    def run(self) -> TileGraph:
        if self.graph.hidden % 16:
            raise self.unfit(
                self.graph.ops[0],
                f"hidden size {self.graph.hidden} is not a multiple of 16, the columns of one MMA step",
                f"hidden size {multiples(self.graph.hidden, 16)}",
            )
        table: dict[str, Callable[[TileOp], TileOp]] = {
            "embed": self.embed, "qkv": self.qkv, "attention": self.attention,
            "attention_merge": self.attention_merge, "project": self.project, "reduce": self.reduce,
            "router": self.router, "route": self.route, "gate_up": self.gate_up,
            "experts_up": self.experts_up, "experts_down": self.experts_down, "head": self.head,
            "argmax_push": self.argmax_push,
            "commit": self.commit,
        }  # fmt: skip
        self.partial_splits = {
            op.name: self.splits(op) for op in self.graph.ops if op.kind in ("project", "experts_down")
        }
        ops = tuple(table[op.kind](op) for op in self.graph.ops)
        self.space("counters", "u32", (1,), 0)  # sized by `program`, which numbers the counters
        return dataclasses.replace(self.graph, ops=ops, buffers=tuple(self.buffers.values()))

    # ---- helpers -------------------------------------------------------------------------------------------

    def unfit(self, op: TileOp, message: str, nearest: str) -> Exception:
        """`nearest`: the nearest legal sizes, in words."""
        return error(
            "TC0222",
            message,
            span=op.loc.span(op.name),
            help=(f"nearest: {nearest}", "change the size in config.json"),
        )

    def space(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        space: Space = Space.WORKSPACE,
        slots: int = 1,
    ) -> Access:
        """The whole buffer as an access; the buffer grows to the largest shape asked for."""
        old = self.buffers.get(name)
        if old is not None:
            shape = tuple(max(a, b) for a, b in zip(old.shape, shape, strict=True))
            nbytes = max(nbytes, old.nbytes)
        self.buffers[name] = Buffer(name, dtype, shape, nbytes, space, slots)
        return Access(name, tuple((0, n) for n in shape))

    def x(self) -> Access:
        return self.space("x", "bf16", (self.rows, self.columns), self.columns * self.rows * 2)

    def y(self) -> Access:
        """x * w of the norm that follows, for the projections behind it."""
        return self.space("y", "bf16", (self.rows, self.columns), self.columns * self.rows * 2)

    def sum_sq(self) -> Access:
        units = ceil_div(self.graph.hidden, UNIT_COLS)
        return self.space("sum_sq", "f32", (units, self.rows), units * self.rows * 4)

    def state(self) -> Access:
        return self.space("state", "u32", (64,), 256)

    def attention_out(self, op: TileOp) -> Access:
        cols = int(op.attrs["heads"]) * int(op.attrs["v_head_dim"])
        return self.space("attention", "bf16", (self.rows, cols), pad(cols) * self.rows * 2)

    def partials(self, splits: int) -> Access:
        nbytes = splits * self.rows * self.columns * 4
        return self.space("partials", "f32", (splits, self.rows, self.columns), nbytes)

    def hidden(self, name: str, width: int, slots: int = 1) -> Access:
        return self.space(name, "bf16", (slots, self.rows, width), slots * self.rows * pad(width) * 2)

    def routing(self) -> Access:
        return self.space("routing", "u32", (1,), 0, Space.CTA)

    def kv(self, op: TileOp) -> Access:
        a = op.attrs
        blocks = self.kv_blocks(int(a["window"]))
        block = block_bytes(int(a["head_dim"]), int(a["v_head_dim"]), str(a["kv"]))
        nbytes = self.graph.max_seqs * int(a["kv_heads"]) * blocks * block
        return self.space(
            f"kv.{op.layer}", "bf16", (self.graph.max_seqs, blocks * KV_BLOCK), nbytes, Space.KV
        )

    def kv_blocks(self, window: int) -> int:
        """Blocks of one sequence: all positions, or a ring that holds the window and the rows of a step."""
        every = ceil_div(self.graph.max_context, KV_BLOCK)
        return min(every, ceil_div(window + self.rows - 1, KV_BLOCK) + 1) if window else every

    def matrix(self, op: TileOp) -> Weight:
        return self.weights[op.weights["matrix"]]

    def gemv(self, op: TileOp, tiles: int, splits: int = 1, slots: int = 1) -> dict[str, int]:
        weight = self.matrix(op)
        if weight.format == "mxfp4" and weight.cols % 32:
            raise self.unfit(
                op,
                f"`{weight.name}` has {weight.cols} columns; MXFP4 scales cover 32 columns each",
                f"{multiples(weight.cols, 32)} columns",
            )
        blocks = ceil_div(weight.cols, BLOCK_COLS)
        few = self.active(op, BASE_ROWS) if slots > 1 else 1
        base = self.stage(op, tiles, splits, few)
        warps_k = warps_along_k(CONSUMERS, base[1])
        group, chunk, experts = base
        if self.rows > BASE_ROWS:
            group, chunk, experts = self.wide_stage(op, tiles, splits, slots, base[1], warps_k)
        return {
            "tiles": tiles,
            "blocks": blocks,
            "splits": splits,
            "group": group,
            "chunk": chunk,
            "act_chunk": self.act_chunk(op, chunk, splits),
            "slots": experts,
            "warps_k": warps_k,
            "tasks": ceil_div(tiles, group) * splits * slots,
        }

    def stage(self, op: TileOp, tiles: int, splits: int, slots: int = 1) -> tuple[int, int, int]:
        """What one ring stage of a main loop holds for up to 8 rows: (m16 tiles, K blocks of each, experts).

        The group is chosen by the bytes, weights and activations, that the busiest CTA fetches: what is
        dealt in smaller pieces is dealt more evenly, but has more stages to wait for. What is left of the
        stage goes to K blocks and, for the down projection, to experts.
        """
        format = self.matrix(op).format
        blocks = self.split_blocks(op, splits)
        owned = ceil_div(self.matrix(op).experts, splits) if op.kind == "experts_down" else 1
        candidates: list[Choice] = [
            {"group": g, "chunk": c, "experts": e, "stage_bytes": g * c * e * BLOCK_BYTES[format]}
            for g in self.groups(op, tiles)
            for c in range(min(MAX_CHUNK, max(1, STAGE_BLOCKS[format] // g), blocks), 0, -1)
            for e in range(self.stage_experts(format, g, c, owned if c == blocks else 1), 0, -1)
        ]
        chosen = self.ctx.choose(
            "tile", op_subject(op), candidates, about="stage", unit="B",
            cost=lambda c: self.stage_cost(op, tiles, splits, slots, c),
            reason="weights and activations that the busiest CTA fetches, and the stages it waits for",
        )  # fmt: skip
        return int(chosen["group"]), int(chosen["chunk"]), int(chosen["experts"])

    def stage_experts(self, format: str, group: int, chunk: int, owned: int) -> int:
        """Experts that fit one stage beside each other."""
        return max(1, min(STAGE_BLOCKS[format] // (group * chunk), MAX_CHUNK // chunk, owned))

    def wide_stage(
        self, op: TileOp, tiles: int, splits: int, slots: int, base_chunk: int, warps_k: int
    ) -> tuple[int, int, int]:
        """The same for more rows: as many tiles as their sums have registers, K chunks as short as their
        activations are long. `warps_k` warps share the K blocks as they do in a program of 8 rows."""
        nt = row_tiles(self.rows)
        weight = self.matrix(op)
        down = op.kind == "experts_down"
        warp_tiles = MAX_WARP_TILES // nt // (2 if down else 1)
        legal = [g for g in self.groups(op, tiles) if ceil_div(g * warps_k, CONSUMERS) <= warp_tiles]
        group = min(legal, key=lambda g: self.bytes_per_cta(op, tiles, splits, slots, g, self.rows))
        blocks = self.split_blocks(op, splits)
        budget, most = max(1, STAGE_BLOCKS[weight.format] // group), max(1, MAX_CHUNK // nt)
        chunks = [c for c in range(min(most, budget, blocks), 0, -1) if deals(c, warps_k, blocks)]
        if not deals(base_chunk, warps_k, blocks):
            chunks = [c for c in chunks if c == base_chunk]
        if not chunks:
            near = [c for c in range(base_chunk, 0, -1) if c & (c - 1) == 0]
            raise self.unfit(
                op,
                f"chunks of {base_chunk} K blocks deal {blocks} blocks to {warps_k} warps in an order that"
                f" {self.rows} rows, with chunks of at most {most}, cannot keep",
                f"chunk {near[0]}",
            )
        experts = 1
        if down and chunks[0] == blocks:
            owned = ceil_div(weight.experts, splits)
            experts = max(1, min(budget // blocks, most // blocks, owned))
        self.ctx.decide(
            "tile", f"{op_subject(op)} stage of {self.rows} rows",
            f"group {group}, chunk {chunks[0]}, experts {experts}",
            f"{act_block_bytes(self.rows)} B of activations per K block;"
            f" {warps_k} warps share K, as with {BASE_ROWS} rows",
        )  # fmt: skip
        return group, chunks[0], experts

    def act_chunk(self, op: TileOp, chunk: int, splits: int) -> int:
        """K blocks of an activation slot: whole chunks, up to ACT_CHUNK."""
        if op.kind == "experts_down":
            return chunk
        return chunk * max(
            1, min(ACT_CHUNK // row_tiles(self.rows) // chunk, ceil_div(self.split_blocks(op, splits), chunk))
        )

    def groups(self, op: TileOp, tiles: int) -> list[int]:
        """Legal numbers of m16 tiles in a group, the largest first: it wins when two cost the same. All of a
        short K is one chunk, and the tiles of a group are then one copy."""
        format, blocks = self.matrix(op).format, ceil_div(self.matrix(op).cols, BLOCK_COLS)
        most = min(MAX_GROUP, STAGE_BLOCKS[format] // min(MIN_CHUNK[format], blocks))
        return [g for g in (8, 4, 2, 1) if g <= most and g < 2 * tiles]

    def split_blocks(self, op: TileOp, splits: int) -> int:
        """K blocks of one matrix that a task goes through."""
        blocks = ceil_div(self.matrix(op).cols, BLOCK_COLS)
        return blocks if op.kind == "experts_down" else ceil_div(blocks, splits)

    def bytes_per_cta(
        self, op: TileOp, tiles: int, splits: int, slots: int, group: int, rows: int = BASE_ROWS
    ) -> int:
        """Weights and activations that the busiest CTA fetches for the op."""
        weight = self.matrix(op)
        blocks = self.split_blocks(op, splits)
        if op.kind == "experts_down":
            blocks *= ceil_div(weight.experts, splits)
        tasks = ceil_div(ceil_div(tiles, group) * splits * slots, self.ctx.target.sms)
        # A CTA loads the activations of a split once if they are of few rows, those of an expert's down
        # projection for every task.
        loads = tasks if op.kind == "experts_down" or rows > BASE_ROWS else 1
        return blocks * (tasks * group * BLOCK_BYTES[weight.format] + loads * act_block_bytes(rows))

    def stage_cost(self, op: TileOp, tiles: int, splits: int, slots: int, choice: Choice) -> int:
        """Bytes of the busiest CTA, and its stages at STAGE_COST."""
        group, chunk, experts = (int(choice[k]) for k in ("group", "chunk", "experts"))
        tasks = ceil_div(ceil_div(tiles, group) * splits * slots, self.ctx.target.sms)
        stages = ceil_div(self.split_blocks(op, splits), chunk)
        if op.kind == "experts_down":
            stages = ceil_div(stages * ceil_div(self.matrix(op).experts, splits), experts)
        return self.bytes_per_cta(op, tiles, splits, slots, group) + tasks * stages * STAGE_COST

    def splits(self, op: TileOp) -> int:
        """K splits of a projection into the residual: enough tasks for every SM, a constant of the
        Program."""
        weight = self.matrix(op)
        most = weight.experts if op.kind == "experts_down" else ceil_div(weight.cols, BLOCK_COLS)
        tiles, sms = ceil_div(weight.rows, TILE_ROWS), self.ctx.target.sms
        if "ranks" in op.attrs:
            why = f"the ranks split K already; {tiles} m16 tiles push their terms themselves"
            self.ctx.choose("tile", op_subject(op), [{"splits": 1}], reason=why, words=lambda c: "no K split")
            return 1

        def cost(splits: int) -> int:
            return min(self.bytes_per_cta(op, tiles, splits, 1, g) for g in self.groups(op, tiles))

        chosen = self.ctx.choose(
            "tile", op_subject(op), [{"splits": n} for n in range(1, min(most, MAX_SPLITS) + 1)],
            cost=lambda c: cost(int(c["splits"])), unit="B", words=lambda c: f"{c['splits']} K splits",
            reason=f"{tiles} m16 tiles for {sms} SMs; partials are added in split order",
        )  # fmt: skip
        return int(chosen["splits"])

    def make(self, op: TileOp, tiles: dict[str, int], reads: list[Access], writes: list[Access]) -> TileOp:
        return dataclasses.replace(op, tiles=tiles, reads=tuple(reads), writes=tuple(writes))

    # ---- ops -----------------------------------------------------------------------------------------------

    def embed(self, op: TileOp) -> TileOp:
        units = ceil_div(self.graph.hidden, UNIT_COLS)
        tiles = {"units": units, "tasks": units * row_tiles(self.rows)}
        return self.make(op, tiles, [self.state()], [self.x(), self.y(), self.sum_sq()])

    def qkv(self, op: TileOp) -> TileOp:
        a = op.attrs
        heads, kv_heads, dim, v_dim, rotary = (
            int(a[k]) for k in ("heads", "kv_heads", "head_dim", "v_head_dim", "rotary")
        )
        if heads % kv_heads:
            most = TILE_ROWS * kv_heads
            raise self.unfit(
                op,
                f"{heads} query heads do not divide into {kv_heads} KV heads",
                f"{multiples(heads, kv_heads) if heads < most else most} query heads",
            )
        if rotary < 2:
            raise self.unfit(
                op,
                f"the rotary size is {rotary}; the kernel rotates at least one pair of each head",
                "rotary size 2",
            )
        if heads // kv_heads > TILE_ROWS:
            enough = next(n for n in range(kv_heads, heads + 1) if heads % n == 0 and heads <= TILE_ROWS * n)
            raise self.unfit(
                op,
                f"{heads} query heads on {kv_heads} KV heads: at most {TILE_ROWS} may share one KV head",
                f"{TILE_ROWS * kv_heads} query heads or {enough} KV heads",
            )
        if v_dim % 2:
            raise self.unfit(
                op,
                f"value head size {v_dim} is odd; two neighbouring values share a word",
                f"value head size {multiples(v_dim, 2)}",
            )
        self.check_head_sizes(op)
        rope_tiles = ceil_div(rotary // 2, 8)
        qk_tiles, v_tiles = rope_tiles + ceil_div(dim - rotary, TILE_ROWS), ceil_div(v_dim, TILE_ROWS)
        tiles = (heads + kv_heads) * qk_tiles + kv_heads * v_tiles
        queries = self.queries(op)
        space = self.gemv(op, tiles) | {
            "rope_tiles": rope_tiles,
            "qk_tiles": qk_tiles,
            "v_tiles": v_tiles,
            "kv_blocks": self.kv_blocks(int(a["window"])),
        }
        return self.make(op, space, [self.y(), self.sum_sq()], [queries, self.kv(op)])

    def check_head_sizes(self, op: TileOp) -> None:
        """Refuse heads whose queries and outputs do not fit the registers of a consumer warp."""
        dim, v_dim, window = (int(op.attrs[k]) for k in ("head_dim", "v_head_dim", "window"))
        need = fragment_registers(dim, v_dim, window, CONSUMERS)
        if need <= MAX_FRAGMENT_REGISTERS:
            return

        def fits(d: int, v: int) -> bool:
            return fragment_registers(d, v, window, CONSUMERS) <= MAX_FRAGMENT_REGISTERS

        values = [n for n in range(16, v_dim, 16) if fits(dim, n)]
        heads = [n for n in range(16, dim, 16) if fits(n, v_dim)]
        legal = [f"{what} size {sizes[-1]}" for what, sizes in (("value", values), ("head", heads)) if sizes]
        raise self.unfit(
            op,
            f"heads of {dim} and values of {v_dim} need {need} registers per thread in attention,"
            f" at most {MAX_FRAGMENT_REGISTERS} fit",
            " or ".join(legal) or "head size 192 and value size 192",
        )

    def attention(self, op: TileOp) -> TileOp:
        kv_heads, window = int(op.attrs["kv_heads"]), int(op.attrs["window"])
        tiles = {"kv_blocks": self.kv_blocks(window)}
        if window:
            tiles |= {"turns": window_turns(window, CONSUMERS), "tasks": self.rows * kv_heads}
            return self.make(op, tiles, [self.queries(op), self.kv(op)], [self.attention_out(op)])
        splits = self.context_splits(op)
        tiles |= {
            "splits": splits,
            "chunk_blocks": CHUNK_BLOCKS,
            "task_rows": task_rows(CONSUMERS),
            "tasks": ceil_div(self.rows, task_rows(CONSUMERS)) * kv_heads * splits,
        }
        return self.make(op, tiles, [self.queries(op), self.kv(op)], [self.split_out(op)])

    def queries(self, op: TileOp) -> Access:
        heads, kv_heads, dim = (int(op.attrs[k]) for k in ("heads", "kv_heads", "head_dim"))
        return self.space("queries", "bf16", (self.rows, heads, dim), self.rows * kv_heads * query_bytes(dim))

    def context_splits(self, op: TileOp) -> int:
        """Splits of the context of a global layer: as many as occupy the SMs in a full step, a power of two,
        the same for any number of rows. More than the context has chunks would stay empty and change no
        bit."""
        tasks = ceil_div(BASE_ROWS, task_rows(CONSUMERS)) * int(op.attrs["kv_heads"])
        chunks = ceil_div(ceil_div(self.graph.max_context, KV_BLOCK), CHUNK_BLOCKS)
        wanted = 1 << (max(2, min(MAX_CONTEXT_SPLITS, self.ctx.target.sms // tasks)).bit_length() - 1)
        chosen = self.ctx.choose(
            "tile",
            Subject("op", tuple(dict.fromkeys((f"layers.{op.layer}.attention", "attention")))),
            [{"splits": n} for n in range(2, max(2, min(MAX_CONTEXT_SPLITS, chunks)) + 1)],
            default={"splits": max(2, min(wanted, chunks))},
            about="splits",
            words=lambda c: f"{c['splits']} for global layers",
            reason=f"constant of the Program: {tasks} tasks per split of a full step for"
            f" {self.ctx.target.sms} SMs, {chunks} chunks of {CHUNK_BLOCKS * KV_BLOCK} positions",
        )
        return int(chosen["splits"])

    def split_out(self, op: TileOp) -> Access:
        kv_heads, width = int(op.attrs["kv_heads"]), partial_bytes(int(op.attrs["v_head_dim"]))
        shape = (self.rows * kv_heads, self.context_splits(op), width // 4)
        return self.space("attention_partials", "f32", shape, shape[0] * shape[1] * width)

    def attention_merge(self, op: TileOp) -> TileOp:
        tiles = {
            "splits": self.context_splits(op),
            "chunk_blocks": CHUNK_BLOCKS,
            "tasks": self.rows * int(op.attrs["kv_heads"]) * ceil_div(int(op.attrs["v_head_dim"]), 8),
        }
        return self.make(op, tiles, [self.split_out(op)], [self.attention_out(op)])

    def project(self, op: TileOp) -> TileOp:
        weight, splits = self.matrix(op), self.partial_splits[op.name]
        if op.attrs["input"] == "attention":
            nbytes = pad(weight.cols) * self.rows * 2
            source = self.space("attention", "bf16", (self.rows, weight.cols), nbytes)
        else:
            source = self.hidden("hidden", weight.cols)
        tiles = self.gemv(op, ceil_div(weight.rows, TILE_ROWS), splits)
        return self.make(op, tiles, [source], [self.term(op, splits)])

    def term(self, op: TileOp, splits: int) -> Access:
        """Where a projection into the residual leaves its sums: for the reduce op of this rank, or of all."""
        if "ranks" not in op.attrs:
            return self.partials(splits)
        ranks, nbytes = int(op.attrs["ranks"]), self.rows * self.columns * 2
        shape = (ranks, self.rows, self.columns)
        return self.space("peer_terms", "bf16", shape, PEER_SLOTS * ranks * nbytes, Space.PEER, PEER_SLOTS)

    def reduce(self, op: TileOp) -> TileOp:
        producer = str(op.attrs["producer"])
        splits = self.partial_splits[f"layers.{op.layer}.{producer}" if op.layer >= 0 else producer]
        units = ceil_div(self.graph.hidden, UNIT_COLS)
        if "ranks" in op.attrs:
            tiles = {"units": units, "tasks": units * row_tiles(self.rows)}
            return self.make(
                op, tiles, [self.term(op, splits), self.x()], [self.x(), self.y(), self.sum_sq()]
            )
        tiles = {"units": units, "splits": splits, "tasks": units * row_tiles(self.rows)}
        return self.make(op, tiles, [self.partials(splits), self.x()], [self.x(), self.y(), self.sum_sq()])

    def router(self, op: TileOp) -> TileOp:
        experts = int(op.attrs["experts"])
        space = self.gemv(op, ceil_div(experts, TILE_ROWS)) | {"pitch": pad(experts, 32)}
        return self.make(op, space, [self.y(), self.sum_sq()], [self.router_logits(experts)])

    def router_logits(self, experts: int) -> Access:
        pitch = pad(experts, 32)
        return self.space("router_logits", "f32", (self.rows, pitch), self.rows * pitch * 4)

    def route(self, op: TileOp) -> TileOp:
        experts, k = int(op.attrs["experts"]), int(op.attrs["k"])
        if not 1 <= k <= min(MAX_TOP_K, experts) or experts > MAX_EXPERTS:
            raise self.unfit(
                op,
                f"top-{k} of {experts} experts: at most {MAX_TOP_K} of {MAX_EXPERTS} are supported",
                f"top-{max(1, min(k, MAX_TOP_K, experts))} of {min(experts, MAX_EXPERTS)}",
            )
        layers = self.graph.layers
        log = self.space("routes", "u32", (layers, self.rows, k), layers * self.rows * k * 4)
        mine = Access("routes", ((op.layer, op.layer + 1), *log.box[1:]))
        return self.make(
            op, {"pitch": pad(experts, 32), "tasks": 0}, [self.router_logits(experts)], [self.routing(), mine]
        )

    def active(self, op: TileOp, rows: int) -> int:
        """Distinct experts that so many rows may choose, at most."""
        return min(int(op.attrs["experts"]), rows * int(op.attrs["k"]))

    def gate_up(self, op: TileOp) -> TileOp:
        width = int(op.attrs["width"])
        return self.make(
            op, self.gemv(op, ceil_div(width, 8)), [self.y(), self.sum_sq()], [self.hidden("hidden", width)]
        )

    def experts_up(self, op: TileOp) -> TileOp:
        width, active = int(op.attrs["width"]), self.active(op, self.rows)
        space = self.gemv(op, ceil_div(width, 8), slots=active)
        return self.make(
            op,
            space,
            [self.y(), self.sum_sq(), self.routing()],
            [self.hidden("expert_hidden", width, active)],
        )

    def experts_down(self, op: TileOp) -> TileOp:
        weight, splits = self.matrix(op), self.partial_splits[op.name]
        space = self.gemv(op, ceil_div(weight.rows, TILE_ROWS), splits)
        return self.make(
            op,
            space,
            [self.hidden("expert_hidden", weight.cols, self.active(op, self.rows)), self.routing()],
            [self.term(op, splits)],
        )

    def head(self, op: TileOp) -> TileOp:
        rows = int(op.attrs["rows"])
        out = self.space("argmax", "f32", (MAX_GRID, self.rows), MAX_GRID * self.rows * 8)
        logits = self.space("logits", "f32", (self.rows, rows), 0, Space.IO)
        return self.make(
            op, self.gemv(op, ceil_div(rows, TILE_ROWS)), [self.y(), self.sum_sq()], [out, logits]
        )

    def argmax_push(self, op: TileOp) -> TileOp:
        out = self.space("argmax", "f32", (MAX_GRID, self.rows), MAX_GRID * self.rows * 8)
        return self.make(op, {"tasks": 1}, [out], [self.peer_argmax(op)])

    def peer_argmax(self, op: TileOp) -> Access:
        ranks = int(op.attrs["ranks"])
        nbytes = PEER_SLOTS * ranks * self.rows * 8
        return self.space("peer_argmax", "f32", (ranks, self.rows), nbytes, Space.PEER, PEER_SLOTS)

    def commit(self, op: TileOp) -> TileOp:
        out = self.space("argmax", "f32", (MAX_GRID, self.rows), MAX_GRID * self.rows * 8)
        tokens = self.space("tokens", "i32", (self.rows,), 0, Space.IO)
        source = self.peer_argmax(op) if "ranks" in op.attrs else out
        return self.make(op, {"tasks": 1}, [source], [self.state(), tokens])
