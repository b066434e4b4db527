"""shard: Graph -> Graph of one rank of a tensor-parallel group. Decides which weights are cut and where the
ranks meet.

Heads, the width of dense and expert MLPs and the vocabulary are cut into equal parts; norms, embedding and
router stay whole on every rank. A projection whose input is cut gives a partial sum, and an `all_reduce`
follows it:

    qkv (rows by KV head) -> attend -> o_proj (columns)    =>  all_reduce before the residual addition
    gate, up (rows) -> silu, mul -> down (columns)         =>  all_reduce
    experts (width of every expert)                        =>  all_reduce
    lm_head (rows) -> argmax                               =>  argmax_all

All ranks run the same graph; a `Param` says along which axis of its source tensor the rank takes its part.
The router is replicated: 9.4 MB more per rank and layer cost 2.2 us, less than one more exchange (design,
section 9).
"""

from __future__ import annotations

import dataclasses

from tilecc.diag import TileccError, error
from tilecc.ir.graph import Graph, Node, Param, Value
from tilecc.passes.context import PassContext

FP8_BLOCK = 128
GROUPS = {"fp8_block": FP8_BLOCK, "mxfp4": 32}
"""Columns that share one scale: a cut along the columns must not split them."""

WHOLE, PART, SUM = "whole", "part", "sum"
"""What a rank holds of a value: all of it, its part of axis 1, or its term of a sum over ranks."""

_ROW_READERS = frozenset({"split_qkv", "split_heads", "silu", "mul", "argmax"})


def shard(graph: Graph, ctx: PassContext) -> Graph:
    """The graph of one of `ctx.ranks` ranks; the graph itself for one rank.

    Raises TileccError TC0224 for a size that the ranks do not divide, TC0220 for a use of a partial value
    that has no sharded form.
    """
    return graph if ctx.ranks == 1 else _Sharder(graph, ctx).run()


class _Sharder:
    def __init__(self, graph: Graph, ctx: PassContext) -> None:
        self.graph, self.ctx, self.ranks = graph, ctx, ctx.ranks
        self.users = graph.users()
        self.params = {p.name: p for p in graph.params}
        self.states = {s.name: s for s in graph.states}
        self.values: dict[str, Value] = {v.name: v for v in graph.inputs}
        self.holds: dict[str, str] = {v.name: WHOLE for v in graph.inputs}
        self.renamed: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.inputs = {v.name for v in graph.inputs}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            inputs = tuple(self.renamed.get(name, name) for name in node.inputs)
            handler = getattr(self, f"_{node.op}", None)
            node = dataclasses.replace(node, inputs=inputs)
            if handler is None:
                self.elementwise(node)
            else:
                handler(node)
        return dataclasses.replace(
            self.graph,
            params=tuple(self.params.values()),
            states=tuple(self.states.values()),
            nodes=tuple(self.nodes),
            outputs=tuple(self.renamed.get(name, name) for name in self.graph.outputs),
            ranks=self.ranks,
        )

    # ---- helpers -------------------------------------------------------------------------------------------

    def part(self, node: Node, size: int, what: str) -> int:
        if size % self.ranks:
            raise error(
                "TC0224",
                f"{what} does not divide into {self.ranks} ranks",
                span=node.loc.span(node.name),
                help=f"nearest: {self.nearest(size)}",
            )
        return size // self.ranks

    def nearest(self, size: int, group: int = 1) -> str:
        """Numbers of ranks next to the one asked for that leave each a multiple of `group`."""
        legal = [n for n in range(2, size + 1) if size % n == 0 and size // n % group == 0]
        below = max([1, *(n for n in legal if n < self.ranks)])
        above = [n for n in legal if n > self.ranks]
        return " or ".join(str(n) for n in (below, *above[:1])) + f" rank{'s' if below > 1 or above else ''}"

    def misfit(self, node: Node, why: str) -> TileccError:
        return error(
            "TC0220",
            f"op `{node.op}` cannot be sharded over {self.ranks} ranks here: {why}",
            span=node.loc.span(node.name),
            help="cut values may only meet in projections into the residual stream and in the last argmax",
        )

    def hold(self, name: str) -> str:
        return self.holds.get(name, WHOLE)

    def add(self, node: Node, holds: str, *widths: int | None) -> None:
        """Append a node; `widths` replace the axis that is cut (1) of its results."""
        results = list(node.results)
        for i, width in enumerate(widths):
            if width is not None:
                old = results[i]
                results[i] = dataclasses.replace(old, shape=(old.shape[0], width, *old.shape[2:]))
        node = dataclasses.replace(node, results=tuple(results))
        for value in results:
            self.values[value.name] = value
            self.holds[value.name] = holds
        self.nodes.append(node)

    def width(self, name: str) -> int:
        return int(self.values[name].shape[1])

    def cut(self, node: Node, name: str, axis: int, what: str) -> Param:
        """Cut a param along `axis` of its source tensor (the expert axis does not count)."""
        param = self.params[name]
        if param.shard_parts > 1:
            if param.shard_axis != axis:
                raise self.misfit(node, f"`{name}` is cut along both axes")
            return param
        at = axis + (1 if param.experts else 0)
        size = int(param.shape[at])
        local = self.part(node, size, f"{what} {size} of `{name}`")
        group = GROUPS.get(param.format, 1)
        if axis == 1 and local % group:
            raise error(
                "TC0224",
                f"`{name}` has {size} columns; {self.ranks} ranks would cut the {param.format} scales,"
                f" which cover {group} columns each",
                span=node.loc.span(node.name),
                help=f"nearest: {self.nearest(size, group)}",
            )
        shape = (*param.shape[:at], local, *param.shape[at + 1 :])
        chunks = (
            self.part(node, param.chunks, f"{param.chunks} chunks of `{name}`") if param.chunks > 1 else 1
        )
        self.params[name] = dataclasses.replace(
            param, shape=shape, chunks=chunks, shard_axis=axis, shard_parts=self.ranks
        )
        self.ctx.decide(
            "shard", what, f"cut into {self.ranks} parts", "every rank streams an equal share of the bytes"
        )
        return self.params[name]

    def all_reduce(self, name: str, node: Node) -> None:
        """Follow a term of a sum by the exchange that completes it."""
        value = self.values[name]
        done = Value(f"{name}.all", value.dtype, value.shape)
        self.renamed[name] = done.name
        self.add(
            Node(f"{node.name}.all_reduce", "all_reduce", (name,), (done,), {"ranks": self.ranks}, node.loc),
            WHOLE,
        )

    def part_of_input(self, node: Node, name: str) -> str:
        """This rank's columns of an input of the step (the draft's features): the weight that multiplies it
        is cut along K, so that every rank streams an equal share of it."""
        made = f"{name}.part"
        if made not in self.values:
            value = self.values[name]
            columns = self.part(node, self.width(name), f"`{name}` of {self.width(name)} columns")
            result = Value(made, value.dtype, (value.shape[0], columns))
            part = Node(made, "rank_part", (name,), (result,), {"ranks": self.ranks}, node.loc)
            self.add(part, PART)
        return made

    # ---- ops -----------------------------------------------------------------------------------------------

    def elementwise(self, node: Node) -> None:
        """Ops that work on what they are given: all operands must be held alike."""
        floats = [n for n in node.inputs if n in self.values and self.values[n].dtype == "f32"]
        held = {self.hold(name) for name in floats}
        if len(held) > 1 or SUM in held:
            raise self.misfit(node, "one operand is whole, the other a part or an unfinished sum")
        kind = held.pop() if held else WHOLE
        self.add(node, kind, *(self.width(node.inputs[0]),) * len(node.results) if kind == PART else ())

    def _linear(self, node: Node) -> None:
        x, weight = node.inputs
        if x in self.inputs:
            x = self.part_of_input(node, x)
            node = dataclasses.replace(node, inputs=(x, weight))
        if self.hold(x) == PART:
            self.cut(node, weight, 1, "columns")
            self.add(node, SUM)
            self.all_reduce(node.results[0].name, node)
        elif {u.op for u in self.users.get(node.results[0].name, ())} & _ROW_READERS:
            param = self.cut(node, weight, 0, "rows")
            self.add(node, PART, int(param.shape[0]))
        else:
            self.add(node, WHOLE)

    def _split_qkv(self, node: Node) -> None:
        chunks, heads, kv_heads = (int(node.attrs[k]) for k in ("chunks", "heads", "kv_heads"))
        self.part(node, chunks, f"the fused projection, stored in {chunks} chunks of rows,")
        local = self.part(node, heads, f"{heads} query heads")
        kv = self.part(node, kv_heads, f"{kv_heads} KV heads")
        attrs = {**node.attrs, "chunks": chunks // self.ranks, "heads": local, "kv_heads": kv}
        self.add(dataclasses.replace(node, attrs=attrs), PART, local, kv, kv)

    def _attend(self, node: Node) -> None:
        self.heads(node, states=slice(3, 5), sink=7)

    def heads(self, node: Node, states: slice, sink: int) -> None:
        """An attention over this rank's heads: its caches and sinks are cut like them."""
        if self.hold(node.inputs[0]) != PART:
            raise self.misfit(node, "its heads are not cut")
        kv_heads = self.width(node.inputs[1])
        for name in node.inputs[states]:
            self.states[name] = dataclasses.replace(self.states[name], heads=kv_heads)
        if len(node.inputs) > sink:
            self.cut(node, node.inputs[sink], 0, "sinks")
        v = self.values[node.inputs[2]]
        heads = self.width(node.inputs[0])
        self.add(node, PART, heads * int(v.shape[2]))

    def _split_heads(self, node: Node) -> None:
        if self.hold(node.inputs[0]) != PART:
            raise self.misfit(node, "its projection is not cut")
        heads = int(node.attrs["heads"])
        local = self.part(node, heads, f"{heads} heads")
        self.add(dataclasses.replace(node, attrs={**node.attrs, "heads": local}), PART, local)

    def _attend_block(self, node: Node) -> None:
        self.heads(node, states=slice(5, 7), sink=10)

    def _experts(self, node: Node) -> None:
        if any(self.hold(name) != WHOLE for name in node.inputs[:3]):
            raise self.misfit(node, "its input and routing must be whole")
        for name in node.inputs[3:5]:
            self.cut(node, name, 0, "expert width")
        self.cut(node, node.inputs[5], 1, "expert width")
        self.add(node, SUM)
        self.all_reduce(node.results[0].name, node)

    def _argmax(self, node: Node) -> None:
        if self.hold(node.inputs[0]) != PART:
            self.add(node, WHOLE)
            return
        attrs = {**node.attrs, "ranks": self.ranks}
        self.add(dataclasses.replace(node, op="argmax_all", attrs=attrs), WHOLE)
        self.ctx.decide(
            "shard",
            "argmax",
            "over the vocabulary shards of all ranks",
            "one exchange of (value, id) per row",
        )
