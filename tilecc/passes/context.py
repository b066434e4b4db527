"""What a pass may know besides its IR, how it asks for the user's wishes, and where it writes down what it
decided.

A pass that has a choice makes it through `PassContext.choose`: it hands over the legal candidates and their
cost, and gets the cheapest one that the schedule allows. The alternatives, their costs and the reason go into
the decision log; a request that no candidate satisfies becomes an error at the schedule's line.

    chosen = ctx.choose("tile", op_subject(op), [{"splits": n} for n in (1, 2, 4)],
                        cost=lambda c: bytes_with(c["splits"]), unit="B", reason="fewest bytes on one CTA")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tilecc.diag import Diagnostic, TileccError
from tilecc.diag.model import nearest
from tilecc.ir.rows import BASE_ROWS
from tilecc.ir.tile import TileOp
from tilecc.passes.schedule import ALL, KNOBS, Request, Schedule, Value, allows, edge_name, show_value
from tilecc.target import Target

Choice = dict[str, Value]
"""Values of one or more knobs that are chosen together, by key."""

SHOWN_ALTERNATIVES = 12
SHOWN_LEGAL = 16


@dataclass(frozen=True)
class Alternative:
    """A choice that was not made: its cost in `unit` of the decision, or why it is not legal."""

    choice: str
    cost: float | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Decision:
    """One choice of the compiler, for `tilecc inspect`: what was chosen for which subject, and why.

    `cost` is that of the choice in `unit` (None: chosen by a rule without costs); `alternatives` are the
    cheapest other candidates and those that are not legal; `pinned` the place in the schedule file that
    decided, with its reason.
    """

    pass_name: str
    subject: str
    choice: str
    reason: str
    cost: float | None = None
    unit: str = ""
    alternatives: tuple[Alternative, ...] = ()
    pinned: str = ""


@dataclass(frozen=True)
class Subject:
    """What a choice is about: a kind of `Knob.kind` and its names, the most specific first. The last one is
    shown in the decision log; ops of many layers share it."""

    kind: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return self.names[-1]


def op_subject(op: TileOp) -> Subject:
    """Choices of an op: of this one, or of its label in every layer."""
    return Subject("op", tuple(dict.fromkeys((op.name, op.label))))


def edge_subject(source: TileOp, op: TileOp) -> Subject:
    """Choices of the hand-off between two ops."""
    names = (edge_name(source.name, op.name), edge_name(source.label, op.label))
    return Subject("edge", tuple(dict.fromkeys(names)))


def ring_subject(name: str) -> Subject:
    """Choices of a ring."""
    return Subject("ring", (name,))


ROLES_SUBJECT = Subject("roles", ("warps",))


@dataclass
class PassContext:
    """Target and user options; `ranks` is the size of the tensor-parallel group, `max_rows` the rows of a
    step. `decisions` grows in the order of the passes, so it is deterministic."""

    target: Target
    max_context: int
    max_seqs: int
    ranks: int = 1
    schedule: Schedule | None = None
    max_rows: int = BASE_ROWS
    decisions: list[Decision] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    """What is wrong with the schedule, collected until `settle`."""

    def __post_init__(self) -> None:
        self._asked: dict[tuple[str, str], set[str]] = {}  # (kind, name) -> keys that a pass chose

    def decide(self, pass_name: str, subject: str, choice: str, reason: str) -> None:
        """Record a choice once, however many layers repeat it."""
        self.record(Decision(pass_name, subject, choice, reason))

    def record(self, decision: Decision) -> None:
        """Record a decision once."""
        if decision not in self.decisions:
            self.decisions.append(decision)

    def choose(
        self,
        pass_name: str,
        subject: Subject,
        candidates: Sequence[Choice],
        *,
        reason: str,
        cost: Callable[[Choice], float] | None = None,
        unit: str = "",
        default: Choice | None = None,
        refused: Sequence[tuple[Choice, str]] = (),
        about: str = "",
        words: Callable[[Choice], str] | None = None,
        log: bool = True,
    ) -> Choice:
        """The candidate that the schedule allows and that is best.

        `candidates` are the legal ones, all with the same keys; without a request the choice is `default` if
        given, else the cheapest by `cost`, else the first. With requests it is the same among those that
        satisfy them, or the one nearest to a `default` that does not. `refused` are further candidates that
        are known and not legal here, with the reason. If no candidate satisfies the requests, that is noted
        for `settle`, and the choice is made as if there were none. `words` says a choice in the decision log,
        `about` what it is of the subject; `log=False` leaves the record to the caller.
        """
        keys = tuple(candidates[0])
        requests = [r for key in keys if (r := self._request(subject, key)) is not None]
        allowed = [c for c in candidates if all(allows(r.bound, c[r.key]) for r in requests)]
        if not allowed:
            self._illegal(subject, candidates, requests, refused)
            allowed = list(candidates)
        if default is not None:
            chosen = default if default in allowed else min(allowed, key=lambda c: _distance(c, default))
        else:
            chosen = min(allowed, key=cost) if cost is not None else allowed[0]
        if log:
            say = words or show
            self.record(
                Decision(
                    pass_name,
                    f"{subject} {about}".strip(),
                    say(chosen),
                    reason,
                    cost(chosen) if cost is not None else None,
                    unit if cost is not None else "",
                    _alternatives(chosen, candidates, refused, cost, say),
                    pinned_by(requests),
                )
            )
        return chosen

    def pinned(self, subject: Subject, *keys: str) -> str:
        """Where the schedule decides about these keys, for a decision that the caller records."""
        return pinned_by([r for key in keys if (r := self._request(subject, key)) is not None])

    def _request(self, subject: Subject, key: str) -> Request | None:
        for name in subject.names:
            self._asked.setdefault((subject.kind, name), set()).add(key)
        return self.schedule.request(subject.kind, subject.names, key) if self.schedule else None

    def _illegal(
        self,
        subject: Subject,
        candidates: Sequence[Choice],
        requests: list[Request],
        refused: Sequence[tuple[Choice, str]],
    ) -> None:
        """Note that no candidate satisfies the requests: one by one, or only together."""
        alone = [r for r in requests if not any(allows(r.bound, c[r.key]) for c in candidates)]
        for r in alone:
            legal = legal_values(candidates, r.key)
            why = [w for c, w in refused if r.key in c and allows(r.bound, c[r.key])]
            self.note(
                Diagnostic(
                    "TC0713",
                    f"`{r.key}` of `{subject}` cannot be {r.bound}",
                    r.span,
                    tuple(why),
                    (f"legal here: {legal}",),
                )
            )
        if alone:
            return
        first, rest = requests[0], requests[1:]
        left = [c for c in candidates if all(allows(r.bound, c[r.key]) for r in rest)]
        given = " and ".join(str(r) for r in rest)
        help = (
            f"with {given}, `{first.key}` may be {legal_values(left, first.key)}"
            if left
            else ("legal together: " + "; ".join(show(c) for c in candidates[:SHOWN_ALTERNATIVES]))
        )
        self.note(
            Diagnostic(
                "TC0712",
                f"{first} and {given} are not possible together for `{subject}`",
                first.span,
                (),
                (help,),
                tuple(r.span for r in rest),
            )
        )

    def note(self, found: Diagnostic) -> None:
        """Something wrong with the schedule, for `settle` to raise."""
        if found not in self.problems:
            self.problems.append(found)

    def settle(self, ops: Sequence[TileOp], skipped: Sequence[str] = (), whole: bool = True) -> None:
        """After the last pass that chooses: raise everything that is wrong with the schedule, if `whole` with
        the requests that nothing asked for. `skipped` are passes that another run made. Raises TileccError
        TC0711 to TC0715."""
        if self.schedule is None:
            return
        if whole:
            self._unasked(ops, skipped)
        found = [*self.schedule.problems, *self.problems]
        if found:
            raise TileccError(found)

    def _unasked(self, ops: Sequence[TileOp], skipped: Sequence[str]) -> None:
        """Note the requests that no pass asked for. Without a schedule there are none."""
        assert self.schedule is not None
        late = {k.key for k in KNOBS if k.asked_by in skipped}
        labels = {name for op in ops for name in (op.name, op.label)}
        for r in self.schedule.requests.values():
            known = {name: keys for (kind, name), keys in self._asked.items() if kind == r.kind}
            keys = set().union(*known.values()) if r.name == ALL else known.get(r.name, set())
            if r.key in keys:
                continue
            names = sorted(labels if r.kind == "op" else known)
            if r.name != ALL and r.name not in names:
                shown = [n for n in names if "." not in n]
                self.note(
                    Diagnostic(
                        "TC0711",
                        f"this program has no {r.kind} `{r.name}`",
                        r.span,
                        (f"it has: {', '.join(shown)}",),
                        tuple(h for h in (nearest(r.name, names),) if h),
                    )
                )
                continue
            have = f"its choices: {', '.join(sorted(keys))}" if keys else "it has no choices"
            if r.key in late:
                have = "the IR text was made by a pass that has chosen already: " + ", ".join(skipped)
            self.note(
                Diagnostic(
                    "TC0714",
                    f"`{r.name}` has no choice `{r.key}` in this program",
                    r.span,
                    (have,),
                    ("leave the request out",),
                )
            )

    @contextmanager
    def schedule_first(self) -> Iterator[None]:
        """What is wrong with the schedule is reported together with the error that stops a pass."""
        try:
            yield
        except TileccError as found:
            own = [*(self.schedule.problems if self.schedule else ()), *self.problems]
            new = [d for d in own if d not in found.diagnostics]
            raise (TileccError([*new, *found.diagnostics]) if new else found) from None


def show(choice: Mapping[str, Value]) -> str:
    """A choice on one line."""
    if len(choice) == 1 and "kind" in choice:
        return show_value(choice["kind"])
    return ", ".join(f"{key} {show_value(value)}" for key, value in choice.items())


def legal_values(candidates: Sequence[Choice], key: str) -> str:
    """The values that a key takes in the candidates; long runs of numbers as a range."""
    values = list(dict.fromkeys(c[key] for c in candidates))
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    if len(numbers) == len(values) and len(values) > 2:
        numbers.sort()
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{numbers[0]} to {numbers[-1]}"
        values = list(numbers)
    shown = [show_value(v) for v in values[:SHOWN_LEGAL]]
    return ", ".join(shown) + (f" and {len(values) - SHOWN_LEGAL} more" if len(values) > SHOWN_LEGAL else "")


def pinned_by(requests: Sequence[Request]) -> str:
    """The places of requests, with the users' reasons; no folder, since folders differ between machines."""
    found = [(f"{Path(r.span.file).name}:{r.span.line} {r}", r.why) for r in requests]
    return "; ".join(f"{place}: {why}" if why else place for place, why in found)


def _distance(choice: Choice, wanted: Choice) -> int:
    """How far a choice is from the one wanted: numbers by their difference, the rest by being different."""
    far = 0
    for key, value in wanted.items():
        other = choice[key]
        numbers = isinstance(value, int) and isinstance(other, int)
        far += abs(int(other) - int(value)) if numbers else int(other != value)
    return far


def _alternatives(
    chosen: Choice,
    candidates: Sequence[Choice],
    refused: Sequence[tuple[Choice, str]],
    cost: Callable[[Choice], float] | None,
    say: Callable[[Choice], str],
) -> tuple[Alternative, ...]:
    others = [c for c in candidates if c != chosen]
    if cost is not None:
        others.sort(key=cost)
    made = [Alternative(say(c), cost(c) if cost else None) for c in others[:SHOWN_ALTERNATIVES]]
    return (*made, *(Alternative(say(c), None, why) for c, why in refused))
