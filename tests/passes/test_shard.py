"""shard: the graph of one rank, its exchanges, and what cannot be cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes.helpers import Net, context, refusal
from tilecc.ir.graph import Graph, Param
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.verify import verify
from tilecc.passes.shard import shard

NET = Net(heads=8, kv_heads=4, experts=6, width=64, expert_width=32, vocab=64)


def chunked(net: Net) -> Graph:
    """The net's graph with the fused projections stored in one chunk per KV head, as MiMo-V2 stores them."""
    graph = net.graph()
    nodes = tuple(
        dataclasses.replace(n, attrs={**n.attrs, "chunks": net.kv_heads}) if n.op == "split_qkv" else n
        for n in graph.nodes
    )
    params = tuple(
        dataclasses.replace(p, chunks=net.kv_heads) if p.name.endswith(".qkv") else p for p in graph.params
    )
    return dataclasses.replace(graph, nodes=nodes, params=params)


def sharded(graph: Graph, ranks: int) -> Graph:
    return shard(graph, dataclasses.replace(context(), ranks=ranks))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_result_is_sound_and_parts_add_up(ranks: int) -> None:
    whole = chunked(NET)
    part = sharded(whole, ranks)
    assert verify(part, GRAPH_RULES) == []
    assert Graph.from_text(part.to_text()) == part
    for before, after in zip(whole.params, part.params, strict=True):
        parts = np.prod(before.shape) // np.prod(after.shape)
        assert parts == after.shard_parts
        assert (after.shard_parts == ranks) or any(
            s in after.name for s in ("norm", "final", "embed", "router", "bias")
        )
    exchanges = [n.op for n in part.nodes if n.op in ("all_reduce", "argmax_all")]
    assert exchanges == ([] if ranks == 1 else ["all_reduce"] * 4 + ["argmax_all"])


def test_states_hold_the_heads_of_the_rank() -> None:
    assert {s.heads for s in sharded(chunked(NET), 4).states} == {1}


# ------------------------------------------------------------------------- a rank computes its part of sums


def matmul_graph_values(
    graph: Graph, weights: dict[str, NDArray[np.float64]], x: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Values of the dense MLP of layer 0 of a graph, by its linear, silu and mul nodes alone."""
    values: dict[str, NDArray[np.float64]] = {}
    out = []
    for node in graph.nodes:
        if node.loc.module != "layers.0":
            continue
        if node.op == "linear" and any(s in node.inputs[1] for s in ("gate", "up", "down")):
            values[node.results[0].name] = values.get(node.inputs[0], x) @ weights[node.inputs[1]].T
            if "down" in node.inputs[1]:
                out.append(values[node.results[0].name])
        elif node.op == "silu" and node.inputs[0] in values:
            v = values[node.inputs[0]]
            values[node.results[0].name] = v / (1 + np.exp(-v))
        elif node.op in ("mul", "round") and node.inputs[0] in values:
            made = (
                values[node.inputs[0]]
                if node.op == "round"
                else values[node.inputs[0]] * values[node.inputs[1]]
            )
            values[node.results[0].name] = made
    return out


def cut(param: Param, whole: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The part of a source tensor that a rank holds."""
    if param.shard_parts == 1:
        return whole
    return np.split(whole, param.shard_parts, axis=param.shard_axis + (param.experts > 0))[rank]


def test_terms_of_all_ranks_add_up_to_the_whole_projection() -> None:
    whole = chunked(NET)
    rng = np.random.default_rng(1)
    weights = {p.name: rng.standard_normal(tuple(int(n) for n in p.shape)) for p in whole.params}
    x = rng.standard_normal((3, NET.hidden))
    (expected,) = matmul_graph_values(whole, weights, x)
    part = sharded(whole, 4)
    terms = [
        matmul_graph_values(part, {p.name: cut(p, weights[p.name], rank) for p in part.params}, x)[0]
        for rank in range(4)
    ]
    np.testing.assert_allclose(sum(terms), expected, rtol=1e-12)  # float64: the order of 64 additions


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("net", "ranks", "words", "nearest"),
    [
        (Net(heads=6, kv_heads=6), 4, "6 chunks", "3 or 6 ranks"),
        (dataclasses.replace(NET, vocab=66), 4, "rows 66 of `head", "3 or 6 ranks"),
        (dataclasses.replace(NET, expert_width=30), 4, "expert width 30", "3 or 5 ranks"),
        (dataclasses.replace(NET, formats={"down": "fp8_block"}), 2, "fp8_block scales", "1 rank"),
        (dataclasses.replace(NET, width=768, formats={"down": "fp8_block"}), 4, "fp8_block", "3 or 6 ranks"),
        (dataclasses.replace(NET, formats={"down": "mxfp4"}), 4, "mxfp4 scales", "2 ranks"),
    ],
)
def test_a_size_that_does_not_divide_names_itself(net: Net, ranks: int, words: str, nearest: str) -> None:
    found = refusal(lambda: sharded(chunked(net), ranks), "TC0224")
    assert words in found.message
    assert found.span is not None and found.span.file == "model.py"
    assert found.help == (f"nearest: {nearest}",)
