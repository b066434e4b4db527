"""edges: derives the hand-offs of the step from overlapping boxes, removes the transitive ones, chooses a
kind for each.

Two steps are laid out one after the other, so that what an op must wait for across the step boundary is
found by the same rule as everything else. Two accesses conflict if their boxes overlap and one of them
writes (read after write, write after read, write after write). An edge is dropped when another path already
orders its ends.

A counter says that every CTA has finished an op and all before it, a word that is its own flag says nothing
but that it is there. So an edge over such words implies no other, and what the consumer needs to be ordered
after besides is an edge of its own.

Buffers that the ranks push into (Space.PEER) have a slot per epoch: what overwrites a slot is ordered by the
exchanges in between, so only a read of what was just pushed makes an edge. Its flags are the pushed words
themselves, which order nothing else: such an edge implies no other.

    qkv writes `queries`, attention reads `queries`
      =>  attention: HandOff("layers.3.qkv", COUNTER, ["queries"], ...)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tilecc.ir.tile import STORE_OPS, Access, HandOff, HandOffKind, Space, TileGraph, TileOp
from tilecc.passes.context import PassContext
from tilecc.passes.handoff import Edge, choose_handoff, kinds_of, payload, why_not_words, with_words


@dataclass(frozen=True)
class Derived:
    """A hand-off before its kind is chosen: from op `source` of two steps in a row, over `buffers`. `words`:
    the buffer's words are their own flags. `behind`: the op whose words come only after `source` is done."""

    source: int
    buffers: tuple[str, ...]
    words: bool = False
    behind: str = ""


def edges(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `hand_offs` of every op; where words as flags are chosen, a buffer of such words takes the place
    of what it hands over."""
    count = len(graph.ops)
    planned: dict[tuple[str, str], tuple[HandOffKind, str]] = {}
    words: dict[tuple[str, str], str] = {}
    for index, found in enumerate(_derive(graph)):
        for d in found:
            source, op = graph.ops[d.source % count], graph.ops[index]
            pair = (source.label, op.label)
            if d.source < count or pair in planned or why_not_words(graph, source, op, d.buffers):
                continue
            edge = Edge(source, op, d.buffers, payload(op, d.buffers, graph))
            planned[pair] = choose_handoff(edge, kinds_of(edge, _spaces(graph), ctx.target), ctx)
            if planned[pair][0] is HandOffKind.FLAG:
                words[pair] = d.buffers[0]
    made = with_words(graph, words)
    ops = list(made.ops)
    for index, found in enumerate(_derive(made)):
        op, hand_offs = ops[index], []
        for d in found:
            source = made.ops[d.source % count]
            pair = (source.label, op.label)
            if d.words or (pair in planned and d.source >= count and not d.behind):
                kind, reason = planned[pair]
            else:
                kind, reason = _choose(made, d, source, op, ctx)
            hand_offs.append(HandOff(source.name, kind, d.buffers, reason, d.source < count))
        ops[index] = dataclasses.replace(op, hand_offs=tuple(hand_offs))
    return dataclasses.replace(made, ops=tuple(ops))


def _choose(
    graph: TileGraph, d: Derived, source: TileOp, op: TileOp, ctx: PassContext
) -> tuple[HandOffKind, str]:
    """Kind and reason of a hand-off that words as flags cannot make."""
    why_not = why_not_words(graph, source, op, d.buffers) or "it crosses the step"
    edge = Edge(source, op, d.buffers, 0 if d.behind else payload(op, d.buffers, graph))
    return choose_handoff(edge, kinds_of(edge, _spaces(graph), ctx.target, why_not, d.behind), ctx)


def _spaces(graph: TileGraph) -> dict[str, Space]:
    return {b.name: b.space for b in graph.buffers}


def _derive(graph: TileGraph) -> list[list[Derived]]:
    """The hand-offs that each op of a step needs, transitive ones left out.

    A counter says of all CTAs that they have finished an op and everything before it in the step, since each
    arrives once per op and in order. Words as flags say nothing but that they are there.
    """
    count, spaces = len(graph.ops), _spaces(graph)
    peer = {name for name, space in spaces.items() if space is Space.PEER}
    words = {b.name for b in graph.buffers if b.word}
    conflicts = _conflicts(graph.ops, 2, peer)
    before: list[int] = []  # ops done on the same CTA when an op starts, as bits
    everywhere: list[int] = []  # ops done on all CTAs: an mbarrier says nothing about other CTAs
    known = 0  # what the store warps have seen done on all CTAs
    counters: list[list[int]] = []  # the counters that each op waits for
    pushes: dict[str, list[int]] = {name: [] for name in words}
    found: list[list[Derived]] = []
    for index in range(2 * count):
        op = graph.ops[index % count]
        local = far = known if op.kind in STORE_OPS else 0
        kept: list[Derived] = []
        needs = {source: set(buffers) for source, buffers in conflicts[index].items()}
        polled = [a.buffer for a in op.reads if a.buffer in words]
        for name in polled:
            # The words of this turn come by themselves; that they were poisoned before is the push before.
            *older, last = pushes[name]
            needs[last].discard(name)
            kept.append(Derived(last, (name,), words=True))
            for previous in older[-1:]:
                needs.setdefault(previous, set()).add(name)
        waits: list[int] = []
        for name in polled if op.kind not in STORE_OPS else ():
            # What the producer waited for is passed before its words come, and what follows may count on it.
            push = pushes[name][-1]
            for source in counters[push]:
                if not far >> source & 1:
                    kept.append(Derived(source, (name,), behind=graph.ops[push % count].label))
                    waits.append(source)
                    far |= (2 << source) - 1
                    local |= far
        for source in sorted(needs, reverse=True):
            buffers = tuple(sorted(needs[source]))
            if peer.issuperset(buffers):
                if buffers:
                    kept.append(Derived(source, buffers))
                continue
            in_cta = _in_cta(buffers, spaces)
            if (local if in_cta else far) >> source & 1:
                continue
            kept.append(Derived(source, buffers))
            local |= before[source] | 1 << source
            if in_cta:
                far |= everywhere[source]
            else:
                waits.append(source)
                far |= (2 << source) - 1
                local |= far
        before.append(local)
        everywhere.append(far)
        counters.append(waits)
        known |= far
        for name in {a.buffer for a in op.writes} & words:
            pushes[name].append(index)
        found.append(sorted(kept, key=lambda d: d.source))
    return found[count:]


def sources(graph: TileGraph) -> list[set[int]]:
    """For each op the earlier ops of the step that it must come after."""
    peer = {b.name for b in graph.buffers if b.space is Space.PEER}
    return [set(found) for found in _conflicts(graph.ops, 1, peer)]


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
