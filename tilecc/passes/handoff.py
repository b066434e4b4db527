"""Which kinds of hand-off an edge may have, and what each costs: what `edges` chooses from.

| kind | legal | cost |
|---|---|---|
| mbarrier | both ends on the same CTA: shared memory that every CTA recomputes | passed mbarrier |
| counter | the producer arrives on a counter | hand-off among all CTAs, then the load of the data |
| flag | words of 4 or 8 bytes that a lane pushes and others poll (POLLED) | one word, then the rest |
| peer_flag | words that all ranks push | one word over NVLink |

A counter costs the producer a release behind its stores and the consumer a load behind the arrival. Words
that are their own flags need neither, but they order nothing else: what else the consumer needs to be
ordered after is an edge of its own, mostly one that the producer has waited for already.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from tilecc.ir.rows import row_tiles
from tilecc.ir.tile import FLAG_TURNS, STORE_OPS, Access, HandOffKind, Space, TileGraph, TileOp
from tilecc.passes.context import PassContext, edge_subject
from tilecc.target import Target, show

ACTIVATION_BYTES = 96 * 1024
"""What `activation_load` of the target is the cost of."""
POLL_BATCH = 32
"""Words of one lane whose loads are in flight together (poll_words)."""
UNIT_COLS = 64
"""Columns of a unit of the ops that take all rows of some columns (op_vector.cuh)."""


@dataclass(frozen=True)
class Polled:
    """Words that the templates push and poll: bytes of a word, warps of a CTA that poll them."""

    word: int
    warps: int


POLLED: dict[tuple[str, str, str], Polled] = {
    ("project", "reduce", "partials"): Polled(8, 1),
    ("experts_down", "reduce", "partials"): Polled(8, 1),
    ("router", "route", "router_logits"): Polled(4, 6),
}
"""(producer, consumer, buffer). Partial sums: each word is read by the one lane that sums it, which poisons
it again. Router logits: every CTA reads all, so the lane that pushes a word poisons that of the next turn."""


@dataclass(frozen=True)
class Edge:
    """A hand-off to be chosen: `op` reads or overwrites `buffers` after `source`. `payload` bytes of them are
    read by one CTA."""

    source: TileOp
    op: TileOp
    buffers: tuple[str, ...]
    payload: int = 0


@dataclass(frozen=True)
class Kinds:
    """The legal kinds of an edge with their cost in seconds, why the others are not legal, and the reason for
    the cheapest."""

    legal: dict[HandOffKind, float]
    refused: dict[HandOffKind, str]
    reasons: dict[HandOffKind, str]


def kinds_of(
    edge: Edge, spaces: dict[str, Space], target: Target, not_flag: str = "", behind: str = ""
) -> Kinds:
    """What is legal for an edge. `not_flag` says why words as flags are not, if they are not; `behind` names
    the op whose words come after the source is done: then the counter is only looked at."""
    names, source = ", ".join(edge.buffers), edge.source.label
    counter, peer = HandOffKind.COUNTER, HandOffKind.PEER_FLAG
    legal: dict[HandOffKind, float] = {}
    refused: dict[HandOffKind, str] = {}
    reasons: dict[HandOffKind, str] = {}
    if all(spaces[b] is Space.PEER for b in edge.buffers):
        legal[peer] = target.peer_hand_off
        reasons[peer] = f"{source} of every rank writes {names}: pushed words as flags"
        why = f"{names} is written by other ranks"
        refused |= dict.fromkeys((HandOffKind.MBARRIER, counter, HandOffKind.FLAG), why)
        return Kinds(legal, refused, reasons)
    refused[peer] = "no other rank writes it"
    if all(spaces[b] is Space.CTA for b in edge.buffers):
        legal[HandOffKind.MBARRIER] = target.mbarrier_hand_off
        reasons[HandOffKind.MBARRIER] = f"every CTA recomputes {names}: same-CTA mbarrier"
        refused |= dict.fromkeys((counter, HandOffKind.FLAG), f"every CTA has {names} of its own")
        return Kinds(legal, refused, reasons)
    far = f"tiles of {source} lie on all CTAs"
    refused[HandOffKind.MBARRIER] = far
    legal[counter] = target.counter_hand_off + load_seconds(edge.payload, target)
    reasons[counter] = f"{far}, so a same-CTA mbarrier is not legal: epoch counter"
    if edge.payload:
        reasons[counter] += " and the load behind it"
    if behind:
        legal[counter] = target.l2_latency
        reasons[counter] = f"{behind} has waited for it: passed when its words come"
        refused[HandOffKind.FLAG] = f"{names} are ordered, not handed over"
    elif not_flag:
        refused[HandOffKind.FLAG] = not_flag
    else:
        polled = POLLED[edge.source.kind, edge.op.kind, edge.buffers[0]]
        legal[HandOffKind.FLAG] = target.flag_hand_off + poll_seconds(edge.payload, polled, target)
        reasons[HandOffKind.FLAG] = (
            f"{edge.payload} B of {names} per CTA, in words of {polled.word} B that are their own flags"
        )
    return Kinds(legal, refused, reasons)


def load_seconds(nbytes: int, target: Target) -> float:
    """The load behind a counter: at least one trip to L2."""
    if nbytes == 0:
        return 0.0  # nothing is read: the edge orders a write after older accesses
    return max(target.l2_latency, target.activation_load * nbytes / ACTIVATION_BYTES)


def poll_seconds(nbytes: int, polled: Polled, target: Target) -> float:
    """What follows the first word, whose trip is part of the hand-off: one trip per batch of words."""
    words = math.ceil(nbytes / (polled.word * 32 * polled.warps))
    return math.ceil(words / POLL_BATCH) * target.l2_latency if words > 1 else 0.0


def choose_handoff(edge: Edge, kinds: Kinds, ctx: PassContext) -> tuple[HandOffKind, str]:
    """The cheapest legal kind that the schedule allows, and the reason; recorded with the alternatives."""
    names = {kind: kind.name.lower() for kind in HandOffKind}
    cheapest = min(kinds.legal, key=kinds.legal.__getitem__)
    reason = f"{kinds.reasons[cheapest]}, {show(kinds.legal[cheapest], 's')}"
    chosen = ctx.choose(
        "edges", edge_subject(edge.source, edge.op), [{"kind": names[kind]} for kind in kinds.legal],
        cost=lambda c: kinds.legal[HandOffKind[str(c["kind"]).upper()]], unit="s", reason=reason,
        refused=[({"kind": names[kind]}, why) for kind, why in kinds.refused.items()],
    )  # fmt: skip
    kind = HandOffKind[str(chosen["kind"]).upper()]
    if kind is not cheapest:
        reason = f"{kinds.reasons[kind]}, {show(kinds.legal[kind], 's')}"
    return kind, reason


# ------------------------------------------------------------------------------------------- words as flags


def payload(op: TileOp, buffers: tuple[str, ...], graph: TileGraph) -> int:
    """Bytes of `buffers` that one CTA reads for a task of `op`: a unit of columns, one split of K, a row and
    its KV head, or all."""
    total = 0
    for buffer in (b for b in graph.buffers if b.name in buffers):
        if buffer.space in (Space.KV, Space.PEER):
            continue  # keys are fetched ahead of the hand-off, pushed words by the exchange
        boxes = [a.box for a in op.reads if a.buffer == buffer.name]
        size = buffer.nbytes // buffer.slots // max(1, math.prod(buffer.shape))
        nbytes = sum(size * math.prod(hi - lo for lo, hi in box) for box in boxes)
        if "units" in op.tiles and buffer.shape[-1] >= UNIT_COLS:
            nbytes = nbytes * UNIT_COLS // buffer.shape[-1] // row_tiles(graph.max_rows)
        elif op.kind in STORE_OPS:
            nbytes //= op.tiles["tasks"]
        elif op.kind in ("attention", "experts_down"):
            nbytes //= buffer.shape[0]
        elif op.kind == "project":
            nbytes //= op.tiles["splits"]
        total += nbytes
    return total


def why_not_words(graph: TileGraph, source: TileOp, op: TileOp, buffers: tuple[str, ...]) -> str:
    """Why the data of an edge cannot be its own flag; empty if it can. All instances of the two labels are
    asked: they share their words."""
    if len(buffers) > 1:
        return f"{op.kind} takes several buffers of {source.kind} with one wait"
    if (source.kind, op.kind, buffers[0]) not in POLLED:
        return f"the template of {op.kind} loads {buffers[0]} of {source.kind} as a whole"
    (buffer,) = buffers
    for first, pushed in enumerate(graph.ops):
        if pushed.label != source.label:
            continue
        readers = []
        for other in graph.ops[first + 1 :]:
            if any(a.buffer == buffer for a in other.reads):
                readers.append(other)
            if any(a.buffer == buffer for a in other.writes):
                break
        if [o.label for o in readers] != [op.label]:
            names = ", ".join(dict.fromkeys(o.label for o in readers)) or "nothing"
            return f"what {pushed.name} pushes is read by {names}"
    takers = [o for o in graph.ops if o.label == op.label and any(a.buffer == buffer for a in o.reads)]
    if len(takers) != sum(o.label == source.label for o in graph.ops):
        return f"{op.label} reads {buffer} of other ops, too"
    return ""


def with_words(graph: TileGraph, pairs: dict[tuple[str, str], str]) -> TileGraph:
    """The graph in which each pair of labels (producer, consumer) hands over through words of its own instead
    of the buffer named: FLAG_TURNS slots, as large as the producer fills them."""
    ops, buffers = list(graph.ops), {b.name: b for b in graph.buffers}
    for (source, reader), name in pairs.items():
        old, words = buffers[name], f"{source}_words"
        kinds: set[int] = set()
        splits = {op.tiles["splits"] for op in ops if op.label == source}
        # The partial sums of other producers may be of more splits.
        shape = (max(splits), *old.shape[1:]) if name == "partials" else old.shape
        whole = Access(words, tuple((0, n) for n in shape))
        for i, op in enumerate(ops):
            if op.label == source:
                ops[i] = op = dataclasses.replace(op, writes=_exchanged(op.writes, name, whole))
                kinds |= {p.word for (kind, _, b), p in POLLED.items() if kind == op.kind and b == name}
            if op.label == reader:
                ops[i] = dataclasses.replace(op, reads=_exchanged(op.reads, name, whole))
        nbytes = FLAG_TURNS * math.prod(shape) * (old.nbytes // math.prod(old.shape))
        (word,) = kinds
        buffers[words] = dataclasses.replace(
            old, name=words, shape=shape, nbytes=nbytes, slots=FLAG_TURNS, word=word
        )
    used = {a.buffer for op in ops for a in (*op.reads, *op.writes)} | {"counters"}
    kept = tuple(b for b in buffers.values() if b.name in used or not pairs)
    return dataclasses.replace(graph, ops=tuple(ops), buffers=kept)


def _exchanged(accesses: tuple[Access, ...], old: str, new: Access) -> tuple[Access, ...]:
    return tuple(new if a.buffer == old else a for a in accesses)
