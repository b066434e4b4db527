"""Graph: the decode step of one model as a list of tensor ops, before any tile is chosen.

A Graph is what `trace` makes of the user's module and what `fuse` turns into a TileGraph. Every value has T
rows (T is decided at run time, 1 to 8), every weight is a `Param` that names its tensor in the checkpoint,
every KV cache is a `State`. Node inputs are names of values, params or states; a `None` argument of the torch
op is left out. The op table is `tilecc.ir.graph_ops.GRAPH_OPS`, the rules are in `tilecc.ir.graph_rules`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tilecc.ir.loc import UNKNOWN, Loc
from tilecc.ir.text import ir_node, parse_ir, print_ir

IR_VERSION = 2

Dim = int | str
"""An extent: a positive int, or "T" for the number of rows of the step. States also use "S" and "C"."""

Shape = tuple[Dim, ...]

AttrValue = int | float | bool | str

ROWS = "T"
FORMATS = ("bf16", "f32", "fp8_block", "mxfp4")
"""Stored weight formats (spec of the checkpoint). All compute is float32."""


@ir_node(positional=3)
class Value:
    """A tensor that a node makes. dtype is "f32" or "i64"; f32 values may hold bf16-rounded numbers."""

    name: str
    dtype: str
    shape: Shape


@ir_node(positional=2)
class Param:
    """A weight as the module holds it: float32, dequantised; `shape` includes the leading expert dimension.

    `source` is the official tensor name of the checkpoint ("{e}" stands for the expert), `format` how it is
    stored there, `experts` the number of tensors stacked (0: not stacked). An `optional` one may be absent.
    `chunks` row chunks have FP8 scales that restart (fused qkv). Of a sharded graph `shape` and `chunks` are
    those of one rank, which holds part `rank` of `shard_parts` equal parts along `shard_axis` of the source.
    A `shared` one of a draft is the target model's: one image entry serves both.
    """

    name: str
    shape: Shape
    format: str
    source: str
    experts: int = 0
    optional: bool = False
    chunks: int = 1
    loc: Loc = UNKNOWN
    shard_axis: int = 0
    shard_parts: int = 1
    shared: bool = False


@ir_node(positional=1)
class State:
    """A KV cache of one layer: [S sequences, C positions, heads, dim]. `kind` is "k" or "v"."""

    name: str
    layer: int
    kind: str
    heads: int
    dim: int

    @property
    def shape(self) -> Shape:
        """Shape as the reference holds it; S and C are chosen at run time."""
        return ("S", "C", self.heads, self.dim)


@ir_node
class Node:
    """One op of the table: reads `inputs` by name, makes `results`; `attrs` are compile-time constants."""

    name: str
    op: str
    inputs: tuple[str, ...]
    results: tuple[Value, ...]
    attrs: dict[str, AttrValue] = dataclasses.field(default_factory=dict)
    loc: Loc = UNKNOWN


@ir_node
class Graph:
    """One decode step. `nodes` are in an order in which every value is made before it is read."""

    IR_NAME: ClassVar[str] = "graph"
    IR_VERSION: ClassVar[int] = IR_VERSION

    name: str
    inputs: tuple[Value, ...]
    params: tuple[Param, ...]
    states: tuple[State, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    ranks: int = 1
    """Ranks that run this graph together, each on its own part of the weights (pass `shard`)."""

    def operands(self) -> dict[str, Value | Param | State]:
        """Everything a node may name, by name. Of two with one name the first wins (a rule forbids it)."""
        found: dict[str, Value | Param | State] = {}
        leading: tuple[Value | Param | State, ...] = (*self.inputs, *self.params, *self.states)
        for item in leading:
            found.setdefault(item.name, item)
        for node in self.nodes:
            for value in node.results:
                found.setdefault(value.name, value)
        return found

    def producers(self) -> dict[str, Node]:
        """The node that makes each value, by the value's name."""
        return {value.name: node for node in self.nodes for value in node.results}

    def users(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read each operand, in order, by the operand's name."""
        found: dict[str, tuple[Node, ...]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name] = (*found.get(name, ()), node)
        return found

    def to_text(self) -> str:
        """The printed Graph."""
        return print_ir(self)

    @staticmethod
    def from_text(text: str, file: str = "<graph>") -> Graph:
        """Read a printed Graph. Raises TileccError as `parse_ir` does."""
        graph = parse_ir(text, [Graph], file)
        assert isinstance(graph, Graph)
        return graph
