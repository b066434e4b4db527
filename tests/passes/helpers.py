"""Small graphs for the tests of the passes: a model of a few layers built by hand, without torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecc.diag import CATALOGUE, Diagnostic, TileccError
from tilecc.ir.graph import AttrValue, Graph, Node, Param, State, Value
from tilecc.ir.loc import Loc
from tilecc.ir.program import Program
from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import FUSE, PROGRAM, TILE_PASSES
from tilecc.target import find_target

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILE = "model.py"


@dataclasses.dataclass
class Net:
    """Builds the Graph of a decoder; every node has its own line of `model.py`."""

    layers: tuple[tuple[int, str], ...] = ((0, "dense"), (8, "moe"))
    """(window, "dense" or "moe") of each layer."""
    hidden: int = 32
    vocab: int = 64
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    v_dim: int = 8
    rotary: int = 8
    theta: float = 1e4
    experts: int = 6
    k: int = 2
    width: int = 48
    expert_width: int = 16
    sink: bool = True
    formats: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes: list[Node] = []
        self.params: dict[str, Param] = {}
        self.states: list[State] = []

    def param(self, name: str, *shape: int, experts: int = 0) -> str:
        format = self.formats.get(name.split(".")[-1], "bf16")
        source = name + ".{e}" if experts else name
        self.params[name] = Param(name, shape, format, source, experts)
        return name

    def node(
        self, name: str, op: str, inputs: tuple[str, ...], *shape: int, module: str = "", **attrs: AttrValue
    ) -> str:
        results = (Value(name, "f32", ("T", *shape)),)
        self.add(name, op, inputs, results, module, attrs)
        return name

    def add(
        self,
        name: str,
        op: str,
        inputs: tuple[str, ...],
        results: tuple[Value, ...],
        module: str,
        attrs: dict[str, AttrValue],
    ) -> None:
        loc = Loc(FILE, len(self.nodes) + 1, module)
        self.nodes.append(Node(name, op, inputs, results, attrs, loc))

    def norm(self, name: str, x: str, module: str = "") -> str:
        w = self.param(f"{name}.weight", self.hidden)
        y = self.node(name, "rms_norm", (x, w), self.hidden, module=module, eps=1e-5)
        return self.node(f"{name}_bf16", "round", (y,), self.hidden, module=module)

    def attention(self, i: int, window: int, x: str) -> str:
        m, h, kv = f"layers.{i}", self.heads, self.kv_heads
        rows = (h + kv) * self.dim + kv * self.v_dim
        y = self.norm(f"{m}.norm", x, m)
        z = self.node(f"{m}.z", "linear", (y, self.param(f"{m}.qkv", rows, self.hidden)), rows, module=m)
        q, k, v = (
            Value(f"{m}.{n}", "f32", ("T", *s))
            for n, s in (("q", (h, self.dim)), ("k", (kv, self.dim)), ("v", (kv, self.v_dim)))
        )
        shape = {"heads": h, "kv_heads": kv, "head_dim": self.dim, "v_head_dim": self.v_dim}
        self.add(f"{m}.split", "split_qkv", (z,), (q, k, v), m, {"chunks": 1, **shape})
        made = []
        for n, heads in (("q", h), ("k", kv)):
            rope: dict[str, AttrValue] = {"theta": self.theta, "rotary_dim": self.rotary}
            inputs = (f"{m}.{n}", "positions")
            r = self.node(f"{m}.{n}_rope", "rope", inputs, heads, self.dim, module=m, **rope)
            made.append(self.node(f"{m}.{n}_bf16", "round", (r,), heads, self.dim, module=m))
        s = self.node(f"{m}.v_scaled", "scale", (f"{m}.v",), kv, self.v_dim, module=m, factor=0.5)
        made.append(self.node(f"{m}.v_bf16", "round", (s,), kv, self.v_dim, module=m))
        caches = (f"{m}.k_cache", f"{m}.v_cache")
        for name, kind, dim in ((caches[0], "k", self.dim), (caches[1], "v", self.v_dim)):
            self.states.append(State(name, i, kind, kv, dim))
        sink = (self.param(f"{m}.sink", h),) if self.sink and window else ()
        inputs = (*made, *caches, "positions", "seqs", *sink)
        a: dict[str, AttrValue] = {"window_keys": window, "softmax_scale": 0.25, "layer": i}
        o = self.node(f"{m}.attend", "attend", inputs, h * self.v_dim, module=m, **a)
        o = self.node(f"{m}.attend_bf16", "round", (o,), h * self.v_dim, module=m)
        w = self.param(f"{m}.o", self.hidden, h * self.v_dim)
        return self.residual(
            f"{m}.o_proj", x, self.node(f"{m}.o_proj", "linear", (o, w), self.hidden, module=m), m
        )

    def residual(self, name: str, x: str, y: str, module: str) -> str:
        s = self.node(f"{name}_add", "add", (x, y), self.hidden, module=module)
        return self.node(f"{name}_add_bf16", "round", (s,), self.hidden, module=module)

    def dense(self, i: int, x: str) -> str:
        m = f"layers.{i}"
        y = self.norm(f"{m}.norm2", x, m)
        made = {
            n: self.node(
                f"{m}.{n}_out",
                "linear",
                (y, self.param(f"{m}.{n}", self.width, self.hidden)),
                self.width,
                module=m,
            )
            for n in ("gate", "up")
        }
        s = self.node(f"{m}.silu", "silu", (made["gate"],), self.width, module=m)
        p = self.node(f"{m}.mul", "mul", (s, made["up"]), self.width, module=m)
        h = self.node(f"{m}.mul_bf16", "round", (p,), self.width, module=m)
        w = self.param(f"{m}.down", self.hidden, self.width)
        d = self.node(f"{m}.down_out", "linear", (h, w), self.hidden, module=m)
        return self.residual(f"{m}.down_out", x, d, m)

    def moe(self, i: int, x: str) -> str:
        m, e, w = f"layers.{i}", self.experts, self.expert_width
        y = self.norm(f"{m}.norm2", x, m)
        g = self.node(f"{m}.logits", "linear", (y, self.param(f"{m}.router", e, self.hidden)), e, module=m)
        results = (Value(f"{m}.ids", "i64", ("T", self.k)), Value(f"{m}.weights", "f32", ("T", self.k)))
        attrs: dict[str, AttrValue] = {"k": self.k, "norm_topk": True, "scaling": 1.0}
        self.add(f"{m}.route", "route", (g, self.param(f"{m}.bias", e)), results, m, attrs)
        stacked = [
            self.param(f"{m}.{n}", e, *s, experts=e)
            for n, s in (
                ("e_gate", (w, self.hidden)),
                ("e_up", (w, self.hidden)),
                ("e_down", (self.hidden, w)),
            )
        ]
        inputs = (y, f"{m}.ids", f"{m}.weights", *stacked)
        r = self.node(f"{m}.experts", "experts", inputs, self.hidden, module=m, round_hidden=True)
        return self.residual(f"{m}.experts", x, r, m)

    def graph(self) -> Graph:
        self.__post_init__()
        x = self.node("x", "embedding", ("tokens", self.param("embed", self.vocab, self.hidden)), self.hidden)
        for i, (window, mlp) in enumerate(self.layers):
            x = self.attention(i, window, x)
            x = self.dense(i, x) if mlp == "dense" else self.moe(i, x)
        y = self.norm("final", x)
        head = self.param("head", self.vocab, self.hidden)
        logits = self.node("logits", "linear", (y, head), self.vocab)
        self.add("next", "argmax", (logits,), (Value("next", "i64", ("T",)),), "", {})
        inputs = tuple(Value(n, "i64", ("T",)) for n in ("tokens", "positions", "seqs"))
        return Graph(
            "net",
            inputs,
            tuple(self.params.values()),
            tuple(self.states),
            tuple(self.nodes),
            (logits, "next"),
        )


def edit(graph: Graph, node: str, **changes: object) -> Graph:
    """The graph with fields of one node replaced."""
    assert any(n.name == node for n in graph.nodes)
    nodes = tuple(dataclasses.replace(n, **changes) if n.name == node else n for n in graph.nodes)  # type: ignore[arg-type]
    return dataclasses.replace(graph, nodes=nodes)


def inputs(graph: Graph, node: str, **swap: str) -> Graph:
    """The graph with inputs of one node exchanged: `swap` maps a name (dots as __) to another."""
    names = {old.replace("__", "."): new for old, new in swap.items()}
    (found,) = (n for n in graph.nodes if n.name == node)
    assert set(names) <= set(found.inputs)
    return edit(graph, node, inputs=tuple(names.get(i, i) for i in found.inputs))


def skip(graph: Graph, node: str) -> Graph:
    """The graph without a node of one input and result: its users read its input."""
    (gone,) = (n for n in graph.nodes if n.name == node)
    nodes = tuple(
        dataclasses.replace(n, inputs=tuple(gone.inputs[0] if i == node else i for i in n.inputs))
        for n in graph.nodes
        if n.name != node
    )
    return dataclasses.replace(graph, nodes=nodes)


def context(target: str = "sm_90a", max_context: int = 64, max_seqs: int = 2) -> PassContext:
    return PassContext(find_target(target), max_context, max_seqs)


def tiles_until(
    graph: Graph, last: Callable[..., object] | None, ctx: PassContext | None = None
) -> TileGraph:
    """The TileGraph after fuse and the tile passes up to and including `last` (None: fuse alone)."""
    ctx = ctx or context()
    tiles = FUSE(graph, ctx)
    for tile_pass in TILE_PASSES if last is not None else ():
        tiles = tile_pass(tiles, ctx)
        if tile_pass is last:
            break
    return tiles


def lower(graph: Graph, ctx: PassContext | None = None) -> tuple[TileGraph, Program]:
    """All passes."""
    ctx = ctx or context()
    tiles = tiles_until(graph, TILE_PASSES[-1], ctx)
    return tiles, PROGRAM(tiles, ctx)


@functools.cache
def tiny_graph() -> Graph:
    """The Graph of MiMo tiny, from its golden file: no torch needed."""
    return Graph.from_text((GOLDEN / "mimo_tiny" / "00-graph.txt").read_text(encoding="utf-8"))


@functools.cache
def tiny() -> tuple[TileGraph, Program]:
    """MiMo tiny lowered for sm_90a with the defaults of `tilecc compile`."""
    return lower(tiny_graph(), context(max_context=1024, max_seqs=1))


def refusal(call: Callable[[], object], code: str) -> Diagnostic:
    """The one diagnostic of a call that must refuse its input; the code has a page."""
    with pytest.raises(TileccError) as caught:
        call()
    (found,) = caught.value.diagnostics
    assert found.code == code and code in CATALOGUE
    return found


def line_of(graph: Graph, node: str) -> int:
    (loc,) = (n.loc for n in graph.nodes if n.name == node)
    return loc.line
