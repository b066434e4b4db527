"""program: TileGraph -> Program. Rolls the layer loop, numbers counters, places buffers, writes the op table.

Ops of equal kind, shape and constants in different layers become one OpClass; the order of the classes in
the loop body is one that every layer follows; a layer without a class has an absent row.

    layers.1.qkv, layers.2.qkv, ...
      =>  OpClass("QkvWindow32", counter=3, per_step=5), rows with weights and waits
"""

from __future__ import annotations

from collections import Counter

import networkx as nx

from tilecc.diag import InternalError
from tilecc.ir.graph import AttrValue
from tilecc.ir.program import OpClass, OpRowSpec, Program, RegionSpec, WaitSpec
from tilecc.ir.tile import Access, HandOffKind, Prefetch, Space, TileGraph, TileOp
from tilecc.passes.context import PassContext

ALIGN = 256
COUNTER_BYTES = 128
MAX_WAITS = 3


def program(graph: TileGraph, ctx: PassContext) -> Program:
    """Lower a TileGraph whose fields are all filled."""
    return _Builder(graph, ctx).run()


class _Builder:
    def __init__(self, graph: TileGraph, ctx: PassContext) -> None:
        self.graph, self.ctx = graph, ctx
        self.weights = {w.name: w for w in graph.weights}
        self.word_buffers = {b.name for b in graph.buffers if b.word}
        self.class_of = self.name_classes()

    def run(self) -> Program:
        graph = self.graph
        counts = Counter(self.class_of[op.name] for op in graph.ops)
        names = list(dict.fromkeys(self.class_of[op.name] for op in graph.ops))
        waited = {
            self.class_of[h.source] for op in graph.ops for h in op.hand_offs if h.kind is HandOffKind.COUNTER
        }
        # The end of the step is waited for by the stop flag, too.
        signalling = [n for n in names if n in waited or self.first(n).kind == "commit"]
        counters = {name: i for i, name in enumerate(signalling)}
        ordinals, (pushed, polled) = self.ordinals(), self.turns()
        classes = tuple(self.op_class(n, counters.get(n, -1), counts[n]) for n in names)

        regions, nbytes = self.workspace(len(counters))
        kv, kv_bytes = self.kv()
        rows = tuple(
            OpRowSpec(
                self.class_of[op.name], op.layer, dict(op.weights),
                kv.get(op.layer, 0) if op.kind in ("qkv", "attention") else 0,
                self.waits(op, counters, counts, ordinals), pushed.get(op.name, 0), polled.get(op.name, 0),
            )
            for op in graph.ops
        )  # fmt: skip
        first = next((i for i, op in enumerate(graph.ops) if op.layer >= 0), len(graph.ops))
        last = max((i for i, op in enumerate(graph.ops) if op.layer >= 0), default=-1)
        body = self.body_order()
        self.ctx.decide(
            "program", "layer loop", f"rolled: {graph.layers} layers, {len(body)} op classes in the body",
            "code for one layer stays in the instruction cache; what differs between layers is a table",
        )  # fmt: skip
        return Program(
            name=graph.name, target=graph.target, layers=graph.layers, hidden=graph.hidden, vocab=graph.vocab,
            max_context=graph.max_context, max_seqs=graph.max_seqs, roles=graph.roles, rings=graph.rings,
            classes=classes,
            prologue=tuple(self.class_of[op.name] for op in graph.ops[:first]), body=body,
            epilogue=tuple(self.class_of[op.name] for op in graph.ops[max(last + 1, first) :]), rows=rows,
            workspace=regions, workspace_bytes=nbytes, kv_bytes=kv_bytes, weights=graph.weights,
            max_rows=graph.max_rows,
        )  # fmt: skip

    # ---- classes -------------------------------------------------------------------------------------------

    def signature(self, op: TileOp) -> tuple[object, ...]:
        matrix = self.weights.get(op.weights.get("matrix", ""))
        shape = (matrix.format, matrix.rule, matrix.rows, matrix.cols, matrix.experts) if matrix else ()
        return (
            op.kind,
            op.label,
            tuple(op.attrs.items()),
            tuple(op.tiles.items()),
            op.rotation,
            shape,
            op.layer >= 0,
        )

    def name_classes(self) -> dict[str, str]:
        """Class name of every op: the label, with the window where layers differ, with a number where that
        is not enough."""
        windows: dict[str, set[AttrValue]] = {}
        for op in self.graph.ops:
            windows.setdefault(op.label, set()).add(op.attrs.get("window", 0))
        names: dict[tuple[object, ...], str] = {}
        taken: set[str] = set()
        for op in self.graph.ops:
            key = self.signature(op)
            if key in names:
                continue
            name = "".join(part.capitalize() for part in op.label.split("_"))
            if len(windows[op.label]) > 1:
                name += f"Window{op.attrs['window']}" if op.attrs["window"] else "Global"
            number = 2
            while name in taken:
                name = f"{name.rstrip('0123456789') if number > 2 else name + 'V'}{number}"
                number += 1
            names[key] = name
            taken.add(name)
        return {op.name: names[self.signature(op)] for op in self.graph.ops}

    def first(self, class_name: str) -> TileOp:
        return next(op for op in self.graph.ops if self.class_of[op.name] == class_name)

    def op_class(self, name: str, counter: int, per_step: int) -> OpClass:
        op = self.first(name)
        matrix = self.weights.get(op.weights.get("matrix", ""))
        constants: dict[str, AttrValue] = {
            **op.attrs,
            **{f"tile_{k}": v for k, v in op.tiles.items()},
            "rotation": op.rotation,
        }
        if matrix is not None:
            constants |= {"format": matrix.format, "matrix_rows": matrix.rows, "matrix_cols": matrix.cols}
        reasons = tuple(
            f"{h.source}: {h.kind.name.lower()} over {', '.join(h.buffers)}" for h in op.hand_offs
        )
        doc = f"{op.name}: {', '.join(op.fused)}" + (
            f" (and {per_step - 1} more layers)" if per_step > 1 else ""
        )
        pushes, polls = (self.words(accesses) for accesses in (op.writes, op.reads))
        return OpClass(
            name, op.kind, constants, counter, per_step, doc, reasons, self.prefetches(name), pushes, polls,
            op.loc,
        )  # fmt: skip

    def prefetches(self, name: str) -> tuple[Prefetch, ...]:
        """What the ops of a class prefetch, by class: layers differ in which of them they have."""
        found: dict[str, int] = {}
        for op in self.graph.ops:
            if self.class_of[op.name] == name:
                for p in op.prefetch:
                    target = self.class_of[p.op]
                    found[target] = max(found.get(target, 0), p.stages)
        order = {self.class_of[op.name]: i for i, op in reversed(list(enumerate(self.graph.ops)))}
        return tuple(Prefetch(target, found[target]) for target in sorted(found, key=order.__getitem__))

    def words(self, accesses: tuple[Access, ...]) -> str:
        """The buffer of words that are their own flags among what an op accesses, "" if there is none."""
        return next((a.buffer for a in accesses if a.buffer in self.word_buffers), "")

    def body_order(self) -> tuple[str, ...]:
        """Classes of the layer loop in an order that every layer follows."""
        order: dict[str, int] = {}
        precedence: nx.DiGraph[str] = nx.DiGraph()
        previous: tuple[int, str] | None = None
        for op in self.graph.ops:
            if op.layer < 0:
                continue
            name = self.class_of[op.name]
            order.setdefault(name, len(order))
            precedence.add_node(name)
            if previous is not None and previous[0] == op.layer:
                precedence.add_edge(previous[1], name)
            previous = (op.layer, name)
        try:
            return tuple(nx.lexicographical_topological_sort(precedence, key=order.__getitem__))
        except nx.NetworkXUnfeasible:
            raise InternalError(
                "layers order their ops differently: the layer loop cannot be rolled"
            ) from None

    # ---- table ---------------------------------------------------------------------------------------------

    def ordinals(self) -> dict[str, int]:
        """Instance number of every op within its class and step, from 0."""
        seen: Counter[str] = Counter()
        found: dict[str, int] = {}
        for op in self.graph.ops:
            name = self.class_of[op.name]
            found[op.name] = seen[name]
            seen[name] += 1
        return found

    def turns(self) -> tuple[dict[str, int], dict[str, int]]:
        """By name of op: which push of the step into its words it makes, and which it polls."""
        pushed: dict[str, int] = {}
        polled: dict[str, int] = {}
        next_turn: Counter[str] = Counter()
        for op in self.graph.ops:
            polls, pushes = self.words(op.reads), self.words(op.writes)
            if polls:
                polled[op.name] = next_turn[polls] - 1
            if pushes:
                pushed[op.name] = next_turn[pushes]
                next_turn[pushes] += 1
        return pushed, polled

    def waits(
        self, op: TileOp, counters: dict[str, int], counts: Counter[str], ordinals: dict[str, int]
    ) -> tuple[WaitSpec, ...]:
        found: list[WaitSpec] = []
        for hand_off in op.hand_offs:
            if hand_off.kind is not HandOffKind.COUNTER:
                continue
            source = self.class_of[hand_off.source]
            ordinal = ordinals[hand_off.source] + 1 - (counts[source] if hand_off.previous_step else 0)
            found.append(WaitSpec(counters[source], counts[source], ordinal))
        if len(found) > MAX_WAITS:
            raise InternalError(f"op {op.name} waits for {len(found)} counters; a row holds {MAX_WAITS}")
        return tuple(found)

    # ---- memory --------------------------------------------------------------------------------------------

    def workspace(self, counters: int) -> tuple[tuple[RegionSpec, ...], int]:
        regions: list[RegionSpec] = []
        at = 0
        for buffer in self.graph.buffers:
            if buffer.space is not Space.WORKSPACE:
                continue
            nbytes = counters * COUNTER_BYTES if buffer.name == "counters" else buffer.nbytes
            regions.append(RegionSpec(buffer.name, at, nbytes, "poison" if buffer.word else "zero"))
            at += -(-nbytes // ALIGN) * ALIGN
        return tuple(regions), at

    def kv(self) -> tuple[dict[int, int], int]:
        """KV cache offset of each layer, and the bytes of all."""
        offsets: dict[int, int] = {}
        at = 0
        for buffer in self.graph.buffers:
            if buffer.space is Space.KV:
                offsets[int(buffer.name.rsplit(".", 1)[1])] = at
                at += -(-buffer.nbytes // ALIGN) * ALIGN
        return offsets, at
