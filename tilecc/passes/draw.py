"""Draws random legal schedules: every choice that a pass makes falls on a random legal candidate. The result
is the text of a schedule file, which pins all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tilecc.ir.graph import Graph
from tilecc.passes.context import Choice, PassContext, Subject
from tilecc.passes.pipeline import lower_to_tiles
from tilecc.passes.schedule import Value

CALLS: dict[str, Callable[[str], str]] = {
    "op": lambda name: f's.op("{name}", ',
    "edge": lambda name: "s.edge(" + ", ".join(f'"{end}"' for end in name.split(" -> ")) + ", ",
    "ring": lambda name: f's.ring("{name}", ',
    "roles": lambda name: "s.roles(",
}
"""How a schedule file begins a request about a thing of a kind."""


class _Dice(PassContext):
    """A context that lets chance choose and remembers what it chose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.random = random.Random(0)
        self.keep = 0.0
        self.drawn: dict[tuple[str, str], Choice] = {}

    def choose(self, pass_name: str, subject: Subject, candidates: Sequence[Choice], **how: Any) -> Choice:
        free = super().choose(pass_name, subject, candidates, **how)
        shared, own = (subject.kind, subject.names[-1]), (subject.kind, subject.names[0])
        for name in (own, shared):
            old = {k: v for k, v in self.drawn.get(name, {}).items() if k in free}
            if len(old) == len(free) and old in candidates:
                return old
        chosen = free if self.random.random() < self.keep else self.random.choice(candidates)
        known = self.drawn.get(shared, {})
        name = own if any(k in known for k in chosen) else shared
        self.drawn.setdefault(name, {}).update(chosen)
        return dict(chosen)


def draw_schedule(graph: Graph, ctx: PassContext, seed: int, keep: float = 0.2) -> str:
    """Text of a schedule file with a random legal value for every choice, the same for the same seed; a share
    `keep` of the choices stays as it is without a schedule. Takes the graph of one rank (after `shard`) and
    a context without a schedule; other sizes or targets may not allow the result.

    Raises TileccError as the passes do: not all choices that are legal one by one fit together (a stage of
    the weight ring may become too large for the ring). Another seed then serves.
    """
    dice = _Dice(ctx.target, ctx.max_context, ctx.max_seqs, ctx.ranks)
    dice.random.seed(seed)
    dice.keep = keep
    lower_to_tiles(graph, dice)
    lines = [f'"""Drawn at random, seed {seed}."""', "", "", "def schedule(s):"]
    lines += [f"    {CALLS[kind](name)}{_written(choice)})" for (kind, name), choice in dice.drawn.items()]
    return "\n".join(lines) + "\n"


def _written(choice: dict[str, Value]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in choice.items())
