"""order: the sequence of the ops of a layer. Ops stay in the order of the model unless the schedule asks for
another one; what hands data over still comes first.

    s.order("router", "o_proj")  =>  in each layer `router` before `o_proj`, if no chain of ops that touch the
                                     same data leads from `o_proj` to `router`

The hand-offs, which `edges` derives for the sequence chosen here, order every pair of ops that touch the same
data, so any sequence that keeps those pairs computes the same bits.
"""

from __future__ import annotations

import dataclasses
import itertools

import networkx as nx

from tilecc.diag import Diagnostic, Span
from tilecc.diag.model import nearest
from tilecc.ir.tile import TileGraph, TileOp
from tilecc.passes.context import PassContext
from tilecc.passes.edges import sources


def order(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Reorder the ops of each layer; the graph itself without a request."""
    wanted = ctx.schedule.before if ctx.schedule else []
    if not wanted:
        return graph
    labels = {op.label for op in graph.ops}
    known = []
    for first, second, span in wanted:
        lacking = [name for name in (first, second) if name not in labels]
        for name in lacking:
            help = nearest(name, sorted(labels))
            ctx.note(
                Diagnostic("TC0711", f"this program has no op `{name}`", span, (), (help,) if help else ())
            )
        if not lacking:
            known.append((first, second, span))
    flow: nx.DiGraph[str] = nx.DiGraph()
    for op, earlier in zip(graph.ops, sources(graph), strict=True):
        flow.add_node(op.name)
        flow.add_edges_from((graph.ops[i].name, op.name) for i in earlier)
    flow = nx.transitive_reduction(flow)
    ops: list[TileOp] = []
    for _, group in itertools.groupby(graph.ops, key=lambda op: op.layer):
        ops += _ordered(list(group), flow, known, ctx)
    return dataclasses.replace(graph, ops=tuple(ops))


def _ordered(
    ops: list[TileOp], whole: nx.DiGraph[str], wanted: list[tuple[str, str, Span]], ctx: PassContext
) -> list[TileOp]:
    """Ops of one layer in an order that the data and the requests allow, else as they were."""
    place = {op.name: i for i, op in enumerate(ops)}
    flow: nx.DiGraph[str] = nx.DiGraph(whole.subgraph(place))
    names = {op.label: op.name for op in ops}
    for first, second, span in wanted:
        if first not in names or second not in names:
            continue
        a, b = names[first], names[second]
        if nx.has_path(flow, b, a):
            path = [p.rpartition(".")[2] for p in nx.shortest_path(flow, b, a)]
            ctx.note(
                Diagnostic(
                    "TC0712" if _asked(wanted, path) else "TC0713",
                    f"`{first}` cannot run before `{second}`",
                    span,
                    (f"what must come first: {' -> '.join(path)}",),
                    (f"legal here: `{second}` before `{first}`",),
                )
            )
            continue
        flow.add_edge(a, b)
    ctx.decide("order", "ops of a layer", ", ".join(f"{a} before {b}" for a, b, _ in wanted), "asked for")
    return [ops[place[n]] for n in nx.lexicographical_topological_sort(flow, key=place.__getitem__)]


def _asked(wanted: list[tuple[str, str, Span]], path: list[str]) -> bool:
    """Whether a step of a path is itself a request: two requests then contradict each other."""
    return any((a, b) == step for a, b, _ in wanted for step in itertools.pairwise(path))
