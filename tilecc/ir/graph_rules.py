"""Rules of the Graph verifier: one small function per property, each with its line of documentation.

A rule yields one diagnostic per violation. Rules are independent: one that meets what another rule reports
(an unknown name, an unknown op) skips it, so that each mistake is reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tilecc.diag import Diagnostic
from tilecc.diag.model import nearest
from tilecc.ir.graph import FORMATS, ROWS, Dim, Graph, Node, Param, Shape, State, Value
from tilecc.ir.graph_ops import OPS, Operand, ShapeError
from tilecc.ir.loc import UNKNOWN, Loc
from tilecc.ir.verify import Rule, violation

_CHECKS: list[Rule[Graph]] = []

Check = Callable[[Graph], Iterator[Diagnostic]]


def _rule(doc: str) -> Callable[[Check], Check]:
    """Register a check under its function name with dashes."""

    def register(check: Check) -> Check:
        _CHECKS.append(Rule(check.__name__.replace("_", "-"), doc, check))
        return check

    return register


def _leading(graph: Graph) -> tuple[Value | Param | State, ...]:
    """What is defined before the first node."""
    return (*graph.inputs, *graph.params, *graph.states)


def _named(graph: Graph) -> Iterator[tuple[str, Loc]]:
    """Every definition of a name in the graph, in order."""
    for item in _leading(graph):
        yield item.name, item.loc if isinstance(item, Param) else UNKNOWN
    for node in graph.nodes:
        for value in node.results:
            yield value.name, node.loc


def _bound(node: Node) -> list[tuple[Operand, str]]:
    """The operands of a node's op with the names given for them. Empty for an unknown op or a wrong count."""
    info = OPS.get(node.op)
    if info is None:
        return []
    required = sum(not operand.optional for operand in info.operands)
    if not required <= len(node.inputs) <= len(info.operands):
        return []
    return list(zip(info.operands, node.inputs, strict=False))


def _dtype(item: Value | Param | State) -> str:
    return item.dtype if isinstance(item, Value) else "f32"


def _kind(item: Value | Param | State) -> str:
    return {Value: "value", Param: "param", State: "state"}[type(item)]


@_rule("every param, state, input and result has its own name, and every node too")
def unique_names(graph: Graph) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for name, loc in _named(graph):
        if name in seen:
            yield violation("unique-names", f"`{name}` is defined twice", loc)
        seen.add(name)
    nodes: set[str] = set()
    for node in graph.nodes:
        if node.name in nodes:
            yield violation("unique-names", f"two nodes are named `{node.name}`", node.loc)
        nodes.add(node.name)


@_rule("every name a node reads is an input, a param, a state or the result of an earlier node")
def defined_before_use(graph: Graph) -> Iterator[Diagnostic]:
    known = {item.name for item in _leading(graph)}
    later = set(graph.operands())
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                why = "before it is defined" if name in later else "which is not defined"
                help = "" if name in later else nearest(name, later)
                yield violation("defined-before-use", f"`{node.name}` reads `{name}` {why}", node.loc, help)
        known.update(value.name for value in node.results)


@_rule("every node's op is in the op table")
def known_op(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.nodes:
        if node.op not in OPS:
            help = nearest(node.op, OPS)
            yield violation("known-op", f"`{node.name}`: there is no op `{node.op}`", node.loc, help)


@_rule("every node has as many inputs and results as its op")
def arity(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.nodes:
        info = OPS.get(node.op)
        if info is None:
            continue
        if not _bound(node):
            names = ", ".join(f"{o.name} (optional)" if o.optional else o.name for o in info.operands)
            message = f"`{node.name}`: {node.op} reads {names}; {len(node.inputs)} inputs given"
            yield violation("arity", message, node.loc)
        if len(node.results) != len(info.results):
            message = f"`{node.name}`: {node.op} makes {len(info.results)} results, {len(node.results)} given"
            yield violation("arity", message, node.loc)


@_rule("every operand is of the kind (value, param, state) and dtype its op reads")
def operand_kinds(graph: Graph) -> Iterator[Diagnostic]:
    operands = graph.operands()
    for node in graph.nodes:
        for operand, name in _bound(node):
            item = operands.get(name)
            if item is None:
                continue
            want, have = f"{operand.dtype} {operand.kind}", f"{_dtype(item)} {_kind(item)}"
            if want != have:
                message = f"`{node.name}`: {operand.name} of {node.op} must be a {want}, `{name}` is a {have}"
                yield violation("operand-kinds", message, node.loc)


@_rule("every node has exactly the attributes of its op, each of its type")
def attributes(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.nodes:
        info = OPS.get(node.op)
        if info is None:
            continue
        for name in [n for n in info.attrs if n not in node.attrs]:
            yield violation("attributes", f"`{node.name}`: {node.op} lacks attribute {name}", node.loc)
        for name, value in node.attrs.items():
            want = info.attrs.get(name)
            if want is None:
                yield violation("attributes", f"`{node.name}`: {node.op} has no attribute {name}", node.loc)
            elif type(value) is not want:
                message = f"`{node.name}`: {name} of {node.op} must be {want.__name__}, is {value!r}"
                yield violation("attributes", message, node.loc)


@_rule("every node's results have the dtypes and shapes that its op makes of its operands")
def shapes_agree(graph: Graph) -> Iterator[Diagnostic]:
    operands = graph.operands()
    bad = {d.message for d in attributes(graph)}
    for node in graph.nodes:
        info, bound = OPS.get(node.op), _bound(node)
        if info is None or not bound or any(name not in operands for _, name in bound):
            continue
        if set(node.attrs) != set(info.attrs) or any(m.startswith(f"`{node.name}`:") for m in bad):
            continue
        try:
            shapes = info.infer([operands[name].shape for _, name in bound], node.attrs)
        except ShapeError as exc:
            yield violation("shapes-agree", f"`{node.name}`: {node.op}: {exc}", node.loc)
            continue
        for value, shape, (_, dtype) in zip(node.results, shapes, info.results, strict=False):
            if value.shape != shape or value.dtype != dtype:
                have, want = _typed(value.dtype, value.shape), _typed(dtype, shape)
                message = f"`{value.name}` is {have}, but {node.op} makes {want}"
                yield violation("shapes-agree", message, node.loc)


def _typed(dtype: str, shape: Shape) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


@_rule("every extent is a positive int, or T; a param has no T")
def extents(graph: Graph) -> Iterator[Diagnostic]:
    def fits(dim: Dim, symbol: str) -> bool:
        return dim == symbol or (type(dim) is int and dim > 0)

    for name, item in graph.operands().items():
        if isinstance(item, State):
            sound = item.heads > 0 and item.dim > 0
        else:
            symbol = ROWS if isinstance(item, Value) else ""
            sound = all(fits(dim, symbol) for dim in item.shape)
        if not sound:
            yield violation("extents", f"`{name}` has the shape {_typed(_dtype(item), item.shape)}")


@_rule("every param has a known stored format and a source tensor")
def param_sources(graph: Graph) -> Iterator[Diagnostic]:
    for param in graph.params:
        if param.format not in FORMATS:
            message = f"param `{param.name}` has unknown format {param.format!r}"
            yield violation("param-sources", message, param.loc, "known: " + ", ".join(FORMATS))
        if not param.source or ("{e}" in param.source) != (param.experts > 0):
            message = f"param `{param.name}` of {param.experts} experts has the source {param.source!r}"
            yield violation("param-sources", message, param.loc, "{e} stands for the expert of a stack")
        if param.experts and param.shape[:1] != (param.experts,):
            message = f"param `{param.name}` stacks {param.experts} experts, its shape is {list(param.shape)}"
            yield violation("param-sources", message, param.loc)


@_rule("the ranks of a graph are those of its exchanges; its params have as many parts, or are whole")
def ranks_agree(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.nodes:
        ranks = node.attrs.get("ranks", graph.ranks)
        if ranks != graph.ranks:
            message = f"`{node.name}` exchanges between {ranks} ranks, the graph has {graph.ranks}"
            yield violation("ranks-agree", message, node.loc)
    for param in graph.params:
        if param.shard_parts not in (1, graph.ranks) or param.shard_axis not in (0, 1):
            message = f"param `{param.name}` is part of {param.shard_parts} along axis {param.shard_axis}"
            yield violation("ranks-agree", f"{message}, the graph has {graph.ranks} ranks", param.loc)


@_rule("every param and every state is used")
def all_used(graph: Graph) -> Iterator[Diagnostic]:
    used = {name for node in graph.nodes for name in node.inputs}
    for param in graph.params:
        if param.name not in used:
            yield violation("all-used", f"param `{param.name}` is not used", param.loc)
    for state in graph.states:
        if state.name not in used:
            yield violation("all-used", f"state `{state.name}` is not used")


@_rule("every node is needed: one of its results is read or is an output")
def no_dead_nodes(graph: Graph) -> Iterator[Diagnostic]:
    used = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
    for node in graph.nodes:
        if not any(value.name in used for value in node.results):
            yield violation("no-dead-nodes", f"nothing reads the result of `{node.name}`", node.loc)


@_rule("there is an output, and every output is a value of the graph")
def outputs_exist(graph: Graph) -> Iterator[Diagnostic]:
    operands = graph.operands()
    if not graph.outputs:
        yield violation("outputs-exist", f"graph `{graph.name}` has no output")
    for name in graph.outputs:
        if not isinstance(operands.get(name), Value):
            yield violation("outputs-exist", f"output `{name}` is not a value of the graph")


@_rule("each state belongs to one attend node of its layer, in the place of its kind (k or v)")
def states_owned(graph: Graph) -> Iterator[Diagnostic]:
    states = {state.name: state for state in graph.states}
    owner: dict[str, Node] = {}
    for node in graph.nodes:
        for operand, name in _bound(node):
            state = states.get(name)
            if state is None or operand.kind != "state":
                continue
            if name in owner:
                message = f"state `{name}` is used by `{owner[name].name}` and by `{node.name}`"
                yield violation("states-owned", message, node.loc)
            owner[name] = node
            if operand.name != f"{state.kind}_cache" or node.attrs.get("layer") != state.layer:
                message = f"`{node.name}` of layer {node.attrs.get('layer')} uses `{name}` as {operand.name}"
                note = f"{message}, but it holds {state.kind} of layer {state.layer}"
                yield violation("states-owned", note, node.loc)


# Operands that the kernel feeds to the tensor cores, or stores, as bf16.
_BF16_OPERANDS = {
    "linear": ("x",),
    "attend": ("q", "k", "v"),
    "attend_block": ("q", "k", "v", "ctx_k", "ctx_v"),
    "experts": ("y",),
}


@_rule(
    "the activations of linear, attend and experts are bf16-rounded; a linear that only routes may read f32"
)
def rounding_points(graph: Graph) -> Iterator[Diagnostic]:
    producers, users, operands = graph.producers(), graph.users(), graph.operands()

    def rounded(name: str) -> bool:
        node = producers.get(name)
        if node is not None and node.op == "rank_part":
            node = producers.get(node.inputs[0])
            if node is None:
                return True  # a part of an input of the step
        if node is None or node.op in ("round", "round_e4m3"):
            return node is not None
        table = operands.get(node.inputs[-1]) if node.op == "embedding" and node.inputs else None
        return isinstance(table, Param) and table.format == "bf16"

    for node in graph.nodes:
        results = [value.name for value in node.results]
        readers = [reader.op for name in results for reader in users.get(name, ())]
        if node.op == "linear" and readers and set(readers) == {"route"}:
            continue
        for operand, name in _bound(node):
            if operand.name in _BF16_OPERANDS.get(node.op, ()) and name in producers and not rounded(name):
                message = f"{operand.name} of {node.op} `{node.name}` is not rounded to bf16"
                help = f"pass `torch.ops.tilecc.round({operand.name})`"
                found = violation("rounding-points", message, node.loc, help)
                made = producers[name].loc
                yield replace(found, secondary=(made.span("made here"),)) if made.file else found


GRAPH_RULES: tuple[Rule[Graph], ...] = tuple(_CHECKS)
"""The rules of the Graph verifier, in the order of their reports."""
