"""The front end: a model file becomes a Graph.

    graph = trace_model(Path("models/mimo_tiny.py"), config=None)

Nothing is decided here: each op of the exported step becomes one node with its source line and module path.
The module lives on meta tensors, so a model of 1 T parameters costs no memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import Node as FxNode

from tilecc.diag import Diagnostic, Span, TileccError, error
from tilecc.diag.model import nearest
from tilecc.ir.graph import ROWS, Dim, Graph, Node, Param, Shape, State, Value
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.loc import Loc
from tilecc.ir.verify import verify
from tilecc.trace.converters import (
    CONVERTERS,
    Call,
    Unsupported,
    attr_of,
    bound_arguments,
    has_effect,
    is_getitem,
    is_shape_arithmetic,
    lowerable_ops,
    op_name,
)
from tilecc.trace.export import export, further_inputs, meta_caches, module_path
from tilecc.trace.load import CONTRACT, make_module, user_code
from tilecc.trace.names import Names
from tilecc.trace.source import Sources
from tilecc.weights.spec import ParamSpec

STEP_INPUTS = ("tokens", "positions", "seqs")
_DTYPES = {torch.float32: "f32", torch.int64: "i64"}


def trace_model(
    model_file: Path, config: dict[str, Any] | None = None, kv: str = "bf16", taps: Sequence[int] = ()
) -> Graph:
    """Trace the decode step of a model file to a verified Graph named after the file.

    `config` is the parsed config.json, None for the model file's own default; `kv` the format of the KV
    cache, `taps` the layers whose outputs become outputs of the step, for a draft. Raises TileccError TC0706
    if the model has no such cache, TC0707 if it has no such taps, and, each with
    the user's file and line: TC0101 to TC0104 and TC0109 for the file and its code, TC0105 for an op that
    cannot be lowered, TC0106 for control flow that depends on values, TC0203 for a dtype, TC0212 for a broken
    Graph rule.
    """
    sources = Sources(model_file)
    module = make_module(model_file, config)
    set_kv_format(module, kv, model_file)
    set_taps(module, taps, model_file)
    caches = meta_caches(sources, module)
    program = export(sources, module, caches)
    graph = _Capture(sources, module, program, caches).graph(model_file.stem)
    found = verify(graph, GRAPH_RULES)
    if found:
        raise TileccError(_per_line(sources, found))
    return graph


def set_kv_format(module: nn.Module, kv: str, model_file: Path) -> None:
    """Choose the format of the model's KV cache. Raises TC0706 for a model that has only bf16."""
    if hasattr(module, "kv_format"):
        module.kv_format = kv
    elif kv != "bf16":
        raise error(
            "TC0706",
            f"the model has no {kv} KV cache",
            span=Span(str(model_file)),
            note="its module has no attribute `kv_format`",
            help="add the attribute (docs/models.md), or compile with --kv bf16",
        )


def set_taps(module: nn.Module, taps: Sequence[int], model_file: Path) -> None:
    """Choose the layers whose outputs the step returns. Raises TC0707 for a model or layer without them."""
    if not taps:
        return
    count = len(getattr(module, "tap_layers", ()))
    wrong = [t for t in taps if not 0 <= t < count]
    if not wrong and len(set(taps)) == len(taps):
        module.taps = tuple(taps)
        return
    why = f"layer {wrong[0]} is not among its {count} layers" if count and wrong else (
        "a layer is named twice" if count else "its module has no attribute `tap_layers`"
    )  # fmt: skip
    raise error(
        "TC0707",
        f"the model has no taps {', '.join(map(str, taps))}",
        span=Span(str(model_file)),
        note=why,
        help=f"name layers from 0 to {count - 1}, each once" if count else "compile without --taps",
    )


def _per_line(sources: Sources, found: list[Diagnostic]) -> list[Diagnostic]:
    """Violations at the places the user can open, one per line and rule, since layers share lines."""
    groups: dict[object, list[Diagnostic]] = {}
    for diagnostic in found:
        rule = diagnostic.message.rpartition("[")[2]
        key = (diagnostic.span, rule) if diagnostic.span else diagnostic.message
        groups.setdefault(key, []).append(diagnostic)
    out = []
    for first, *others in groups.values():
        notes = (f"and {len(others)} more of this rule at this line",) if others else ()
        secondary = tuple(_actual(sources, span) for span in first.secondary)
        span = first.span and _actual(sources, first.span)
        out.append(dataclasses.replace(first, span=span, secondary=secondary, notes=first.notes + notes))
    return out


def _actual(sources: Sources, span: Span) -> Span:
    return dataclasses.replace(span, file=sources.actual(span.file))


class _Capture:
    """One walk over an exported program. `env` maps FX nodes to names of the Graph (tuple: many results)."""

    def __init__(
        self, sources: Sources, module: nn.Module, program: ExportedProgram, caches: list[Tensor]
    ) -> None:
        self.sources, self.module, self.program = sources, module, program
        self.env: dict[FxNode, str | tuple[str, ...]] = {}
        self.params: dict[str, Param] = {}
        self.nodes: list[Node] = []
        self.constants: dict[FxNode, str] = {}
        self.inputs: dict[str, Value] = {name: Value(name, "i64", (ROWS,)) for name in STEP_INPUTS}
        for name, width in further_inputs(module).items():
            self.inputs[name] = Value(name, "f32", (ROWS, width)) if width else Value(name, "i64", (ROWS,))
        self.states = [
            State(f"layers.{i // 2}.{'kv'[i % 2]}_cache", i // 2, "kv"[i % 2], *map(int, cache.shape[2:]))
            for i, cache in enumerate(caches)
        ]
        with user_code(sources, "TC0109", "`checkpoint_spec`"):
            self.specs: dict[str, ParamSpec] = dict(module.checkpoint_spec())
        self._placeholders()
        self.names = Names([*self.inputs, *(s.name for s in self.states), *self._weights()])

    def _weights(self) -> list[str]:
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return [name for name, _ in named]

    def _placeholders(self) -> None:
        signature = self.program.graph_signature
        by_name = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        step = [spec for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
        for spec, name in zip(step, [*self.inputs, *(s.name for s in self.states)], strict=True):
            self.env[by_name[spec.arg.name]] = name
        tokens = by_name[step[0].arg.name].meta["val"]
        self.rows = tokens.shape[0]
        for spec in signature.input_specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
                self.env[by_name[spec.arg.name]] = spec.target
            elif spec.kind is not InputKind.USER_INPUT:
                self.constants[by_name[spec.arg.name]] = str(spec.target)

    # ------------------------------------------------------------------------------------------ the walk

    def graph(self, name: str) -> Graph:
        fx_nodes = list(self.program.graph.nodes)
        live: set[FxNode] = set()
        for node in reversed(fx_nodes):
            if node.op == "output" or has_effect(node) or node in live:
                live.add(node)
                live.update(node.all_input_nodes)
        for node in fx_nodes:
            if node.op == "call_function" and node in live:
                self._convert(node)
        outputs = self._outputs(fx_nodes[-1])
        order = {name: index for index, name in enumerate(self._weights())}
        params = sorted(self.params.values(), key=lambda p: order[p.name])
        inputs = tuple(self.inputs.values())
        return Graph(name, inputs, tuple(params), tuple(self.states), tuple(self.nodes), outputs)

    def _convert(self, node: FxNode) -> None:
        if is_getitem(node):
            source, index = node.args
            assert isinstance(source, FxNode) and isinstance(index, int)
            made = self.env[source]
            assert isinstance(made, tuple)
            self.env[node] = made[index]
            return
        if is_shape_arithmetic(node):
            return
        name = op_name(node)
        convert = CONVERTERS.get(name)
        if convert is None:
            raise self._cannot_lower(node, name)
        try:
            converted = convert(node, *bound_arguments(node))
            if isinstance(converted, FxNode):
                self.env[node] = self._operand(node, converted)
            elif converted is not None:
                self._emit(node, converted)
        except Unsupported as exc:
            raise self._cannot_lower(node, name, str(exc)) from None

    def _emit(self, node: FxNode, call: Call) -> None:
        module = module_path(node)
        loc = self._loc(node)
        inputs = tuple(self._operand(node, fx) for fx in call.operands if fx is not None)
        attrs = {name: attr_of(call.op, name, value) for name, value in call.attrs.items()}
        tensors = node.meta["val"]
        several = isinstance(tensors, tuple | list)
        results = self.names.results(call.op, inputs, module)
        values = tuple(
            Value(name, self._dtype(node, tensor), self._shape(node, tensor))
            for name, tensor in zip(results, tensors if several else [tensors], strict=True)
        )
        self.nodes.append(
            Node(self.names.node(call.op, results, module), call.op, inputs, values, attrs, loc)
        )
        self.env[node] = tuple(results) if several else results[0]

    def _operand(self, user: FxNode, node: object) -> str:
        if not isinstance(node, FxNode):
            raise Unsupported(f"`{node}` is not a tensor of the model")
        if node in self.constants:
            raise Unsupported(
                f"it reads the tensor constant `{self.constants[node]}`; only parameters are read"
            )
        name = self.env.get(node)
        if not isinstance(name, str):
            raise Unsupported("it reads a number that depends on the number of rows")
        if node.op == "placeholder" and name not in self.inputs and name not in self.params:
            if any(name == state.name for state in self.states):
                return name
            self.params[name] = self._param(user, node, name)
        return name

    def _param(self, user: FxNode, node: FxNode, name: str) -> Param:
        """The weight `name`, as the module's checkpoint_spec has it. Raises TC0104 where they disagree."""
        spec = self.specs.get(name)
        if not isinstance(spec, ParamSpec):
            what = "no entry" if spec is None else f"a {type(spec).__name__} instead of a ParamSpec"
            raise error(
                "TC0104",
                f"`checkpoint_spec` has {what} for the parameter `{name}`",
                span=self._span(user),
                help=[nearest(name, self.specs), CONTRACT],
            )
        tensor = node.meta["val"]
        shape, stored = tuple(map(int, tensor.shape)), tuple(spec.stacked_shape)
        if shape != stored:
            raise error(
                "TC0104",
                f"the parameter `{name}` has shape {list(shape)}, its `checkpoint_spec` says {list(stored)}",
                span=self._span(user),
                note=f"source `{spec.source}`, {spec.experts} experts of shape {list(spec.shape)}",
            )
        self._dtype(user, tensor)
        stored_as = (spec.format, spec.source, spec.experts, spec.optional, spec.chunks)
        return Param(name, shape, *stored_as, self._loc(user), shared=spec.shared)

    def _outputs(self, output: FxNode) -> tuple[str, ...]:
        made = output.args[0]
        nodes = [node for node in made if isinstance(node, FxNode)] if isinstance(made, tuple | list) else []
        values = {value.name: value for node in self.nodes for value in node.results}
        names = [name for name in (self.env.get(node) for node in nodes) if isinstance(name, str)]
        found = [(v.dtype, len(v.shape)) for v in (values[n] for n in names if n in values)]
        taps = len(getattr(self.module, "taps", ()))
        if found != [("f32", 2), ("i64", 1), *[("f32", 2)] * taps]:
            have = ", ".join(f"{dtype} of rank {rank}" for dtype, rank in found) or "no tensor of the step"
            raise error(
                "TC0104",
                "forward must return (logits f32 [T, V], next_tokens i64 [T])"
                + (f" and {taps} taps f32 [T, hidden]" if taps else ""),
                span=Span(str(self.sources.model_file)),
                note=f"it returns: {have}",
                help=CONTRACT,
            )
        return tuple(names)

    # ------------------------------------------------------------------------------------------- details

    def _dtype(self, node: FxNode, tensor: Tensor) -> str:
        if tensor.dtype not in _DTYPES:
            raise error(
                "TC0203",
                f"a value of {tensor.dtype} at {op_name(node)} cannot be lowered",
                span=self._span(node),
                note="values are float32 (rounded to bf16 by `torch.ops.tilecc.round`) or int64",
            )
        return _DTYPES[tensor.dtype]

    def _shape(self, node: FxNode, tensor: Tensor) -> Shape:
        return tuple(self._dim(node, tensor, dim) for dim in tensor.shape)

    def _dim(self, node: FxNode, tensor: Tensor, dim: int | torch.SymInt) -> Dim:
        if isinstance(dim, int):
            return dim
        if dim.node.expr == self.rows.node.expr:
            return ROWS
        shape = ", ".join(str(d).replace(str(self.rows), ROWS) for d in tensor.shape)
        raise error(
            "TC0106",
            f"a value of shape [{shape}] depends on the number of rows T otherwise than by having T rows",
            span=self._span(node),
        )

    def _loc(self, node: FxNode) -> Loc:
        return self.sources.loc_of_trace(node.meta.get("stack_trace"), module_path(node))

    def _span(self, node: FxNode, label: str = "") -> Span:
        return self.sources.span(self._loc(node), label) or Span(str(self.sources.model_file))

    def _cannot_lower(self, node: FxNode, name: str, why: str = "") -> TileccError:
        notes = [why, f"in module `{module_path(node)}`" if module_path(node) else ""]
        if not why:
            known = [f"{op}: {form}" for op, form in lowerable_ops().items()]
            notes.append("the ops that can be lowered:\n" + "\n".join(known))
        help = ""
        if has_effect(node) and not why:
            help = f"`{name}` writes its argument; use the form that returns a new tensor (`x = x + y`)"
        message = f"torch op `{name}` cannot be lowered"
        if why:
            message = f"this use of torch op `{name}` cannot be lowered"
        return error("TC0105", message, span=self._span(node), note=notes, help=help)
