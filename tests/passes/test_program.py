"""program: rolled rows are the unrolled ops; counters replayed over two steps satisfy every wait exactly."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from tests.passes.helpers import Net, context, lower, tiles_until, tiny
from tilecc.diag import InternalError
from tilecc.ir.program import OpRowSpec, Program
from tilecc.ir.program_rules import MAX_GRID, PROGRAM_RULES, execution_order
from tilecc.ir.tile import HandOff, HandOffKind, TileGraph
from tilecc.ir.verify import verify
from tilecc.passes.pipeline import PROGRAM, TILE_PASSES
from tilecc.passes.program import program
from tilecc.passes.tile import MAX_GRID as LAID_OUT_GRID

MIXED = Net(layers=((0, "dense"), (8, "moe"), (8, "dense"), (0, "moe"), (8, "moe")))


def test_classes_of_a_mixed_model() -> None:
    _, made = lower(MIXED.graph())
    assert made.prologue == ("Embed",) and made.epilogue == ("Head", "Commit")
    assert {c.name: c.per_step for c in made.classes if c.name in made.body} == {
        "QkvGlobal": 2, "AttentionGlobal": 2, "AttentionMerge": 2, "QkvWindow8": 3, "AttentionWindow8": 3,
        "OProj": 5, "AttnReduce": 5, "GateUp": 2, "Down": 2, "MlpReduce": 2, "Router": 3, "Route": 3,
        "ExpertsUp": 3, "ExpertsDown": 3, "MoeReduce": 3,
    }  # fmt: skip
    # No counter where nobody waits for one: the routing stays in the CTA, words are their own flags.
    silent = {c.name for c in made.classes if c.counter < 0}
    assert silent == {"OProj", "Down", "Router", "Route", "ExpertsDown"}
    assert sorted(c.counter for c in made.classes if c.counter >= 0) == list(range(len(made.classes) - 5))


@pytest.mark.parametrize("which", ["tiny", "mixed", "one-layer"])
def test_rolled_rows_are_the_unrolled_ops(which: str) -> None:
    net = MIXED if which == "mixed" else Net(layers=((8, "moe"),))
    graph, made = tiny() if which == "tiny" else lower(net.graph())
    assert execution_order(made) == [row.op for row in made.rows]
    assert len(made.rows) == len(graph.ops)
    for op, row in zip(graph.ops, made.rows, strict=True):
        found = made.op_class(row.op)
        assert (row.layer, row.weights, found.kind) == (op.layer, op.weights, op.kind)
        constants = {**op.attrs, **{f"tile_{k}": v for k, v in op.tiles.items()}, "rotation": op.rotation}
        assert constants.items() <= found.constants.items()


def test_layers_of_other_shape_are_other_classes() -> None:
    """Equal labels and windows, another width: the name gets a number, the loop keeps one order."""
    graph = Net(layers=((8, "dense"), (8, "dense"))).graph()
    wide = tiles_until(graph, TILE_PASSES[-1])
    ops = tuple(
        dataclasses.replace(op, attrs={**op.attrs, "v": 1}) if op.name == "layers.1.down" else op
        for op in wide.ops
    )
    made = program(dataclasses.replace(wide, ops=ops), context())
    assert made.body == ("Qkv", "Attention", "OProj", "AttnReduce", "GateUp", "Down", "DownV2", "MlpReduce")
    assert verify(made, PROGRAM_RULES) == []
    rows = [row for row in made.rows if row.op.startswith("Down")]
    assert [(row.op, row.layer) for row in rows] == [("Down", 0), ("DownV2", 1)]


def test_memory() -> None:
    graph, made = lower(MIXED.graph())
    counters = made.region("counters")
    assert counters.nbytes == 128 * sum(c.counter >= 0 for c in made.classes)  # a line each
    assert made.workspace_bytes >= max(r.offset + r.nbytes for r in made.workspace)
    offsets = {row.layer: row.kv_offset for row in made.rows if row.op.startswith("Qkv")}
    sizes = [b.nbytes for b in graph.buffers if b.name.startswith("kv.")]
    assert list(offsets.values()) == [sum(sizes[:i]) for i in range(5)]  # sizes are multiples of 256
    assert made.kv_bytes == sum(sizes)
    assert MAX_GRID == LAID_OUT_GRID


# ------------------------------------------------------------------------------------------------- replay


class Replay:
    """Counters of `ctas` CTAs that run the rows of a Program in turn, each at its own pace.

    Every CTA waits for a row's inputs, with or without tasks of its own, and arrives when it is done.
    """

    def __init__(self, graph: TileGraph, program: Program, ctas: int) -> None:
        self.program, self.ctas = program, ctas
        self.at = [0] * ctas
        self.counters: Counter[int] = Counter()
        self.sources = [
            [(self.place(graph, h), h.previous_step) for h in op.hand_offs if h.kind is HandOffKind.COUNTER]
            for op in graph.ops
        ]

    @staticmethod
    def place(graph: TileGraph, hand_off: HandOff) -> int:
        return next(i for i, op in enumerate(graph.ops) if op.name == hand_off.source)

    def ready(self, cta: int) -> bool:
        """Whether the waits of the CTA's next row are satisfied, as `Ctx::wait_inputs` decides it."""
        step, at = divmod(self.at[cta], len(self.program.rows))
        row: OpRowSpec = self.program.rows[at]
        return all(self.counters[w.counter] >= self.ctas * (step * w.per_step + w.ordinal) for w in row.waits)

    def sources_done(self, cta: int) -> bool:
        """Whether all CTAs are past every op that the next row waits for, by the TileGraph."""
        rows = len(self.program.rows)
        step, at = divmod(self.at[cta], rows)
        needed = [(step - previous) * rows + source for source, previous in self.sources[at]]
        return all(done > index for done in self.at for index in needed)

    def advance(self, cta: int) -> None:
        row = self.program.rows[self.at[cta] % len(self.program.rows)]
        counter = self.program.op_class(row.op).counter
        if counter >= 0:
            self.counters[counter] += 1
        self.at[cta] += 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("which", ["tiny", "mixed", "dense"])
def test_waits_hold_exactly_until_the_sources_are_done(which: str, seed: int) -> None:
    dense = Net(layers=((8, "dense"), (0, "dense"), (8, "dense")))
    graph, made = tiny() if which == "tiny" else lower((MIXED if which == "mixed" else dense).graph())
    rng = random.Random(seed)
    replay = Replay(graph, made, rng.choice([1, 2, 3, 5]))
    goal, held, favoured = 2 * len(made.rows), 0, 0
    while min(replay.at) < goal:
        waiting = [c for c in range(replay.ctas) if replay.at[c] < goal]
        for cta in waiting:
            assert replay.ready(cta) == replay.sources_done(cta)
        runnable = [c for c in waiting if replay.ready(c)]
        assert runnable, "every CTA waits"
        held += len(waiting) - len(runnable)
        # a favoured CTA runs ahead as far as it can: the adversary of counters
        if rng.random() < 0.1:
            favoured = rng.randrange(replay.ctas)
        replay.advance(favoured if favoured in runnable else rng.choice(runnable))
    assert held > 0 or replay.ctas == 1
    for op in made.classes:
        if op.counter >= 0:
            assert replay.counters[op.counter] == 2 * replay.ctas * op.per_step


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_replay_notices_a_wrong_ordinal(shift: int) -> None:
    """The check above can fail: every wait with another ordinal is noticed by some schedule."""
    graph, made = lower(MIXED.graph())
    at = next(i for i, row in enumerate(made.rows) if row.op == "OProj" and row.layer == 2)
    row = made.rows[at]
    (wait,) = row.waits
    wrong = dataclasses.replace(row, waits=(dataclasses.replace(wait, ordinal=wait.ordinal + shift),))
    replay = Replay(graph, dataclasses.replace(made, rows=(*made.rows[:at], wrong, *made.rows[at + 1 :])), 2)
    seen = set()
    for _ in range(2 * len(made.rows)):
        for cta in range(2):  # each runs ahead of the other as far as its sources allow
            for _ in range(2 * len(made.rows) - replay.at[cta]):
                seen.add(replay.ready(cta) == replay.sources_done(cta))
                if not replay.sources_done(cta):
                    break
                replay.advance(cta)
    assert seen == {True, False}


# ----------------------------------------------------------------------------------------------- refusals


def test_layers_in_different_order_are_an_internal_error() -> None:
    graph = tiles_until(Net(layers=((8, "dense"), (8, "dense"))).graph(), TILE_PASSES[-1])
    at = next(i for i, op in enumerate(graph.ops) if op.name == "layers.1.gate_up")
    swapped = (*graph.ops[:at], graph.ops[at + 1], graph.ops[at], *graph.ops[at + 2 :])
    with pytest.raises(InternalError, match="layers order their ops differently"):
        PROGRAM(dataclasses.replace(graph, ops=swapped), context())


def test_more_waits_than_a_row_holds_are_an_internal_error() -> None:
    graph = tiles_until(Net(layers=((8, "dense"),)).graph(), TILE_PASSES[-1])
    many = tuple(
        HandOff(f"layers.0.{n}", HandOffKind.COUNTER, ("x",), "")
        for n in ("qkv", "attention", "o_proj", "down")
    )
    ops = (*graph.ops[:-1], dataclasses.replace(graph.ops[-1], hand_offs=many))
    with pytest.raises(InternalError, match="op commit waits for 4 counters; a row holds 3"):
        PROGRAM(dataclasses.replace(graph, ops=ops), context())
