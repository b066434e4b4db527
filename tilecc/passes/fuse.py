"""fuse: Graph -> TileGraph. Which tensor ops become one TileOp.

One fusion per boundary: a projection takes its norm (see `prologue`) and everything up to
the next exchange between CTAs as epilogue.

    round(rms_norm(x)) -> linear -> split_qkv -> rope, scale, round     =>  qkv
    attend -> round                                                     =>  attention (+ attention_merge)
    linear (-> all_reduce) -> add(x) -> round                           =>  project, reduce
    round(rms_norm(x)) -> linear -> route                               =>  router, route
    round(rms_norm(x)) -> linear, linear -> silu, mul -> round          =>  gate_up
    experts (-> all_reduce) -> add(x) -> round                          =>  experts_up, experts_down, reduce
    round(rms_norm(x)) -> linear -> argmax                              =>  head, commit
    round(rms_norm(x)) -> linear -> argmax_all                          =>  head, argmax_push, commit

An all_reduce ends the op before it, which pushes its bf16 term of the sum to every rank, and starts the
reduce op, which adds the terms in rank order.

Every `round` of the model must be a place where the kernel rounds: a value kept between ops, or a value on
its way into an MMA. The kernel keeps one value per buffer: the residual stream `x`, the `attention` output,
the dense `hidden` vector. A graph of another shape, or one that reads what a buffer no longer holds, is
refused at the node that does not fit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from tilecc.diag import TileccError, error
from tilecc.ir.graph import AttrValue, Graph, Node, Param
from tilecc.ir.graph_ops import DRAFT_OPS
from tilecc.ir.loc import Loc
from tilecc.ir.tile import TileGraph, TileOp, Weight
from tilecc.passes.context import PassContext

KV_ROUNDING = {"round": "bf16", "round_e4m3": "fp8"}
"""What rounds keys and values on their way into the cache, and the cache's format."""

PATTERNS = (
    "round(embedding)",
    "linear of round(rms_norm) or of a rounded hidden vector",
    "split_qkv, rope, scale, round (k, v: or round_e4m3) into attend",
    "round(attend)",
    "round(add(x, linear)) and round(add(x, experts))",
    "linear into route",
    "round(mul(silu(linear), linear))",
    "argmax of the last linear",
)


def fuse(graph: Graph, ctx: PassContext) -> TileGraph:
    """Fuse a Graph. Raises TileccError TC0220 for a node that fits no pattern, TC0221 for a missing rounding
    point."""
    return _Fuser(graph, ctx).run()


@dataclass
class _Fuser:
    graph: Graph
    ctx: PassContext
    ops: list[TileOp] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    holds: dict[str, str] = field(default_factory=dict)
    """The graph value that each of the buffers x, attention and hidden holds at this point."""

    def __post_init__(self) -> None:
        self.producers = self.graph.producers()
        self.users = self.graph.users()
        self.params = {p.name: p for p in self.graph.params}

    def run(self) -> TileGraph:
        self.refuse_what_has_no_form()
        for node in self.graph.nodes:
            if node.name in self.done:
                continue
            handler = {
                "embedding": self.embed,
                "linear": self.linear,
                "attend": self.attention,
                "experts": self.experts,
                "argmax": self.commit,
                "argmax_all": self.commit,
            }.get(node.op)
            if handler is not None:
                handler(node)
        left = [n for n in self.graph.nodes if n.name not in self.done]
        if left:
            raise self.misfit(left[0], "no fused op takes it")
        found = {op.kind: op for op in self.ops}
        if not {"embed", "head", "commit"} <= set(found):
            lacks = "an embedding, a last linear and its argmax"
            raise self.misfit(self.graph.nodes[-1], f"a decode step needs {lacks}")
        head, embed = found["head"], found["embed"]
        layers = 1 + max((op.layer for op in self.ops), default=-1)
        return TileGraph(
            name=self.graph.name,
            ranks=self.graph.ranks,
            target=self.ctx.target.name,
            max_context=self.ctx.max_context,
            max_seqs=self.ctx.max_seqs,
            max_rows=self.ctx.max_rows,
            layers=layers,
            hidden=int(embed.attrs["hidden"]),
            vocab=int(head.attrs["rows"]),
            ops=tuple(self.ops),
            weights=tuple(self.weights.values()),
        )

    def refuse_what_has_no_form(self) -> None:
        """Raise TC0225 for a draft step, and for taps."""
        kinds = (*DRAFT_OPS, "rank_part")
        found = [(n, f"op `{n.op}` of the draft step") for n in self.graph.nodes if n.op in kinds]
        taps = self.graph.outputs[2:]
        found += [(self.producers[t], f"the tap `{t}`") for t in taps if t in self.producers]
        if found:
            node, what = found[0]
            raise error(
                "TC0225",
                f"{what} cannot become a tile op yet",
                span=node.loc.span(node.name),
                note=f"{len(found)} such places in this graph" if len(found) > 1 else "",
                help="stop after the graph of a rank: --to shard",
            )

    # ---- helpers -------------------------------------------------------------------------------------------

    def misfit(self, node: Node, why: str) -> TileccError:
        return error(
            "TC0220",
            f"op `{node.op}` cannot be lowered here: {why}",
            span=node.loc.span(node.name),
            note="the fused forms are: " + "; ".join(PATTERNS),
            help="write this part of the decode step in one of these forms,"
            " or add an op (docs/architecture.md)",
        )

    def take(self, *nodes: Node) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(n.name for n in nodes))
        self.done.update(names)
        return names

    def result(self, node: Node, index: int = 0) -> str:
        return node.results[index].name

    def only_user(self, node: Node, value: str, *kinds: str) -> Node:
        users = self.users.get(value, ())
        if len(users) != 1 or users[0].op not in kinds:
            got = ", ".join(f"`{u.op}`" for u in users) or "nothing"
            raise self.misfit(node, f"its result must go to one {' or '.join(kinds)}, it goes to {got}")
        return users[0]

    def rounded(self, node: Node, value: str, *kinds: str) -> Node:
        users = self.users.get(value, ())
        if len(users) != 1 or users[0].op not in (kinds or ("round",)):
            raise error(
                "TC0221",
                f"the result of `{node.op}` is kept in bf16 by the kernel, but the model does not round it",
                span=node.loc.span(node.name),
                help="pass it through torch.ops.tilecc.round,"
                " so that the reference rounds where the kernel does",
            )
        return users[0]

    def param(self, node: Node, index: int) -> Param:
        return self.params[node.inputs[index]]

    def normed(self, value: str) -> tuple[Node, Node, str] | None:
        """(norm, round, residual value) if `value` is round(rms_norm(residual))."""
        rounding = self.producers.get(value)
        if rounding is None or rounding.op != "round":
            return None
        norm = self.producers.get(rounding.inputs[0])
        return (norm, rounding, norm.inputs[0]) if norm is not None and norm.op == "rms_norm" else None

    def matrix(self, param: Param, rule: str, others: tuple[Param, ...] = (), **args: int | float) -> str:
        stacked = 1 + len(others) if rule == "gate_up" else 1
        rows = int(param.shape[-2]) * stacked
        sources = (param.source, *(p.source for p in others))
        return self.entry(
            Weight(
                param.name,
                "matrix",
                param.format,
                rule,
                sources,
                rows,
                int(param.shape[-1]),
                param.experts,
                args,
            )
        )

    def vector(self, param: Param, kind: str, **args: int | float) -> str:
        rows, cols = (
            (1, int(param.shape[0])) if len(param.shape) == 1 else (int(param.shape[0]), int(param.shape[1]))
        )
        return self.entry(Weight(param.name, kind, param.format, "-", (param.source,), rows, cols, 0, args))

    def entry(self, weight: Weight) -> str:
        """Name of the image entry; a tensor that is stored in two ways (tied embeddings) gets two entries."""
        if self.weights.setdefault(weight.name, weight) != weight:
            name = f"{weight.name}.{weight.kind}"
            return self.entry(replace(weight, name=name))
        return weight.name

    def read(self, node: Node, buffer: str, value: str) -> None:
        """Refuse to read a value that the kernel does not keep, or has overwritten."""
        if self.holds.get(buffer) != value:
            kept = f"`{self.holds[buffer]}`" if buffer in self.holds else "nothing yet"
            raise self.misfit(node, f"it uses `{value}` where the kernel keeps {kept} in `{buffer}`")

    def emit(
        self,
        label: str,
        kind: str,
        node: Node,
        fused: tuple[str, ...],
        attrs: dict[str, AttrValue],
        weights: dict[str, str],
    ) -> None:
        layer = layer_of(node.loc)
        name = f"layers.{layer}.{label}" if layer >= 0 else label
        if any(op.name == name for op in self.ops):
            where = f"layer {layer}" if layer >= 0 else "the step outside the layers"
            raise self.misfit(node, f"it is a second {label} of {where}, and a layer has one of each op")
        self.ops.append(TileOp(name, kind, label, layer, fused, attrs, weights, loc=node.loc))

    def prologue(
        self, node: Node, value: str
    ) -> tuple[dict[str, AttrValue], dict[str, str], tuple[str, ...]]:
        """Attributes and fused nodes of the norm behind which a projection stands. Its weights go to the op
        that wrote the residual: that op stores x * w beside x, and the projection's epilogue multiplies by
        1 / rms of the row."""
        normed = self.normed(value)
        if normed is None:
            raise self.misfit(node, "its input must be round(rms_norm(x))")
        norm, rounding, residual = normed
        self.read(norm, "x", residual)
        attrs: dict[str, AttrValue] = {"source": "norm", "eps": float(norm.attrs["eps"])}
        weights = self.vector(self.param(norm, 1), "norm")
        index = max(i for i, op in enumerate(self.ops) if op.kind in ("embed", "reduce"))
        writer = self.ops[index]
        if writer.weights.setdefault("norm", weights) != weights:
            raise self.misfit(node, f"the residual already feeds the norm `{writer.weights['norm']}`")
        return attrs, {}, self.take(norm, rounding)

    # ---- patterns ------------------------------------------------------------------------------------------

    def embed(self, node: Node) -> None:
        # Rows of a bf16 table need no rounding; a model may still write it.
        users = self.users.get(self.result(node), ())
        rounding = [u for u in users if u.op == "round" and len(users) == 1]
        weights = {"matrix": self.vector(self.param(node, 1), "embed")}
        hidden = int(self.param(node, 1).shape[1])
        self.emit("embed", "embed", node, self.take(node, *rounding), {"hidden": hidden}, weights)
        self.holds["x"] = self.result((node, *rounding)[-1])

    def summed(self, node: Node) -> Node:
        """The all_reduce over a node's result, or the node itself."""
        users = self.users.get(self.result(node), ())
        return users[0] if len(users) == 1 and users[0].op == "all_reduce" else node

    def linear(self, node: Node) -> None:
        users = self.users.get(self.result(self.summed(node)), ())
        kinds = {u.op for u in users}
        if kinds == {"split_qkv"}:
            self.qkv(node, users[0])
        elif kinds == {"add"} and len(users) == 1:
            self.project(node, users[0])
        elif kinds == {"route"} and len(users) == 1:
            self.router(node, users[0])
        elif kinds == {"silu"} and len(users) == 1:
            self.gate_up(node, users[0])
        elif kinds in ({"argmax"}, {"argmax_all"}) and self.result(node) in self.graph.outputs:
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
            kinds = KV_ROUNDING if index == 1 else ("round",)
            chain += [rope, self.rounded(rope, self.result(rope), *kinds)]
        value = self.only_user(split, self.result(split, 2), "scale", *KV_ROUNDING)
        factor = 1.0
        chain.append(value)
        if value.op == "scale":
            factor = float(value.attrs["factor"])
            value = self.rounded(value, self.result(value), *KV_ROUNDING)
            chain.append(value)
        if value.op != chain[5].op:
            raise self.misfit(value, f"keys are stored by `{chain[5].op}`, values by `{value.op}`")
        if ropes[0].attrs != ropes[1].attrs:
            raise self.misfit(ropes[1], "queries and keys must use the same rotary embedding")
        attend = self.only_user(value, self.result(value), "attend")
        if tuple(attend.inputs[:3]) != tuple(self.result(n) for n in (chain[3], chain[5], value)):
            raise self.misfit(attend, "it must read the rounded q, k, v of one projection in this order")
        rotary, theta = int(ropes[0].attrs["rotary_dim"]), float(ropes[0].attrs["theta"])
        a = split.attrs
        rule = {k: int(a[k]) for k in ("chunks", "heads", "kv_heads", "head_dim", "v_head_dim")}
        weights["matrix"] = self.matrix(self.param(node, 1), "qkv", (), **rule, rotary=rotary)
        table = Weight(
            f"rope.{theta:g}.{rotary}" if float(f"{theta:g}") == theta else f"rope.{theta!r}.{rotary}",
            "rope",
            "f32",
            "-",
            (),
            self.ctx.max_context,
            rotary // 2,
            0,
            {"theta": theta},
        )
        weights["aux"] = self.entry(table)
        attrs: dict[str, AttrValue] = {
            **source,
            **a,
            "rotary": rotary,
            "value_scale": factor,
            "window": int(attend.attrs["window_keys"]),
            "kv": KV_ROUNDING[value.op],
        }
        self.emit("qkv", "qkv", node, fused + self.take(*chain), attrs, weights)

    def attention(self, node: Node) -> None:
        rounding = self.rounded(node, self.result(node))
        origin: Node | None = node
        for _ in ("round", "rope", "split_qkv"):
            origin = self.producers.get(origin.inputs[0]) if origin is not None else None
        if origin is None or origin.op != "split_qkv":
            raise self.misfit(node, "its queries must be round(rope(.)) of a split_qkv")
        split = origin
        window = int(node.attrs["window_keys"])
        sink = len(node.inputs) > 7
        stored = self.producers[node.inputs[2]]
        attrs: dict[str, AttrValue] = {
            **{k: split.attrs[k] for k in ("heads", "kv_heads", "head_dim", "v_head_dim")},
            "window": window, "scale": float(node.attrs["softmax_scale"]), "sink": sink,
            "kv": KV_ROUNDING[stored.op],
        }  # fmt: skip
        weights = {"aux": self.vector(self.param(node, 7), "f32")} if sink else {}
        fused = self.take(node, rounding)
        self.emit("attention", "attention", node, fused, attrs, weights)
        if not window:
            self.emit("attention_merge", "attention_merge", node, fused, attrs, weights)
        self.holds["attention"] = self.result(rounding)

    def project(self, node: Node, add: Node) -> None:
        rounding = self.producers.get(node.inputs[0])
        maker = self.producers.get(rounding.inputs[0]) if rounding is not None else None
        if rounding is None or maker is None or rounding.op != "round" or maker.op not in ("attend", "mul"):
            raise self.misfit(
                node, "a projection into the residual takes round(attend) or round(mul(silu, up))"
            )
        label, buffer = ("o_proj", "attention") if maker.op == "attend" else ("down", "hidden")
        self.read(node, buffer, node.inputs[0])
        weights = {"matrix": self.matrix(self.param(node, 1), "plain")}
        attrs: dict[str, AttrValue] = {"source": "fragment", "input": buffer, **self.ranks(node)}
        self.emit(label, "project", node, self.take(node, self.summed(node)), attrs, weights)
        self.residual(node, add, "attn_reduce" if buffer == "attention" else "mlp_reduce", label)

    def ranks(self, node: Node) -> dict[str, AttrValue]:
        """Attribute of an op whose result is one rank's term of a sum."""
        return {} if self.summed(node) is node else {"ranks": self.graph.ranks}

    def residual(self, node: Node, add: Node, label: str, producer: str) -> None:
        """x = round(x + node): `add` must add to what the residual stream holds now."""
        others = [i for i in add.inputs if i != self.result(self.summed(node))]
        if len(others) != 1:
            raise self.misfit(add, "it must add a projection to the residual stream")
        self.read(add, "x", others[0])
        rounding = self.rounded(add, self.result(add))
        attrs: dict[str, AttrValue] = {"producer": producer, **self.ranks(node)}
        self.emit(label, "reduce", add, self.take(add, rounding), attrs, {})
        self.holds["x"] = self.result(rounding)

    def router(self, node: Node, route: Node) -> None:
        source, weights, fused = self.prologue(node, node.inputs[0])
        param = self.param(node, 1)
        weights["matrix"] = self.matrix(param, "plain")
        self.emit(
            "router",
            "router",
            node,
            fused + self.take(node),
            {**source, "experts": int(param.shape[0])},
            weights,
        )
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
            raise self.misfit(
                mul, f"gate is {g.format}{list(g.shape)}, up is {u.format}{list(u.shape)}: they must agree"
            )
        weights["matrix"] = self.matrix(g, "gate_up", (u,))
        fused = fused + self.take(gate, up, silu, mul, rounding)
        self.emit("gate_up", "gate_up", gate, fused, {**source, "width": int(g.shape[0])}, weights)
        self.holds["hidden"] = self.result(rounding)

    def experts(self, node: Node) -> None:
        if not node.attrs["round_hidden"]:
            raise error(
                "TC0221",
                "the kernel keeps the experts' hidden vector in bf16, but the model does not round it",
                span=node.loc.span(node.name),
                help="call torch.ops.tilecc.experts with round_hidden=True",
            )
        summed = self.summed(node)
        add = self.only_user(summed, self.result(summed), "add")
        route = self.producers.get(node.inputs[1])
        if route is None or route.op != "route" or node.inputs[2] != self.result(route, 1):
            raise self.misfit(node, "ids and weights must come from one route")
        if any(len(self.users[v.name]) != 1 for v in route.results) or layer_of(route.loc) != layer_of(
            node.loc
        ):
            raise self.misfit(
                node, "the kernel keeps the routing of one layer, for the experts of that layer"
            )
        source, weights, fused = self.prologue(node, node.inputs[0])
        gate, up, down = (self.param(node, i) for i in (3, 4, 5))
        if gate.format != up.format:
            raise self.misfit(node, f"gate is {gate.format}, up is {up.format}: they must agree")
        weights["matrix"] = self.matrix(gate, "gate_up", (up,))
        shape: dict[str, AttrValue] = {
            "experts": int(gate.shape[0]),
            "width": int(gate.shape[1]),
            "k": int(route.attrs["k"]),
        }
        self.emit("experts_up", "experts_up", node, fused + self.take(node), {**source, **shape}, weights)
        attrs: dict[str, AttrValue] = {"source": "fragment", **shape, **self.ranks(node)}
        self.emit("experts_down", "experts_down", node, self.take(node, summed), attrs,
                  {"matrix": self.matrix(down, "plain")})  # fmt: skip
        self.residual(node, add, "moe_reduce", "experts_down")

    def head(self, node: Node) -> None:
        source, weights, fused = self.prologue(node, node.inputs[0])
        param = self.param(node, 1)
        weights["matrix"] = self.matrix(param, "plain")
        self.emit(
            "head", "head", node, fused + self.take(node), {**source, "rows": int(param.shape[0])}, weights
        )

    def commit(self, node: Node) -> None:
        attrs: dict[str, AttrValue] = {"ranks": self.graph.ranks} if node.op == "argmax_all" else {}
        if attrs:
            self.emit("argmax_push", "argmax_push", node, (node.name,), dict(attrs), {})
        self.emit("commit", "commit", node, self.take(node), attrs, {})


def layer_of(loc: Loc) -> int:
    """Layer number in a module path such as `layers.3.self_attn`; -1 outside the layers."""
    parts = loc.module.split(".")
    for name, number in itertools.pairwise(parts):
        if name == "layers" and number.isdigit():
            return int(number)
    return -1
