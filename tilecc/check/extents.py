"""Extents: what the symbols of scripts are worth, and the walk through a script.

    tasks    of the op on this CTA                  any       1 if there is one
    first    1 in the first task                    warp0     1 on warp 0 of the role
    chunks   K chunks of a task                     experts   of a split of the down projection, in turns of
    rows     of a task of a global layer                      as many as share a stage
    blocks   KV blocks of such a task               stop      1 if the launch has stop ids
    rounds   of a sliding layer's window            early     its blocks of keys that come before the queries
    tiles    row tiles of the step
    span     blocks of a round                      lead      those of them that came early
    late     those that did not                     opening   1 in the first round
    turn     1 on the warp whose turn the block is  held      activation slots of a task
    pieces   K chunks in such a slot                slot      the number of that slot
    fresh    1 in a task that does not find its     closing   1 in a task that leaves none to the next task
             activations in the ring
    cta=1    1 on CTA 1; so cta!=, layer=, layer!=

`Values` assigns small numbers, for the checker; `Launch` has those of a real launch, for the test that
compares the protocols with what the emulator counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tilecc.check.sync import Do, OpSync, Statement
from tilecc.ir.attention import KV_BLOCK
from tilecc.ir.rows import TILE_ROWS


@dataclass(slots=True)
class Frame:
    """Where a warp is in a script: the op's row of the step, the task, and the loops around."""

    op: OpSync
    layer: int
    step: int
    cta: int
    warp: int
    warps: int
    tasks: range = range(0)
    task: int = 0
    nth: int = 0
    round: int = 0
    block: int = 0
    slot: int = 0


class Extents(Protocol):
    """An assignment of all symbols."""

    def count(self, op: OpSync, layer: int, step: int = 0) -> int:
        """Tasks of the op on all CTAs of a rank."""

    def dealt(self, op: OpSync, number: int, layer: int, cta: int, step: int = 0) -> range:
        """Tasks of the op on a CTA; `number` is the op's place among the classes."""

    def trips(self, over: str, f: Frame) -> int:
        """How often a loop over a symbol other than "tasks" runs."""


def walk(body: tuple[Statement, ...], f: Frame, extents: Extents) -> Iterator[Do]:
    """The statements of a script in the order in which one warp runs them; `f` follows."""
    for s in body:
        if isinstance(s, Do):
            yield s
        elif s.over == "tasks":
            for nth, task in enumerate(f.tasks):
                f.nth, f.task = nth, task
                yield from walk(s.body, f, extents)
        else:
            start = extents.trips("lead", f) if s.over == "late" else 0
            for i in range(extents.trips(s.over, f)):
                if s.over == "rounds":
                    f.round = i
                elif s.over == "held":
                    f.slot = i
                elif s.over in ("lead", "late", "span"):
                    f.block = start + i
                yield from walk(s.body, f, extents)


def _common(over: str, f: Frame) -> int | None:
    """Symbols that follow from the frame alone."""
    if over == "any":
        return min(len(f.tasks), 1)
    if over == "first":
        return int(f.nth == 0)
    if over == "warp0":
        return int(f.warp == 0)
    name, sign, number = over.partition("=")
    if sign:
        at = f.cta if name.startswith("cta") else f.layer
        return int((at == int(number)) != name.endswith("!"))
    if over == "opening":
        return int(f.round == 0)
    if over == "slot":
        return f.slot
    if over == "turn":
        return int(f.block % f.warps == f.warp)
    return None


def _shared(over: str, f: Frame, group: int) -> int:
    """`fresh` and `closing`: neighbouring tasks of a CTA share resident activations if they are of one split,
    and so of one group of so many."""
    if not f.op.shape["resident"]:
        return 1
    other = f.nth - 1 if over == "fresh" else f.nth + 1
    if not 0 <= other < len(f.tasks):
        return 1
    return int(f.op.shape["splits"] > 1 and f.tasks[other] // group != f.task // group)


def _window(over: str, f: Frame, blocks: int, early: int) -> int | None:
    """Symbols of a sliding layer's task of so many blocks (WindowAttention::round in op_attention.cuh)."""
    size = f.op.shape["round"]
    span = min(size, blocks - f.round * size)
    lead = early if f.round == 0 else 0
    return {
        "rounds": -(-blocks // size), "early": early, "span": span, "lead": lead, "late": span - lead,
    }.get(over)  # fmt: skip


@dataclass(frozen=True)
class Values:
    """A small assignment: CTAs, steps, and how often loops run. `tasks`, `chunks`, `rows`, `blocks` and
    `early` cap the counts of an op; `experts` is the number of active ones."""

    grid: int
    tasks: int
    chunks: int
    experts: int
    blocks: int
    rows: int = 1
    early: int = 0
    row_tiles: int = 2
    steps: int = 2
    ranks: int = 1
    stop: bool = False
    varying: bool = False
    """The first step and every second one after it have no active experts and no tasks of attention."""
    spread: bool = True
    """Neighbouring ops start on different CTAs; else all start on CTA 0, and the last CTAs have no task at
    all."""

    def __str__(self) -> str:
        return (
            (f"{self.ranks} ranks of " if self.ranks > 1 else "")
            + f"{self.grid} CTAs, up to {self.tasks} tasks, {self.chunks} chunks, {self.experts} active"
            f" experts, {self.blocks} KV blocks"
            + (f", {self.early} of them early" if self.early else "")
            + (", stop ids" if self.stop else "")
            + (", none of these every other step" if self.varying else "")
            + ("" if self.spread else ", all tasks on the first CTAs")
        )

    def count(self, op: OpSync, layer: int, step: int = 0) -> int:
        count = min(op.tasks, self.tasks)
        if op.tasks_over == "experts":
            return count * self.active(step)
        return 0 if op.kind == "attention" and self.varying and step % 2 == 0 else count

    def dealt(self, op: OpSync, number: int, layer: int, cta: int, step: int = 0) -> range:
        """Where the first task lies depends on the number of CTAs: neighbours start on different ones."""
        count = self.count(op, layer, step)
        first = cta if op.kind == "commit" else (cta - (number + 1) * self.spread) % self.grid
        return range(first, count, self.grid)

    def active(self, step: int) -> int:
        """Active experts of a step."""
        return 0 if self.varying and step % 2 == 0 else self.experts

    def trips(self, over: str, f: Frame) -> int:
        found = _common(over, f)
        if found is not None:
            return found
        if over == "stop":
            return int(self.stop)
        if over == "chunks":
            return min(f.op.chunks, self.chunks)
        if over == "held":
            return min(f.op.shape["held"], self.chunks)
        if over == "pieces":
            return min(f.op.shape["act_chunk"] // f.op.shape["chunk"], 2)
        if over in ("fresh", "closing"):
            return _shared(over, f, 2)
        if over == "tiles":
            return min(f.op.shape["row_tiles"], self.row_tiles)
        if over in ("experts", "rows", "blocks"):
            return {"experts": self.active(f.step), "rows": self.rows, "blocks": self.blocks}[over]
        blocks = max(1, min(self.blocks, f.op.shape["max_blocks"]))
        early = min(self.early, blocks - 1, f.op.shape["max_early"])
        found = _window(over, f, blocks, early)
        assert found is not None, over
        return found


@dataclass(frozen=True)
class Launch:
    """A step as it runs: `rows` are (position, sequence), `experts` the active ids of each layer."""

    grid: int
    rows: tuple[tuple[int, int], ...]
    experts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    steps: int = 1
    ranks: int = 1
    stop: bool = False

    def dealt(self, op: OpSync, number: int, layer: int, cta: int, step: int = 0) -> range:
        rotation = 0 if op.kind == "commit" else op.shape.get("rotation", 0)
        return range((cta - rotation) % self.grid, self.count(op, layer, step), self.grid)

    def count(self, op: OpSync, layer: int, step: int = 0) -> int:
        s, n = op.shape, len(self.rows)
        count = 1 if op.kind == "commit" else op.tasks
        if op.kind == "experts_up":
            count = s["groups"] * len(self.experts[layer])
        elif op.kind == "attention_merge":
            count = op.tasks // s["max_rows"] * n
        elif op.kind == "attention" and "splits" not in s:
            count = s["kv_heads"] * n
        elif op.kind == "attention":
            reached = max(position for position, _ in self.rows) // (KV_BLOCK * s["chunk_blocks"]) + 1
            count = min(reached, s["splits"]) * s["kv_heads"] * self.row_groups(s)
        return count

    def row_groups(self, s: dict[str, int]) -> int:
        return -(-len(self.rows) // s["task_rows"])

    def trips(self, over: str, f: Frame) -> int:
        found = _common(over, f)
        if found is not None:
            return found
        s = f.op.shape
        if over == "stop":
            return int(self.stop)
        if over == "chunks":
            return self.chunks(f)
        if over == "held":
            return -(-self.task_blocks(f) // s["act_chunk"])
        if over == "pieces":
            return -(-min(s["act_chunk"], self.task_blocks(f) - f.slot * s["act_chunk"]) // s["chunk"])
        if over in ("fresh", "closing"):
            return _shared(over, f, s["groups"])
        if over == "tiles":
            return -(-len(self.rows) // TILE_ROWS)
        if over == "experts":
            split, experts, splits = f.task // s["groups"], s["experts"], s["splits"]
            lo, hi = split * experts // splits, (split + 1) * experts // splits
            return -(-sum(lo <= e < hi for e in self.experts[f.layer]) // s["slots"])
        if over in ("rows", "blocks"):
            rows = self.rows_of(f)
            return len(rows) if over == "rows" else self.blocks(f, rows)
        position = self.rows[f.task // s["kv_heads"]][0]
        first, last = max(0, position - s["window"] + 1) // KV_BLOCK, position // KV_BLOCK
        old = max(0, position - (s["max_rows"] - 1)) // KV_BLOCK
        found = _window(over, f, last - first + 1, min(max(0, old - first), s["max_early"]))
        assert found is not None, over
        return found

    def chunks(self, f: Frame) -> int:
        """K chunks of a task."""
        return -(-self.task_blocks(f) // f.op.shape["chunk"])

    def task_blocks(self, f: Frame) -> int:
        """K blocks of a task: the last split may have fewer than the others."""
        s = f.op.shape
        if f.op.kind == "experts_down":
            return s["blocks"]
        split = 0 if f.op.kind == "experts_up" else f.task // s["groups"]
        per = -(-s["blocks"] // s["splits"])
        return max(0, min(per, s["blocks"] - split * per))

    def rows_of(self, f: Frame) -> tuple[tuple[int, int], ...]:
        s = f.op.shape
        first = f.task % self.row_groups(s) * s["task_rows"]
        return self.rows[first : first + s["task_rows"]]

    def blocks(self, f: Frame, rows: tuple[tuple[int, int], ...]) -> int:
        """Slots for the blocks of the task's split that some row sees (SplitAttention::for_each_slot)."""
        s = f.op.shape
        split = f.task // self.row_groups(s) // s["kv_heads"]
        count = 0
        for seq in dict.fromkeys(seq for _, seq in rows):
            last = max(position for position, of in rows if of == seq) // KV_BLOCK
            for first in range(0, last + 1, s["chunk_blocks"]):
                if first // s["chunk_blocks"] % s["splits"] == split:
                    count += -(-min(s["chunk_blocks"], last + 1 - first) // s["slot_blocks"])
        return count
