"""fuse: which graph nodes become which TileOps, with which weights; and every form that is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.passes.helpers import FILE, Net, context, edit, inputs, line_of, refusal, skip
from tilecc.ir.graph import Graph, Node, Value
from tilecc.ir.loc import Loc
from tilecc.ir.tile import TileGraph
from tilecc.passes.fuse import fuse, layer_of


def fused(graph: Graph) -> TileGraph:
    return fuse(graph, context())


def test_ops_of_a_dense_and_a_sparse_layer() -> None:
    tiles = fused(Net().graph())
    assert [(op.name, op.kind) for op in tiles.ops] == [
        ("embed", "embed"),
        ("layers.0.qkv", "qkv"),
        ("layers.0.attention", "attention"),
        ("layers.0.attention_merge", "attention_merge"),  # the global layer splits its context
        ("layers.0.o_proj", "project"),
        ("layers.0.attn_reduce", "reduce"),
        ("layers.0.gate_up", "gate_up"),
        ("layers.0.down", "project"),
        ("layers.0.mlp_reduce", "reduce"),
        ("layers.1.qkv", "qkv"),
        ("layers.1.attention", "attention"),
        ("layers.1.o_proj", "project"),
        ("layers.1.attn_reduce", "reduce"),
        ("layers.1.router", "router"),
        ("layers.1.route", "route"),
        ("layers.1.experts_up", "experts_up"),
        ("layers.1.experts_down", "experts_down"),
        ("layers.1.moe_reduce", "reduce"),
        ("head", "head"),
        ("commit", "commit"),
    ]
    assert (tiles.layers, tiles.hidden, tiles.vocab) == (2, 32, 64)
    assert all(op.layer == (int(op.name.split(".")[1]) if "." in op.name else -1) for op in tiles.ops)


def test_every_node_is_in_some_op_and_the_op_knows_its_line() -> None:
    graph = Net().graph()
    tiles = fused(graph)
    assert {name for op in tiles.ops for name in op.fused} == {n.name for n in graph.nodes}
    qkv = tiles.op("layers.0.qkv")
    assert qkv.fused[:3] == ("layers.0.norm", "layers.0.norm_bf16", "layers.0.z")
    assert (qkv.loc.file, qkv.loc.line) == (FILE, line_of(graph, "layers.0.z"))


def test_attributes_and_weights() -> None:
    net = Net(formats={"e_gate": "mxfp4", "e_up": "mxfp4", "router": "f32"})
    tiles = fused(net.graph())
    qkv, attention = tiles.op("layers.1.qkv"), tiles.op("layers.1.attention")
    assert qkv.weights == {"matrix": "layers.1.qkv", "aux": "rope.10000.8"}
    assert (qkv.attrs["value_scale"], qkv.attrs["window"], qkv.attrs["eps"]) == (0.5, 8, 1e-5)
    assert (attention.attrs["kv"], attention.attrs["sink"], attention.attrs["scale"]) == ("bf16", True, 0.25)
    assert tiles.op("layers.0.o_proj").attrs == {"source": "fragment", "input": "attention"}
    assert tiles.op("layers.0.down").attrs == {"source": "fragment", "input": "hidden"}
    weights = {w.name: w for w in tiles.weights}
    assert len(weights) == len(tiles.weights)
    gate_up, experts = weights["layers.0.gate"], weights["layers.1.e_gate"]
    assert (gate_up.rule, gate_up.sources, gate_up.rows) == ("gate_up", ("layers.0.gate", "layers.0.up"), 96)
    assert (experts.format, experts.rows, experts.cols, experts.experts) == ("mxfp4", 32, 32, 6)
    assert experts.sources == ("layers.1.e_gate.{e}", "layers.1.e_up.{e}")
    assert weights["layers.1.router"].format == "f32"
    assert weights["rope.10000.8"].rows == 64  # one row per position of the context
    table = {"chunks": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 8, "rotary": 8}
    assert weights["layers.0.qkv"].args == table


def test_a_value_that_is_not_scaled_has_the_factor_one() -> None:
    graph = skip(Net().graph(), "layers.0.v_scaled")
    assert fused(graph).op("layers.0.qkv").attrs["value_scale"] == 1.0


def test_operands_of_sums_and_products_may_be_swapped() -> None:
    graph = Net().graph()
    for name in ("layers.0.o_proj_add", "layers.0.mul", "layers.1.experts_add"):
        (node,) = (n for n in graph.nodes if n.name == name)
        graph = edit(graph, name, inputs=node.inputs[::-1])
    assert fused(graph) == fused(Net().graph())


def test_tied_embeddings_are_stored_twice() -> None:
    """The lookup reads rows, the head reads fragments: one tensor, two entries."""
    graph = inputs(Net().graph(), "logits", head="embed")
    tiles = fused(dataclasses.replace(graph, params=tuple(p for p in graph.params if p.name != "head")))
    weights = {w.name: w for w in tiles.weights}
    embed, head = (weights[tiles.op(n).weights["matrix"]] for n in ("embed", "head"))
    assert (embed.kind, head.kind, head.rule) == ("embed", "matrix", "plain")
    assert embed.name != head.name and embed.sources == head.sources == ("embed",)


def test_rope_tables_of_near_equal_theta_are_two() -> None:
    graph = Net(theta=1e7).graph()
    for n in ("q_rope", "k_rope"):
        graph = edit(graph, f"layers.1.{n}", attrs={"theta": 10000001.0, "rotary_dim": 8})
    tables = {w.name: w.args for w in fused(graph).weights if w.kind == "rope"}
    assert sorted(t["theta"] for t in tables.values()) == [1e7, 1e7 + 1]


def test_decisions_are_recorded_once() -> None:
    ctx = context()
    for _ in range(3):
        ctx.decide("fuse", "subject", "choice", "reason")
    ctx.decide("fuse", "subject", "another", "reason")
    assert [d.choice for d in ctx.decisions] == ["choice", "another"]


def test_layer_numbers_come_from_the_module_path() -> None:
    assert layer_of(Loc("m.py", 1, "model.layers.12.mlp")) == 12
    assert layer_of(Loc("m.py", 1, "model.layers")) == layer_of(Loc("m.py", 1)) == -1


# ------------------------------------------------------------------------------------------------ refusals

Change = Callable[[Graph], Graph]


def append(graph: Graph, *nodes: Node) -> Graph:
    return dataclasses.replace(graph, nodes=(*graph.nodes, *nodes))


def insert(graph: Graph, before: str, node: Node) -> Graph:
    at = next(i for i, n in enumerate(graph.nodes) if n.name == before)
    return dataclasses.replace(graph, nodes=(*graph.nodes[:at], node, *graph.nodes[at:]))


def float_value(name: str, *shape: int) -> tuple[Value, ...]:
    return (Value(name, "f32", ("T", *shape)),)


def other_format(graph: Graph, param: str) -> Graph:
    params = tuple(dataclasses.replace(p, format="fp8_block") if p.name == param else p for p in graph.params)
    return dataclasses.replace(graph, params=params)


def no_argmax(graph: Graph) -> Graph:
    return dataclasses.replace(graph, nodes=graph.nodes[:-1], outputs=("logits",))


def twice(graph: Graph) -> Graph:
    """A second projection of the hidden vector into the residual stream of the same layer."""
    m, at = "layers.0", Loc(FILE, 99, "layers.0")
    graph = insert(
        graph,
        "layers.1.norm",
        Node("d2", "linear", (f"{m}.mul_bf16", f"{m}.down"), float_value("d2", 32), loc=at),
    )
    last = f"{m}.down_out_add_bf16"
    graph = insert(graph, "layers.1.norm", Node("s2", "add", (last, "d2"), float_value("s2", 32), loc=at))
    return insert(graph, "layers.1.norm", Node("x2", "round", ("s2",), float_value("x2", 32), loc=at))


REFUSED: list[tuple[str, str, str, Change]] = [
    # code, node that is named, part of the message, what is wrong
    ("TC0221", "layers.0.o_proj_add", "does not round it", lambda g: skip(g, "layers.0.o_proj_add_bf16")),
    ("TC0221", "layers.1.experts_add", "does not round it", lambda g: skip(g, "layers.1.experts_add_bf16")),
    ("TC0221", "layers.0.attend", "result of `attend`", lambda g: skip(g, "layers.0.attend_bf16")),
    ("TC0221", "layers.0.q_rope", "result of `rope`", lambda g: skip(g, "layers.0.q_bf16")),
    ("TC0221", "layers.0.v_scaled", "result of `scale`", lambda g: skip(g, "layers.0.v_bf16")),
    ("TC0221", "layers.0.mul", "result of `mul`", lambda g: skip(g, "layers.0.mul_bf16")),
    ("TC0221", "layers.1.experts", "experts' hidden", lambda g: edit(g, "layers.1.experts",
    attrs={"round_hidden": False})),
    ("TC0220", "layers.0.z", "must be round(rms_norm(x))", lambda g: skip(g, "layers.0.norm")),
    ("TC0220", "logits", "must be round(rms_norm(x))", lambda g: skip(skip(g, "final"), "final_bf16")),
    # what a buffer no longer holds
    ("TC0220", "layers.0.down_out_add", "uses `x` where the kernel keeps `layers.0.o_proj_add_bf16` in `x`",
     lambda g: inputs(g, "layers.0.down_out_add", layers__0__o_proj_add_bf16="x")),
    ("TC0220", "layers.0.o_proj_add", "uses `layers.0.norm_bf16` where",
     lambda g: inputs(g, "layers.0.o_proj_add", x="layers.0.norm_bf16")),
    ("TC0220", "layers.1.norm2", "uses `x` where",
     lambda g: inputs(g, "layers.1.norm2", layers__1__o_proj_add_bf16="x")),
    ("TC0220", "layers.1.o_proj", "uses `layers.0.attend_bf16` where the kernel keeps `layers.1.attend_bf16`",
     lambda g: inputs(g, "layers.1.o_proj", layers__1__attend_bf16="layers.0.attend_bf16")),
    # forms that do not fit
    ("TC0220", "layers.0.o_proj", "takes round(attend) or round(mul",
     lambda g: inputs(g, "layers.0.o_proj", layers__0__attend_bf16="layers.0.q_bf16")),
    ("TC0220", "layers.0.o_proj_add", "must add a projection to the residual",
     lambda g: inputs(g, "layers.0.o_proj_add", x="layers.0.o_proj")),
    ("TC0220", "layers.0.z", "its result goes to rope", lambda g: inputs(g, "layers.0.q_rope",
    layers__0__q="layers.0.z")),
    ("TC0220", "layers.0.k_rope", "same rotary embedding",
     lambda g: edit(g, "layers.0.k_rope", attrs={"theta": 5e3, "rotary_dim": 8})),
    ("TC0220", "layers.0.attend", "q, k, v of one projection in this order",
     lambda g: inputs(g, "layers.0.attend", layers__0__k_bf16="layers.1.k_bf16")),
    ("TC0220", "layers.0.mul", "projections of the same input",
     lambda g: inputs(g, "layers.0.up_out", layers__0__norm2_bf16="layers.0.norm_bf16")),
    ("TC0220", "layers.0.mul", "gate is fp8_block", lambda g: other_format(g, "layers.0.gate")),
    ("TC0220", "layers.1.experts", "gate is fp8_block", lambda g: other_format(g, "layers.1.e_gate")),
    ("TC0220", "d2", "a second down of layer 0", twice),
    ("TC0220", "logits", "its result goes to nothing", no_argmax),
    ("TC0220", "extra", "no fused op takes it",
     lambda g: append(
         g, Node("extra", "silu", ("layers.0.attend_bf16",), float_value("extra", 32), loc=Loc(FILE, 99)))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "node", "part", "change"),
    REFUSED,
    ids=[f"{c}-{n}-{i}" for i, (c, n, _, _) in enumerate(REFUSED)],
)
def test_refusal_names_the_line_of_the_node(code: str, node: str, part: str, change: Change) -> None:
    graph = change(Net().graph())
    found = refusal(lambda: fused(graph), code)
    assert part in found.message, found.message
    assert found.span is not None
    assert (found.span.file, found.span.line, found.span.label) == (FILE, line_of(graph, node), node)
    assert found.help


def test_routing_serves_the_experts_of_its_own_layer() -> None:
    graph = Net(layers=((8, "moe"), (8, "moe"))).graph()
    graph = inputs(
        graph, "layers.1.experts", layers__1__ids="layers.0.ids", layers__1__weights="layers.0.weights"
    )
    found = refusal(lambda: fused(graph), "TC0220")
    assert found.span is not None and found.span.line == line_of(graph, "layers.0.experts")
    assert "routing of one layer" in found.message


def test_ids_and_weights_of_two_routes() -> None:
    graph = Net(layers=((8, "moe"), (8, "moe"))).graph()
    found = refusal(
        lambda: fused(inputs(graph, "layers.1.experts", layers__1__weights="layers.0.weights")), "TC0220"
    )
    assert "must come from one route" in found.message or "routing of one layer" in found.message


def test_a_graph_without_a_head() -> None:
    graph = Net().graph()
    keep = tuple(n for n in graph.nodes if n.name not in ("final", "final_bf16", "logits", "next"))
    found = refusal(lambda: fused(dataclasses.replace(graph, nodes=keep, outputs=())), "TC0220")
    assert "an embedding, a last linear and its argmax" in found.message
