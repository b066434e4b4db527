"""fuse: Graph -> TileGraph. Which tensor ops become one TileOp.

One fusion per boundary: a projection takes its norm as prologue (recomputed per CTA) and everything up to the next
exchange between CTAs as epilogue.

    round(rms_norm(x)) -> linear -> split_qkv -> rope, scale, round     =>  qkv
    attend -> round                                                     =>  attention (+ attention_merge)
    linear -> add(x) -> round                                           =>  project, reduce
    round(rms_norm(x)) -> linear -> route                               =>  router, route
    round(rms_norm(x)) -> linear, linear -> silu, mul -> round          =>  gate_up
    experts -> add(x) -> round                                          =>  experts_up, experts_down, reduce
    round(rms_norm(x)) -> linear -> argmax                              =>  head, commit

Every `round` of the model must be a place where the kernel rounds: a value kept between ops, or a value on its way into
an MMA. A graph with another shape is refused at the node that does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilecc.diag import TileccError, error
from tilecc.ir.graph import AttrValue, Graph, Node, Param
from tilecc.ir.loc import Loc
from tilecc.ir.tile import TileGraph, TileOp, Weight
from tilecc.passes.context import PassContext

GLOBAL_SPLITS = 4
"""Splits of the context of a global layer: a constant of the Program, so that bits depend on neither G nor length."""

PATTERNS = (
    "round(embedding)",
    "linear of round(rms_norm) or of a rounded hidden vector",
    "split_qkv, rope, scale, round into attend",
    "round(attend)",
    "round(add(x, linear)) and round(add(x, experts))",
    "linear into route",
    "round(mul(silu(linear), linear))",
    "argmax of the last linear",
)


def fuse(graph: Graph, ctx: PassContext) -> TileGraph:
    """Fuse a Graph. Raises TileccError TC0220 for a node that fits no pattern, TC0221 for a missing rounding point."""
    return _Fuser(graph, ctx).run()


@dataclass
class _Fuser:
    graph: Graph
    ctx: PassContext
    ops: list[TileOp] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.producers = self.graph.producers()
        self.users = self.graph.users()
        self.params = {p.name: p for p in self.graph.params}

    def run(self) -> TileGraph:
        for node in self.graph.nodes:
            if node.name in self.done:
                continue
            handler = {
                "embedding": self.embed,
                "linear": self.linear,
                "attend": self.attention,
                "experts": self.experts,
                "argmax": self.commit,
            }.get(node.op)
            if handler is not None:
                handler(node)
        left = [n for n in self.graph.nodes if n.name not in self.done]
        if left:
            raise self.misfit(left[0], "no fused op takes it")
        head = next(op for op in self.ops if op.kind == "head")
        embed = next(op for op in self.ops if op.kind == "embed")
        layers = 1 + max((op.layer for op in self.ops), default=-1)
        return TileGraph(
            name=self.graph.name,
            target=self.ctx.target.name,
            max_context=self.ctx.max_context,
            max_seqs=self.ctx.max_seqs,
            layers=layers,
            hidden=int(embed.attrs["hidden"]),
            vocab=int(head.attrs["rows"]),
            ops=tuple(self.ops),
            weights=tuple(self.weights.values()),
        )

    # ---- helpers -------------------------------------------------------------------------------------------------

    def misfit(self, node: Node, why: str) -> TileccError:
        return error(
            "TC0220",
            f"op `{node.op}` cannot be lowered here: {why}",
            span=node.loc.span(node.name),
            note="the fused forms are: " + "; ".join(PATTERNS),
            help="write this part of the decode step in one of these forms, or add an op (docs/architecture.md)",
        )

    def take(self, *nodes: Node) -> tuple[str, ...]:
        self.done.update(n.name for n in nodes)
        return tuple(n.name for n in nodes)

    def result(self, node: Node, index: int = 0) -> str:
        return node.results[index].name

    def only_user(self, node: Node, value: str, *kinds: str) -> Node:
        users = self.users.get(value, ())
        if len(users) != 1 or users[0].op not in kinds:
            got = ", ".join(f"`{u.op}`" for u in users) or "nothing"
            raise self.misfit(node, f"its result must go to one {' or '.join(kinds)}, it goes to {got}")
        return users[0]

    def rounded(self, node: Node, value: str) -> Node:
        users = self.users.get(value, ())
        if len(users) != 1 or users[0].op != "round":
            raise error(
                "TC0221",
                f"the result of `{node.op}` is kept in bf16 by the kernel, but the model does not round it",
                span=node.loc.span(node.name),
                help="pass it through torch.ops.tilecc.round, so that the reference rounds where the kernel does",
            )
        return users[0]

    def param(self, node: Node, index: int) -> Param:
        return self.params[node.inputs[index]]

    def normed(self, node: Node, value: str) -> tuple[Node, Node, str] | None:
        """(norm, round, residual value) if `value` is round(rms_norm(residual))."""
        rounding = self.producers.get(value)
        if rounding is None or rounding.op != "round":
            return None
        norm = self.producers.get(rounding.inputs[0])
        return (norm, rounding, norm.inputs[0]) if norm is not None and norm.op == "rms_norm" else None

    def matrix(self, param: Param, rule: str, others: tuple[Param, ...] = (), **args: int | float) -> str:
        rows = param.shape[-2] * (1 + len(others)) if rule == "gate_up" else param.shape[-2]  # type: ignore[operator]
        sources = (param.source, *(p.source for p in others))
        return self.entry(
            Weight(param.name, "matrix", param.format, rule, sources, int(rows), int(param.shape[-1]), param.experts, args)
        )

    def vector(self, param: Param, kind: str, **args: int | float) -> str:
        rows, cols = (1, int(param.shape[0])) if len(param.shape) == 1 else (int(param.shape[0]), int(param.shape[1]))
        return self.entry(Weight(param.name, kind, param.format, "-", (param.source,), rows, cols, 0, args))

    def entry(self, weight: Weight) -> str:
        self.weights.setdefault(weight.name, weight)
        return weight.name

    def emit(
        self, label: str, kind: str, node: Node, fused: tuple[str, ...], attrs: dict[str, AttrValue], weights: dict[str, str]
    ) -> None:
        layer = layer_of(node.loc)
        name = f"layers.{layer}.{label}" if layer >= 0 else label
        self.ops.append(TileOp(name, kind, label, layer, fused, attrs, weights, loc=node.loc))

    def prologue(self, node: Node, value: str) -> tuple[dict[str, AttrValue], dict[str, str], tuple[str, ...]]:
        """Attributes, weights and fused nodes of where a projection's activations come from."""
        normed = self.normed(node, value)
        if normed is not None:
            norm, rounding, _ = normed
            attrs: dict[str, AttrValue] = {"source": "norm", "eps": float(norm.attrs["eps"])}
            return attrs, {"norm": self.vector(self.param(norm, 1), "norm")}, self.take(norm, rounding)
        maker = self.producers.get(value)
        if maker is None or maker.op != "round":
            raise self.misfit(node, "its input must be a rounded value")
        return {"source": "fragment"}, {}, ()

    # ---- patterns ------------------------------------------------------------------------------------------------

    def embed(self, node: Node) -> None:
        # Rows of a bf16 table need no rounding; a model may still write it.
        users = self.users.get(self.result(node), ())
        rounding = [u for u in users if u.op == "round" and len(users) == 1]
        weights = {"matrix": self.vector(self.param(node, 1), "embed")}
        hidden = int(self.param(node, 1).shape[1])
        self.emit("embed", "embed", node, self.take(node, *rounding), {"hidden": hidden}, weights)

    def linear(self, node: Node) -> None:
        users = self.users.get(self.result(node), ())
        kinds = {u.op for u in users}
        if kinds == {"split_qkv"}:
            self.qkv(node, users[0])
        elif kinds == {"add"} and len(users) == 1:
            self.project(node, users[0])
        elif kinds == {"route"} and len(users) == 1:
            self.router(node, users[0])
        elif kinds == {"silu"} and len(users) == 1:
            self.gate_up(node, users[0])
        elif kinds <= {"argmax"} and self.result(node) in self.graph.outputs:
            self.head(node)
        elif kinds == {"mul"} and len(users) == 1:
            silu = [self.producers.get(i) for i in users[0].inputs]
            if not any(s is not None and s.op == "silu" for s in silu):
                raise self.misfit(node, "a product of projections needs silu on one side")
            gate = next(s for s in silu if s is not None and s.op == "silu")
            self.gate_up(self.producers[gate.inputs[0]], gate)
        else:
            raise self.misfit(node, f"its result goes to {', '.join(sorted(kinds)) or 'nothing'}")

    def qkv(self, node: Node, split: Node) -> None:
        source, weights, fused = self.prologue(node, node.inputs[0])
        chain: list[Node] = [node, split]
        ropes: list[Node] = []
        for index in (0, 1):
            rope = self.only_user(split, self.result(split, index), "rope")
            ropes.append(rope)
            chain += [rope, self.rounded(rope, self.result(rope))]
        value = self.only_user(split, self.result(split, 2), "scale", "round")
        factor = 1.0
        chain.append(value)
        if value.op == "scale":
            factor = float(value.attrs["factor"])
            value = self.rounded(value, self.result(value))
            chain.append(value)
        if ropes[0].attrs != ropes[1].attrs:
            raise self.misfit(ropes[1], "queries and keys must use the same rotary embedding")
        attend = self.only_user(value, self.result(value), "attend")
        if tuple(attend.inputs[:3]) != tuple(self.result(n) for n in (chain[3], chain[5], value)):
            raise self.misfit(attend, "it must read the rounded q, k, v of one projection in this order")
        rotary, theta = int(ropes[0].attrs["rotary_dim"]), float(ropes[0].attrs["theta"])
        a = split.attrs
        rule = {k: int(a[k]) for k in ("chunks", "heads", "kv_heads", "head_dim", "v_head_dim")}
        weights["matrix"] = self.matrix(self.param(node, 1), "qkv", **rule, rotary=rotary)
        table = Weight(f"rope.{theta:g}.{rotary}", "rope", "f32", "-", (), self.ctx.max_context, rotary // 2, 0, {"theta": theta})
        weights["aux"] = self.entry(table)
        attrs: dict[str, AttrValue] = {**source, **a, "rotary": rotary, "value_scale": factor, "window": int(attend.attrs["window_keys"])}
        self.emit("qkv", "qkv", node, fused + self.take(*chain), attrs, weights)

    def attention(self, node: Node) -> None:
        rounding = self.rounded(node, self.result(node))
        split = self.producers[self.producers[self.producers[node.inputs[0]].inputs[0]].inputs[0]]
        window = int(node.attrs["window_keys"])
        splits = 1 if window else GLOBAL_SPLITS
        sink = len(node.inputs) > 7
        attrs: dict[str, AttrValue] = {
            **{k: split.attrs[k] for k in ("heads", "kv_heads", "head_dim", "v_head_dim")},
            "window": window, "scale": float(node.attrs["softmax_scale"]), "splits": splits, "sink": sink,
        }  # fmt: skip
        weights = {"aux": self.vector(self.param(node, 7), "f32")} if sink else {}
        self.ctx.decide(
            "fuse", "attention splits", f"{splits} for {'window ' + str(window) if window else 'global layers'}",
            "one split: the window is short" if window else "constant of the Program: the bits of a row depend on neither length nor CTAs",
        )  # fmt: skip
        fused = self.take(node, rounding)
        self.emit("attention", "attention", node, fused, attrs, weights)
        if splits > 1:
            self.emit("attention_merge", "attention_merge", node, fused, attrs, weights)

    def project(self, node: Node, add: Node) -> None:
        source, weights, fused = self.prologue(node, node.inputs[0])
        maker = self.producers[self.producers[node.inputs[0]].inputs[0]]
        label = "o_proj" if maker.op == "attend" else "down"
        param = self.param(node, 1)
        weights["matrix"] = self.matrix(param, "plain")
        attrs: dict[str, AttrValue] = {**source, "input": "attention" if maker.op == "attend" else "hidden"}
        self.emit(label, "project", node, fused + self.take(node), attrs, weights)
        self.residual(node, add, "attn_reduce" if maker.op == "attend" else "mlp_reduce", label)

    def residual(self, node: Node, add: Node, label: str, producer: str) -> None:
        rounding = self.rounded(add, self.result(add))
        self.emit(label, "reduce", add, self.take(add, rounding), {"producer": producer}, {})

    def router(self, node: Node, route: Node) -> None:
        source, weights, fused = self.prologue(node, node.inputs[0])
        param = self.param(node, 1)
        weights["matrix"] = self.matrix(param, "plain")
        self.emit("router", "router", node, fused + self.take(node), {**source, "experts": int(param.shape[0])}, weights)
        attrs: dict[str, AttrValue] = {**route.attrs, "experts": int(param.shape[0])}
        bias = self.vector(self.param(route, 1), "f32")
        self.emit("route", "route", route, self.take(route), attrs, {"aux": bias})

    def gate_up(self, gate: Node, silu: Node) -> None:
        mul = self.only_user(silu, self.result(silu), "mul")
        up = next((self.producers.get(i) for i in mul.inputs if i != self.result(silu)), None)
        if up is None or up.op != "linear" or up.inputs[0] != gate.inputs[0] or gate.op != "linear":
            raise self.misfit(mul, "gate and up must be projections of the same input")
        rounding = self.rounded(mul, self.result(mul))
        source, weights, fused = self.prologue(gate, gate.inputs[0])
        g, u = self.param(gate, 1), self.param(up, 1)
        if g.format != u.format or g.shape != u.shape:
            raise self.misfit(mul, f"gate is {g.format}{list(g.shape)}, up is {u.format}{list(u.shape)}: they must agree")
        weights["matrix"] = self.matrix(g, "gate_up", (u,))
        fused = fused + self.take(gate, up, silu, mul, rounding)
        self.emit("gate_up", "gate_up", gate, fused, {**source, "width": int(g.shape[0])}, weights)

    def experts(self, node: Node) -> None:
        if not node.attrs["round_hidden"]:
            raise error("TC0221", "the kernel keeps the experts' hidden vector in bf16, but the model does not round it",
                        span=node.loc.span(node.name), help="call torch.ops.tilecc.experts with round_hidden=True")  # fmt: skip
        add = self.only_user(node, self.result(node), "add")
        route = self.producers.get(node.inputs[1])
        if route is None or route.op != "route" or node.inputs[2] != self.result(route, 1):
            raise self.misfit(node, "ids and weights must come from one route")
        source, weights, fused = self.prologue(node, node.inputs[0])
        gate, up, down = (self.param(node, i) for i in (3, 4, 5))
        weights["matrix"] = self.matrix(gate, "gate_up", (up,))
        shape: dict[str, AttrValue] = {"experts": int(gate.shape[0]), "width": int(gate.shape[1]), "k": int(route.attrs["k"])}
        self.emit("experts_up", "experts_up", node, fused + self.take(node), {**source, **shape}, weights)
        self.emit("experts_down", "experts_down", node, (node.name,), {"source": "fragment", **shape},
                  {"matrix": self.matrix(down, "plain")})  # fmt: skip
        self.residual(node, add, "moe_reduce", "experts_down")

    def head(self, node: Node) -> None:
        source, weights, fused = self.prologue(node, node.inputs[0])
        param = self.param(node, 1)
        weights["matrix"] = self.matrix(param, "plain")
        self.emit("head", "head", node, fused + self.take(node), {**source, "rows": int(param.shape[0])}, weights)

    def commit(self, node: Node) -> None:
        self.emit("commit", "commit", node, self.take(node), {}, {})


def layer_of(loc: Loc) -> int:
    """Layer number in a module path such as `layers.3.self_attn`; -1 outside the layers."""
    parts = loc.module.split(".")
    for name, number in zip(parts, parts[1:], strict=False):
        if name == "layers" and number.isdigit():
            return int(number)
    return -1
