"""Control-flow graph and loops of a SASS listing, and the path that a loop takes in its steady state.

Blocks end at labels and control instructions. A loop is the natural loop of its back edges: edges to a block
that dominates their source. Calls continue after the call; what they call is no part of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from tilecc.build.sass import Instruction, Listing

ENDS = {"BRA", "BRX", "BRXU", "JMP", "JMX", "RET", "EXIT", "BREAK", "CALL", "BSYNC", "WARPSYNC", "KILL"}


@dataclass(frozen=True)
class Block:
    """Instructions [first, end) of the listing, straight-line."""

    first: int
    end: int


@dataclass(frozen=True)
class Loop:
    """A natural loop: header block and all blocks, by number."""

    header: int
    blocks: frozenset[int]


@dataclass(frozen=True)
class Path:
    """One iteration: the instructions executed, and the headers of inner loops on the way (counted once)."""

    instructions: tuple[Instruction, ...]
    inner_loops: tuple[int, ...]


class FlowGraph:
    """Blocks of a listing, the edges between them, and its loops."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        code = listing.instructions
        at = {i.offset: n for n, i in enumerate(code)}
        starts = {0} | {at[offset] for offset in listing.labels.values() if offset in at}
        starts |= {n + 1 for n, i in enumerate(code) if i.base in ENDS and n + 1 < len(code)}
        firsts = sorted(starts)
        self.blocks = [Block(a, b) for a, b in zip(firsts, [*firsts[1:], len(code)], strict=True)]
        number = {block.first: n for n, block in enumerate(self.blocks)}
        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.graph.add_nodes_from(range(len(self.blocks)))
        for n, block in enumerate(self.blocks):
            last = code[block.end - 1]
            for offset in _targets(last, listing.labels):
                if offset in at:
                    self.graph.add_edge(n, number[at[offset]])
            if _falls_through(last) and block.end in number:
                self.graph.add_edge(n, number[block.end])

    def code(self, block: int) -> list[Instruction]:
        """Instructions of a block."""
        b = self.blocks[block]
        return self.listing.instructions[b.first : b.end]

    def loop_code(self, loop: Loop) -> list[Instruction]:
        """Instructions of all blocks of a loop, in address order."""
        return [i for b in sorted(loop.blocks) for i in self.code(b)]

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """All natural loops, in address order of their headers; loops that share a header are one."""
        reached = set(nx.descendants(self.graph, 0)) | {0}
        graph = self.graph.subgraph(reached)
        parent = nx.immediate_dominators(graph, 0)
        bodies: dict[int, set[int]] = {}
        for source, header in graph.edges:
            if not _dominates(parent, header, source):
                continue
            body = bodies.setdefault(header, {header})
            work = [source]
            while work:
                block = work.pop()
                if block not in body:
                    body.add(block)
                    work += [p for p in graph.predecessors(block)]
        return tuple(Loop(h, frozenset(b)) for h, b in sorted(bodies.items()))

    def steady_path(self, loop: Loop) -> Path:
        """The iteration with the most tensor (else FP32 multiply) instructions and, among these, the fewest
        others.

        That is the full chunk with every wait satisfied at once: waits that succeed skip their spin loop, and
        the watchdog behind it. Inner loops that cannot be skipped are counted once and named.
        """
        inside = self.graph.subgraph(loop.blocks)
        back = {(s, one.header) for one in self.loops if one.blocks <= loop.blocks for s in one.blocks}
        forward: nx.DiGraph[int] = nx.DiGraph()
        forward.add_nodes_from(loop.blocks)
        forward.add_edges_from(e for e in inside.edges if e not in back)
        work = {b: _worth(self.code(b)) for b in loop.blocks}
        best: dict[int, tuple[int, int]] = {loop.header: work[loop.header]}
        before: dict[int, int] = {}
        for block in nx.topological_sort(forward):
            if block not in best:
                continue
            for after in forward.successors(block):
                value = (best[block][0] + work[after][0], best[block][1] + work[after][1])
                if after not in best or value > best[after]:
                    best[after], before[after] = value, block
        latches = [b for b in loop.blocks if b in best and self.graph.has_edge(b, loop.header)]
        block = max(latches, key=lambda b: (best[b], -b))
        way = [block]
        while way[-1] != loop.header:
            way.append(before[way[-1]])
        way.reverse()
        inner = {one.header for one in self.loops if one.blocks < loop.blocks and one.header != loop.header}
        return Path(tuple(i for b in way for i in self.code(b)), tuple(b for b in way if b in inner))


def _worth(code: list[Instruction]) -> tuple[int, int]:
    """(products, -instructions): tensor instructions count most, FP32 multiply-adds where there are none."""
    products = sum(1000 if i.pipe == "tensor" else i.base == "FFMA" for i in code)
    return products, -len(code)


def _dominates(parent: dict[int, int], a: int, b: int) -> bool:
    while b != a:
        up = parent.get(b)
        if up is None or up == b:
            return False
        b = up
    return True


def _conditional(i: Instruction) -> bool:
    """Whether a branch may fall through: a predicate before it or among its operands, or BRA.DIV."""
    if i.predicate not in ("", "@PT", "@UPT"):
        return True
    words = [w.strip() for w in i.operands.split("`")[0].split(",")]
    return any(w.lstrip("!").startswith(("P", "UP", "UR")) and w not in ("PT", "UPT") for w in words if w)


def _targets(i: Instruction, labels: dict[str, int]) -> list[int]:
    if i.base not in ("BRA", "JMP", "WARPSYNC"):
        return []
    return [labels[i.target]] if i.target in labels else []


def _falls_through(i: Instruction) -> bool:
    if i.base in ("BRA", "JMP", "EXIT", "RET", "BRX", "JMX", "BRXU", "KILL"):
        return _conditional(i)
    return True
