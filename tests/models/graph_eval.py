"""Runs a Graph op by op, on one rank or on all ranks of a sharded one in step: what the exchanges do is
stated here anew, the other ops are those of the model file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecc.ir.graph import Graph, Param
from tilecc.models import ops

PLAIN: dict[str, Callable[..., Any]] = {
    "embedding": lambda tokens, weight: F.embedding(tokens, weight),
    "linear": F.linear,
    "scale": lambda x, factor: x * factor,
    "add": torch.add,
    "mul": torch.mul,
    "silu": F.silu,
    "argmax": lambda logits: torch.argmax(logits, -1),
    **{
        name: getattr(ops, name)
        for name in (
            "round",
            "round_e4m3",
            "rms_norm",
            "split_qkv",
            "rope",
            "route",
            "experts",
            "attend",
            "attend_block",
            "split_heads",
            "embed_masked",
        )
    },
}
SINKS = {"attend": 7, "attend_block": 10}
"""Place of the optional sink among the operands."""


class Ranks:
    """All ranks of a graph with their parts of a module's weights and with zeroed caches."""

    def __init__(self, graph: Graph, module: nn.Module, seqs: int, context: int) -> None:
        self.graph = graph
        weights = dict(module.named_parameters())
        self.fixed: list[dict[str, Tensor]] = []
        for rank in range(graph.ranks):
            own = {p.name: part(p, weights[p.name], rank) for p in graph.params}
            for state in graph.states:
                own[state.name] = torch.zeros(seqs, context, state.heads, state.dim)
            self.fixed.append(own)

    def step(self, inputs: dict[str, Tensor]) -> list[list[Tensor]]:
        """The outputs of each rank."""
        made: list[dict[str, Tensor]] = [{**own, **inputs} for own in self.fixed]
        for node in self.graph.nodes:
            operands = [[env[name] for name in node.inputs] for env in made]
            for env, found in zip(made, self.results(node.op, dict(node.attrs), operands), strict=True):
                results = found if isinstance(found, tuple) else (found,)
                env.update({v.name: t for v, t in zip(node.results, results, strict=True)})
        return [[env[name] for name in self.graph.outputs] for env in made]

    def results(self, op: str, attrs: dict[str, Any], operands: Sequence[list[Tensor]]) -> list[Any]:
        if op == "all_reduce":
            total = ops.round(operands[0][0])
            for term in operands[1:]:
                total = total + ops.round(term[0])
            return [total.clone() for _ in operands]
        if op == "rank_part":
            return [x[0].chunk(attrs["ranks"], -1)[rank] for rank, x in enumerate(operands)]
        if op == "argmax_all":
            whole = torch.cat([x[0] for x in operands], -1)
            return [torch.argmax(whole, -1) for _ in operands]
        if op in SINKS:
            operands = [x if len(x) > SINKS[op] else [*x, None] for x in operands]  # type: ignore[list-item]
        return [PLAIN[op](*x, **attrs) for x in operands]


def part(param: Param, weight: Tensor, rank: int) -> Tensor:
    """What a rank holds of a weight."""
    if param.shard_parts == 1:
        return weight
    return weight.chunk(param.shard_parts, param.shard_axis + (1 if param.experts else 0))[rank]
