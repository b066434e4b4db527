"""The Graph IR: a sound graph of every op passes, and each rule reports the graph made to break it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

from tilecc.diag import TileccError
from tilecc.ir.graph import Graph, Node, Param, State, Value
from tilecc.ir.graph_ops import DRAFT_OPS, GRAPH_OPS
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.loc import Loc
from tilecc.ir.verify import require, verify

SOUND = """\
tilecc.graph 2
Graph(
  "one_layer",
  inputs=[Value("tokens", "i64", ["T"]), Value("positions", "i64", ["T"]), Value("seqs", "i64", ["T"])],
  params=[
    Param("embed.weight", [100, 32], format="bf16", source="embed.weight"),
    Param("norm.weight", [32], format="bf16", source="norm.weight"),
    Param("qkv.weight", [88, 32], format="fp8_block", source="qkv.weight"),
    Param("sink", [4], format="bf16", source="sink"),
    Param("o.weight", [32, 32], format="bf16", source="o.weight"),
    Param("router.weight", [6, 32], format="f32", source="router.weight"),
    Param("router.bias", [6], format="f32", source="router.bias"),
    Param("gate", [6, 16, 32], format="mxfp4", source="experts.{e}.gate", experts=6),
    Param("up", [6, 16, 32], format="mxfp4", source="experts.{e}.up", experts=6),
    Param("down", [6, 32, 16], format="mxfp4", source="experts.{e}.down", experts=6),
    Param("head.weight", [100, 32], format="bf16", source="head.weight"),
  ],
  states=[State("k_cache", layer=0, kind="k", heads=2, dim=12), State("v_cache", layer=0, kind="v", heads=2, dim=8)],
  nodes=[
    Node("x", "embedding", inputs=["tokens", "embed.weight"], results=[Value("x", "f32", ["T", 32])]),
    Node("n", "rms_norm", inputs=["x", "norm.weight"], results=[Value("n", "f32", ["T", 32])], attrs={"eps": 1e-05}),
    Node("y", "round", inputs=["n"], results=[Value("y", "f32", ["T", 32])]),
    Node("z", "linear", inputs=["y", "qkv.weight"], results=[Value("z", "f32", ["T", 88])], loc=Loc("m.py", 7, "attn")),
    Node(
      "split",
      "split_qkv",
      inputs=["z"],
      results=[Value("q", "f32", ["T", 4, 12]), Value("k", "f32", ["T", 2, 12]), Value("v", "f32", ["T", 2, 8])],
      attrs={"chunks": 2, "heads": 4, "kv_heads": 2, "head_dim": 12, "v_head_dim": 8},
    ),
    Node("qr", "rope", inputs=["q", "positions"], results=[Value("qr", "f32", ["T", 4, 12])], attrs={"theta": 1e4, "rotary_dim": 4}),
    Node("kr", "rope", inputs=["k", "positions"], results=[Value("kr", "f32", ["T", 2, 12])], attrs={"theta": 1e4, "rotary_dim": 4}),
    Node("vs", "scale", inputs=["v"], results=[Value("vs", "f32", ["T", 2, 8])], attrs={"factor": 0.5}),
    Node("qb", "round", inputs=["qr"], results=[Value("qb", "f32", ["T", 4, 12])]),
    Node("kb", "round_e4m3", inputs=["kr"], results=[Value("kb", "f32", ["T", 2, 12])]),
    Node("vb", "round_e4m3", inputs=["vs"], results=[Value("vb", "f32", ["T", 2, 8])]),
    Node(
      "a",
      "attend",
      inputs=["qb", "kb", "vb", "k_cache", "v_cache", "positions", "seqs", "sink"],
      results=[Value("a", "f32", ["T", 32])],
      attrs={"window_keys": 8, "softmax_scale": 0.3, "layer": 0},
    ),
    Node("ab", "round", inputs=["a"], results=[Value("ab", "f32", ["T", 32])]),
    Node("o", "linear", inputs=["ab", "o.weight"], results=[Value("o", "f32", ["T", 32])]),
    Node("r", "add", inputs=["x", "o"], results=[Value("r", "f32", ["T", 32])]),
    Node("s", "silu", inputs=["r"], results=[Value("s", "f32", ["T", 32])]),
    Node("m", "mul", inputs=["s", "r"], results=[Value("m", "f32", ["T", 32])]),
    Node("mb", "round", inputs=["m"], results=[Value("mb", "f32", ["T", 32])]),
    Node("g", "linear", inputs=["m", "router.weight"], results=[Value("g", "f32", ["T", 6])]),
    Node(
      "route",
      "route",
      inputs=["g", "router.bias"],
      results=[Value("ids", "i64", ["T", 2]), Value("weights", "f32", ["T", 2])],
      attrs={"k": 2, "norm_topk": True, "scaling": 1.0},
    ),
    Node("e", "experts", inputs=["mb", "ids", "weights", "gate", "up", "down"], results=[Value("e", "f32", ["T", 32])], attrs={"round_hidden": True}),
    Node("eb", "round", inputs=["e"], results=[Value("eb", "f32", ["T", 32])]),
    Node("logits", "linear", inputs=["eb", "head.weight"], results=[Value("logits", "f32", ["T", 100])]),
    Node("next", "argmax", inputs=["logits"], results=[Value("next", "i64", ["T"])]),
  ],
  outputs=["logits", "next"],
)
"""  # noqa: E501


def sound() -> Graph:
    return Graph.from_text(SOUND)


def edit(graph: Graph, node: str, **changes: object) -> Graph:
    """The graph with fields of one node replaced."""
    assert any(n.name == node for n in graph.nodes)
    nodes = tuple(dataclasses.replace(n, **changes) if n.name == node else n for n in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes)


def attrs_of(graph: Graph, node: str, **changes: object) -> Graph:
    (old,) = (n.attrs for n in graph.nodes if n.name == node)
    return edit(graph, node, attrs={**old, **changes})


def without(graph: Graph, node: str) -> Graph:
    return dataclasses.replace(graph, nodes=tuple(n for n in graph.nodes if n.name != node))


def value(name: str, *shape: int | str, dtype: str = "f32") -> tuple[Value, ...]:
    return (Value(name, dtype, shape),)


def param(graph: Graph, name: str, **changes: object) -> Graph:
    params = tuple(dataclasses.replace(p, **changes) if p.name == name else p for p in graph.params)
    return dataclasses.replace(graph, params=params)


def test_the_sound_graph_uses_every_op_and_breaks_no_rule() -> None:
    graph = sound()
    assert {node.op for node in graph.nodes} == set(GRAPH_OPS) - set(DRAFT_OPS)
    assert verify(graph, GRAPH_RULES) == []
    assert require(graph, GRAPH_RULES) is graph
    assert Graph.from_text(graph.to_text()) == graph
    assert Graph.from_text(graph.to_text()).to_text() == graph.to_text()


Break = Callable[[Graph], Graph]

BROKEN: list[tuple[str, str, Break]] = [
    ("unique-names", "`y` is defined twice", lambda g: edit(g, "n", results=value("y", "T", 32))),
    ("unique-names", "two nodes are named `x`", lambda g: edit(g, "n", name="x")),
    (
        "defined-before-use",
        "`z` reads `nope` which is not defined",
        lambda g: edit(g, "z", inputs=("nope", "qkv.weight")),
    ),
    (
        "defined-before-use",
        "`n` reads `r` before it is defined",
        lambda g: edit(g, "n", inputs=("r", "norm.weight")),
    ),
    ("known-op", "there is no op `silo`", lambda g: edit(g, "s", op="silo")),
    ("arity", "`s`: silu reads x; 2 inputs given", lambda g: edit(g, "s", inputs=("r", "r"))),
    (
        "arity",
        "seqs, sink (optional); 6 inputs given",
        lambda g: edit(g, "a", inputs=("qb", "kb", "vb", "k_cache", "v_cache", "positions")),
    ),
    (
        "arity",
        "`route`: route makes 2 results, 1 given",
        lambda g: edit(g, "route", results=value("ids", "T", 2, dtype="i64")),
    ),
    (
        "operand-kinds",
        "weight of linear must be a f32 param, `y` is a f32 value",
        lambda g: edit(g, "z", inputs=("y", "y")),
    ),
    (
        "operand-kinds",
        "x of silu must be a f32 value, `tokens` is a i64 value",
        lambda g: edit(g, "s", inputs=("tokens",)),
    ),
    ("attributes", "`n`: rms_norm lacks attribute eps", lambda g: edit(g, "n", attrs={})),
    ("attributes", "`s`: silu has no attribute eps", lambda g: edit(g, "s", attrs={"eps": 1.0})),
    ("attributes", "`vs`: factor of scale must be float, is 2", lambda g: edit(g, "vs", attrs={"factor": 2})),
    (
        "shapes-agree",
        "`y` is f32[T, 33], but round makes f32[T, 32]",
        lambda g: edit(g, "y", results=value("y", "T", 33)),
    ),
    (
        "shapes-agree",
        "`next` is f32[T], but argmax makes i64[T]",
        lambda g: edit(g, "next", results=value("next", "T")),
    ),
    (
        "shapes-agree",
        "x [T, 32] does not fit the weight [100, 48]",
        lambda g: param(g, "head.weight", shape=(100, 48)),
    ),
    ("shapes-agree", "operands [T, 32] and [T, 6] differ", lambda g: edit(g, "m", inputs=("s", "g"))),
    ("shapes-agree", "4 heads do not divide into 3 chunks", lambda g: attrs_of(g, "split", chunks=3)),
    ("shapes-agree", "4 chunks", lambda g: attrs_of(g, "split", chunks=4)),
    ("shapes-agree", "must have 90 columns", lambda g: attrs_of(g, "split", v_head_dim=9)),
    (
        "shapes-agree",
        "rotary_dim must be even and within the head size 12, is 5",
        lambda g: attrs_of(g, "qr", rotary_dim=5),
    ),
    (
        "shapes-agree",
        "rotary_dim must be even and within the head size 12, is 14",
        lambda g: attrs_of(g, "qr", rotary_dim=14),
    ),
    ("shapes-agree", "k must be 1 to 6 experts, is 7", lambda g: attrs_of(g, "route", k=7)),
    (
        "shapes-agree",
        "sink [5] must have one entry per query head (4)",
        lambda g: param(g, "sink", shape=(5,)),
    ),
    ("shapes-agree", "down [6, 32, 15] must be [6, 32, 16]", lambda g: param(g, "down", shape=(6, 32, 15))),
    (
        "shapes-agree",
        "window_keys must be 0 (global) or more, is -1",
        lambda g: attrs_of(g, "a", window_keys=-1),
    ),
    ("shapes-agree", "eps must be positive", lambda g: edit(g, "n", attrs={"eps": 0.0})),
    (
        "shapes-agree",
        "k [T, 2, 12] does not fit its cache [S, C, 3, 12]",
        lambda g: dataclasses.replace(g, states=(State("k_cache", 0, "k", 3, 12), g.states[1])),
    ),
    ("extents", "`sink` has the shape f32[T]", lambda g: param(g, "sink", shape=("T",))),
    ("extents", "`sink` has the shape f32[0]", lambda g: param(g, "sink", shape=(0,))),
    ("extents", "`s` has the shape f32[N, 32]", lambda g: edit(g, "s", results=value("s", "N", 32))),
    (
        "extents",
        "`k_cache` has the shape",
        lambda g: dataclasses.replace(g, states=(State("k_cache", 0, "k", 2, 0), g.states[1])),
    ),
    ("param-sources", "unknown format 'int4'", lambda g: param(g, "gate", format="int4")),
    (
        "param-sources",
        "of 6 experts has the source 'experts.gate'",
        lambda g: param(g, "gate", source="experts.gate"),
    ),
    ("param-sources", "stacks 5 experts, its shape is [6, 16, 32]", lambda g: param(g, "gate", experts=5)),
    (
        "ranks-agree",
        "exchanges between 2 ranks, the graph has 1",
        lambda g: edit(g, "next", op="argmax_all", attrs={"ranks": 2}),
    ),
    (
        "ranks-agree",
        "param `gate` is part of 3 along axis 1, the graph has 1 ranks",
        lambda g: param(g, "gate", shard_axis=1, shard_parts=3),
    ),
    (
        "all-used",
        "param `router.bias2` is not used",
        lambda g: dataclasses.replace(g, params=(*g.params, Param("router.bias2", (6,), "f32", "b"))),
    ),
    (
        "all-used",
        "state `k1` is not used",
        lambda g: dataclasses.replace(g, states=(*g.states, State("k1", 1, "k", 2, 12))),
    ),
    (
        "no-dead-nodes",
        "nothing reads the result of `extra`",
        lambda g: dataclasses.replace(
            g, nodes=(*g.nodes, Node("extra", "silu", ("r",), value("extra", "T", 32)))
        ),
    ),
    (
        "outputs-exist",
        "output `nope` is not a value",
        lambda g: dataclasses.replace(g, outputs=("logits", "next", "nope")),
    ),
    (
        "outputs-exist",
        "output `sink` is not a value",
        lambda g: dataclasses.replace(g, outputs=("logits", "next", "sink")),
    ),
    (
        "states-owned",
        "`a` of layer 1 uses `k_cache` as k_cache, but it holds k of layer 0",
        lambda g: attrs_of(g, "a", layer=1),
    ),
    (
        "rounding-points",
        "x of linear `o` is not rounded to bf16",
        lambda g: edit(g, "o", inputs=("a", "o.weight")),
    ),
    (
        "rounding-points",
        "q of attend `a` is not rounded",
        lambda g: without(edit(g, "a", inputs=("qr", *g.nodes[11].inputs[1:])), "qb"),
    ),
    (
        "rounding-points",
        "y of experts `e` is not rounded",
        lambda g: without(edit(g, "e", inputs=("m", *g.nodes[20].inputs[1:])), "mb"),
    ),
]


@pytest.mark.parametrize(
    ("rule", "part", "make"), BROKEN, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(BROKEN)]
)
def test_each_rule_reports_what_breaks_it(rule: str, part: str, make: Break) -> None:
    found = verify(make(sound()), GRAPH_RULES)
    messages = [d.message for d in found]
    assert all(d.code == "TC0212" for d in found)
    assert any(part in m and m.endswith(f"[{rule}]") for m in messages), messages


def test_every_rule_has_a_broken_example_and_a_doc() -> None:
    assert {rule for rule, _, _ in BROKEN} == {rule.name for rule in GRAPH_RULES}
    assert all(rule.doc for rule in GRAPH_RULES)


def test_one_state_for_two_attends_is_reported() -> None:
    graph = sound()
    twin = dataclasses.replace(graph.nodes[11], name="a2", results=value("a2", "T", 32))
    nodes = (*graph.nodes[:12], twin, *graph.nodes[12:])
    messages = [d.message for d in verify(dataclasses.replace(graph, nodes=nodes), GRAPH_RULES)]
    assert any("is used by `a` and by `a2`" in m for m in messages), messages


def test_an_f32_embedding_table_needs_a_round() -> None:
    graph = edit(sound(), "z", inputs=("x", "qkv.weight"))
    assert [d for d in verify(graph, GRAPH_RULES) if "[rounding-points]" in d.message] == []
    messages = [d.message for d in verify(param(graph, "embed.weight", format="f32"), GRAPH_RULES)]
    assert "x of linear `z` is not rounded to bf16 [rounding-points]" in messages


def test_violations_carry_the_source_line_and_are_all_reported() -> None:
    graph = edit(sound(), "z", inputs=("n", "qkv.weight"))
    with pytest.raises(TileccError) as caught:
        require(edit(graph, "s", op="silo"), GRAPH_RULES)
    spans = {re.sub(r".*\[(.*)\]", r"\1", d.message): d.span for d in caught.value.diagnostics}
    place = spans["rounding-points"]
    assert place is not None and (place.file, place.line) == ("m.py", 7)
    assert {"known-op", "rounding-points", "no-dead-nodes"} == set(spans)


def test_lookups() -> None:
    graph = sound()
    assert graph.producers()["ids"].name == "route"
    assert [n.name for n in graph.users()["positions"]] == ["qr", "kr", "a"]
    assert isinstance(graph.operands()["sink"], Param)
    assert graph.states[0].shape == ("S", "C", 2, 12)
    assert str(Loc("m.py", 3, "layers.0")) == "m.py:3 (layers.0)"
