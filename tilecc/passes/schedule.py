"""The public schedule API: a user's requests to the passes, each pinned to a value or bounded.

    def schedule(s: Schedule) -> None:
        s.op("o_proj", splits=2, why="one partial per SM pair")
        s.op("head", group=between(2, 4))
        s.edge("qkv", "attention", kind=one_of("counter", "flag"))
        s.ring("weights", depth=6)

A request restricts what a pass may choose (`PassContext.choose`); what is left free is chosen by cost, as
without a schedule. KNOBS lists all that can be asked for. Mistakes are collected, not raised, so that one
compilation reports all of them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tilecc.diag import Diagnostic, Span
from tilecc.diag.model import nearest
from tilecc.target import Target

Value = int | bool | str
"""What a choice of the compiler can be: a number, on or off, or a name."""

ALL = "*"
"""As the name of an op, edge or ring: every one that has the choice."""


@dataclass(frozen=True)
class Knob:
    """A choice that a schedule can make: `key` of the things of one `kind` ("op", "edge", "ring", "roles").
    `asked_by` is the pass that makes the choice, `takes` the type of its values."""

    kind: str
    key: str
    takes: type[int] | type[bool] | type[str]
    asked_by: str
    doc: str


KNOBS: tuple[Knob, ...] = (
    Knob(
        "op", "splits", int, "tile", "K splits of a projection into the residual; context splits of attention"
    ),
    Knob("op", "group", int, "tile", "m16 tiles of one stage of the weight ring, which share activations"),
    Knob("op", "chunk", int, "tile", "K blocks of 128 columns in one stage"),
    Knob("op", "experts", int, "tile", "experts in one stage of the down projection"),
    Knob("op", "stage_bytes", int, "tile", "bytes of weights in one stage"),
    Knob("op", "rotation", int, "place", "CTA (modulo the grid) that runs the first task"),
    Knob("op", "prefetch", int, "prefetch", "ops whose weights the op's loader asks for into L2"),
    Knob("edge", "kind", str, "edges", "how the consumer learns that the producer is done"),
    Knob("ring", "depth", int, "rings", "slots of the ring"),
    Knob("ring", "slot_bytes", int, "rings", "bytes of one slot"),
    Knob("roles", "loader", int, "roles", "warps that load weights"),
    Knob("roles", "store", int, "roles", "warps that store and signal"),
    Knob("roles", "activations", int, "roles", "warps that load activations"),
    Knob("roles", "consumer", int, "roles", "warps that multiply"),
)


@dataclass(frozen=True)
class Between:
    """From `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class OneOf:
    """One of some values; a pin is one of one."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return " or ".join(show_value(v) for v in self.values)


Bound = Between | OneOf


def between(low: int, high: int) -> Between:
    """A number from `low` to `high`, both included."""
    return Between(low, high)


def at_most(high: int) -> Between:
    """A number from 0 to `high`."""
    return Between(0, high)


def at_least(low: int) -> Between:
    """A number from `low` on."""
    return Between(low, sys.maxsize)


def one_of(*values: Value) -> OneOf:
    """One of the values."""
    return OneOf(values)


def show_value(value: Value) -> str:
    """A value as a schedule file writes it, without quotes."""
    return str(value)


def allows(bound: Bound, value: Value) -> bool:
    """Whether a value satisfies a bound; True is not 1."""
    if isinstance(bound, Between):
        return isinstance(value, int) and not isinstance(value, bool) and bound.low <= value <= bound.high
    return any(type(v) is type(value) and v == value for v in bound.values)


def meet(a: Bound, b: Bound) -> Bound | None:
    """What satisfies both bounds; None if nothing does."""
    if isinstance(a, Between) and isinstance(b, Between):
        low, high = max(a.low, b.low), min(a.high, b.high)
        return Between(low, high) if low <= high else None
    if isinstance(a, Between):
        a, b = b, a
    assert isinstance(a, OneOf)
    left = tuple(v for v in a.values if allows(b, v))
    return OneOf(left) if left else None


@dataclass(frozen=True)
class Request:
    """`key` of the thing `name` of a kind must satisfy `bound`; where the user said so, and why."""

    kind: str
    name: str
    key: str
    bound: Bound
    span: Span
    why: str = ""

    def __str__(self) -> str:
        return f"{self.key} = {self.bound}"


@dataclass
class Schedule:
    """The requests of one schedule file, and what is wrong with them.

    `target`, `ranks`, `max_context` and `max_seqs` are those of the compilation: a schedule may look at them.
    Names of ops are labels such as "o_proj" (every layer), full names such as "layers.3.o_proj" or "*"; of
    two requests for one choice the one with the more specific name counts.
    """

    target: Target
    ranks: int = 1
    max_context: int = 1024
    max_seqs: int = 1
    file: str = ""
    requests: dict[tuple[str, str, str], Request] = field(default_factory=dict)
    before: list[tuple[str, str, Span]] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)

    # ---- what a schedule file calls ------------------------------------------------------------------------

    def op(self, name: str, *, why: str = "", **choices: Value | Bound) -> None:
        """Choices of an op (or of "*"): the knobs of kind "op"."""
        self._add("op", name, choices, why)

    def edge(self, source: str, op: str, *, why: str = "", **choices: Value | Bound) -> None:
        """Choices of the hand-off from one op to another: `kind`."""
        self._add("edge", edge_name(source, op), choices, why)

    def ring(self, name: str, *, why: str = "", **choices: Value | Bound) -> None:
        """Choices of a ring of shared memory: "weights", "activations" or "exchange"."""
        self._add("ring", name, choices, why)

    def roles(self, *, why: str = "", **choices: Value | Bound) -> None:
        """Warps of each role."""
        self._add("roles", "warps", choices, why)

    def order(self, *labels: str) -> None:
        """The ops with these labels run in this order wherever the data allows it, in each layer."""
        span = self._here()
        if len(labels) < 2 or len(set(labels)) < len(labels):
            self._problem("TC0711", "an order takes two or more labels, each once", span)
            return
        self.before += [(a, b, span) for a, b in itertools.pairwise(labels)]

    def only_for(self, *targets: str) -> None:
        """Refuse other targets than these."""
        if self.target.name not in targets:
            self._problem(
                "TC0715",
                f"this schedule is for {' and '.join(targets)}, not for {self.target.name}",
                self._here(),
                help=f"compile with --target {targets[0]}, or with another schedule",
            )

    # ---- reading -------------------------------------------------------------------------------------------

    def request(self, kind: str, names: Sequence[str], key: str) -> Request | None:
        """The request for a choice of the thing known under `names`, the most specific first."""
        for name in (*names, ALL):
            found = self.requests.get((kind, name, key))
            if found is not None:
                return found
        return None

    # ---- writing -------------------------------------------------------------------------------------------

    def _add(self, kind: str, name: str, choices: dict[str, Value | Bound], why: str) -> None:
        span = self._here()
        known = {k.key: k for k in KNOBS if k.kind == kind}
        if not choices:
            self._problem(
                "TC0711", f"a request for `{name}` chooses nothing", span, note=_listed(known.values())
            )
        for key, value in choices.items():
            knob = known.get(key)
            if knob is None:
                self._problem(
                    "TC0711",
                    f"{_article(kind)} has no choice `{key}`",
                    span,
                    note=_listed(known.values()),
                    help=nearest(key, known),
                )
                continue
            bound = value if isinstance(value, Between | OneOf) else OneOf((value,))
            wrong = _wrong_values(bound, knob)
            if wrong:
                self._problem("TC0713", f"`{key}` of `{name}` {wrong}", span, note=f"{key}: {knob.doc}")
                continue
            self._narrow(Request(kind, name, key, bound, span, why))

    def _narrow(self, request: Request) -> None:
        at = (request.kind, request.name, request.key)
        old = self.requests.get(at)
        if old is None:
            self.requests[at] = request
            return
        both = meet(old.bound, request.bound)
        if both is None:
            self.problems.append(
                Diagnostic(
                    "TC0712",
                    f"contradictory requests for `{request.name}`: {old} and {request}",
                    request.span,
                    (),
                    ("leave one of the two",),
                    (old.span,),
                )
            )
            return
        why = "; ".join(w for w in (old.why, request.why) if w)
        self.requests[at] = Request(*at, both, request.span, why)

    def _problem(self, code: str, message: str, span: Span, note: str = "", help: str = "") -> None:
        notes, helps = ((note,) if note else ()), ((help,) if help else ())
        self.problems.append(Diagnostic(code, message, span, notes, helps))

    def _here(self) -> Span:
        """The line of the schedule file that is being executed."""
        frame = sys._getframe(1)
        first = None
        while frame is not None:
            if frame.f_code.co_filename != __file__:
                first = first or Span(frame.f_code.co_filename, frame.f_lineno)
                if not self.file or frame.f_code.co_filename == self.file:
                    return Span(frame.f_code.co_filename, frame.f_lineno)
            if frame.f_back is None:
                break
            frame = frame.f_back
        return first or Span(self.file)


def edge_name(source: str, op: str) -> str:
    """How a hand-off is called in requests, decisions and errors."""
    return f"{source} -> {op}"


def _wrong_values(bound: Bound, knob: Knob) -> str:
    """Why values of a bound can never be what a knob takes; empty if they can."""
    name = {int: "a number", bool: "True or False", str: "a name"}[knob.takes]
    if isinstance(bound, Between):
        if knob.takes is not int:
            return f"takes {name}, not a range"
        if any(type(n) is not int for n in (bound.low, bound.high)):
            return "takes numbers as the ends of a range"
        return "" if bound.low <= bound.high else f"is bounded by an empty range, {bound}"
    if not bound.values:
        return "is bounded by no value at all"
    wrong = [v for v in bound.values if type(v) is not knob.takes]
    return f"takes {name}, not {wrong[0]!r}" if wrong else ""


def _article(kind: str) -> str:
    return {"op": "an op", "edge": "an edge", "ring": "a ring", "roles": "the set of roles"}.get(kind, kind)


def _listed(knobs: Iterable[Knob]) -> str:
    return "choices: " + ", ".join(k.key for k in knobs)
