"""edges: derives the hand-offs of the step from overlapping boxes, removes the transitive ones, chooses a
kind for each.

Two steps are laid out one after the other, so that what an op must wait for across the step boundary is
found by the same rule as everything else. Two accesses conflict if their boxes overlap and one of them
writes (read after write, write after read, write after write). An edge is dropped when another path already
orders its ends.

Buffers that the ranks push into (Space.PEER) have a slot per epoch: what overwrites a slot is ordered by the
exchanges in between, so only a read of what was just pushed makes an edge. Its flags are the pushed words
themselves, which order nothing else: such an edge implies no other.

    qkv writes `queries`, attention reads `queries`
      =>  attention: HandOff("layers.3.qkv", COUNTER, ["queries"], ...)
"""

from __future__ import annotations

import dataclasses

from tilecc.ir.tile import Access, HandOff, HandOffKind, Space, TileGraph, TileOp
from tilecc.passes.context import PassContext, edge_subject
from tilecc.target import show


def edges(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `hand_offs` of every op."""
    count = len(graph.ops)
    spaces = {b.name: b.space for b in graph.buffers}
    peer = {name for name, space in spaces.items() if space is Space.PEER}
    conflicts = _conflicts(graph.ops, 2, peer)
    before: list[int] = []  # ops done on the same CTA when an op starts, as bits
    everywhere: list[int] = []  # ops done on all CTAs: an mbarrier says nothing about other CTAs
    ops: list[TileOp] = list(graph.ops)
    for index in range(2 * count):
        local = far = 0
        kept: list[tuple[int, tuple[str, ...]]] = []
        for source in sorted(conflicts[index], reverse=True):
            buffers = tuple(sorted(conflicts[index][source]))
            if peer.issuperset(buffers):
                kept.append((source, buffers))
                continue
            in_cta = _in_cta(buffers, spaces)
            if not (local if in_cta else far) >> source & 1:
                kept.append((source, buffers))
                local |= before[source] | 1 << source
                far |= everywhere[source] if in_cta else before[source] | 1 << source
        before.append(local)
        everywhere.append(far)
        if index >= count:
            op = graph.ops[index - count]
            hand_offs = tuple(
                _hand_off(graph.ops[s % count], op, b, s < count, spaces, ctx) for s, b in sorted(kept)
            )
            ops[index - count] = dataclasses.replace(op, hand_offs=hand_offs)
    return dataclasses.replace(graph, ops=tuple(ops))


def _conflicts(ops: tuple[TileOp, ...], steps: int, peer: set[str]) -> list[dict[int, set[str]]]:
    """For each op of each step: the earlier ops it conflicts with, and over which buffers.

    A write that covers older accesses entirely stands for them: they are ordered before it already.
    """
    live: dict[str, list[tuple[int, Access, bool]]] = {}
    found: list[dict[int, set[str]]] = []
    for index in range(steps * len(ops)):
        op = ops[index % len(ops)]
        mine: dict[int, set[str]] = {}
        for access, writes in [(a, False) for a in op.reads] + [(a, True) for a in op.writes]:
            if writes and access.buffer in peer:
                continue
            for source, other, wrote in live.get(access.buffer, []):
                if (wrote or writes) and source != index and overlap(access, other):
                    mine.setdefault(source, set()).add(access.buffer)
        for access, writes in [(a, False) for a in op.reads] + [(a, True) for a in op.writes]:
            old = live.get(access.buffer, [])
            if writes:
                old = [(s, a, w) for s, a, w in old if s == index or not covers(access, a)]
            live[access.buffer] = [*old, (index, access, writes)]
        found.append(mine)
    return found


def _in_cta(buffers: tuple[str, ...], spaces: dict[str, Space]) -> bool:
    """Whether a same-CTA mbarrier is enough."""
    return all(spaces[b] is Space.CTA for b in buffers)


def overlap(a: Access, b: Access) -> bool:
    """Whether two boxes of one buffer share an element."""
    return all(
        lo < other_hi and other_lo < hi for (lo, hi), (other_lo, other_hi) in zip(a.box, b.box, strict=True)
    )


def covers(a: Access, b: Access) -> bool:
    """Whether box `a` contains box `b`."""
    return all(
        lo <= other_lo and other_hi <= hi for (lo, hi), (other_lo, other_hi) in zip(a.box, b.box, strict=True)
    )


def _hand_off(
    source: TileOp,
    op: TileOp,
    buffers: tuple[str, ...],
    previous: bool,
    spaces: dict[str, Space],
    ctx: PassContext,
) -> HandOff:
    target, names = ctx.target, ", ".join(buffers)
    far = f"tiles of {source.label} lie on all CTAs"
    if all(spaces[b] is Space.PEER for b in buffers):
        legal = {HandOffKind.PEER_FLAG: target.peer_hand_off}
        reason = f"{source.label} of every rank writes {names}: pushed words as flags"
        why_not = f"{names} is written by other ranks"
    elif _in_cta(buffers, spaces):
        legal = {HandOffKind.MBARRIER: target.mbarrier_hand_off}
        reason = f"every CTA recomputes {names}: same-CTA mbarrier"
        why_not = f"every CTA has {names} of its own"
    else:
        legal = {HandOffKind.COUNTER: target.counter_hand_off}
        reason = f"{far}, so a same-CTA mbarrier is not legal: epoch counter"
        why_not = far
    reason = f"{reason}, {show(min(legal.values()), 's')}"
    chosen = ctx.choose(
        "edges", edge_subject(source, op), [{"kind": kind.name.lower()} for kind in legal],
        cost=lambda c: legal[HandOffKind[str(c["kind"]).upper()]], unit="s", reason=reason,
        refused=[({"kind": kind.name.lower()}, why_not) for kind in HandOffKind if kind not in legal],
    )  # fmt: skip
    return HandOff(source.name, HandOffKind[str(chosen["kind"]).upper()], buffers, reason, previous)
