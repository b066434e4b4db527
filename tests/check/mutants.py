"""Mutations of good programs, twice each: of the kernel (its text or its op table) and of the checker's
protocol.

A `Kind` is one mistake of the text, wherever an op has the statement; a `Mutant` is a kind at one op, in one
layer or CTA or everywhere, or a change of the waits of the op table. Mutants of `harmless` are so by
construction; of all others nothing is claimed: the emulator says what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.check.bench import Site
from tilecc.check.sync import Do, Loop, OpSync, RowSync, Statement, SyncProgram, WaitSync, with_op

GEMV, COMMON, ROUTE, VECTOR = (f"include/op_{n}.cuh" for n in ("gemv", "common", "route", "vector"))
WINDOW, SPLIT, FILL = "include/op_attention.cuh", "include/op_attention_split.cuh", "include/attn_common.cuh"

ROLES = {"loader": 0, "store": 1, "activations": 2, "consumer": 3}
HERE = "::tk_at(c.watch.role, c.watch.op, c.watch.layer, c.cta)"
HERE_CTX = "::tk_at(watch.role, watch.op, watch.layer, cta)"

Body = tuple[Statement, ...]
Edit = Callable[[Do], Body | None]
"""Statements in the place of one; None leaves it."""


@dataclass(frozen=True)
class Where:
    """CTA and layer in which a mutation acts; None for all."""

    cta: int | None = None
    layer: int | None = None

    def only(self, *body: Do) -> Body:
        """The statements where the mutation acts."""
        if self.cta is not None:
            return (Loop(f"cta={self.cta}", body),)
        return (Loop(f"layer={self.layer}", body),) if self.layer is not None else body

    def elsewhere(self, *body: Do) -> Body:
        """The statements where it does not."""
        if self.cta is not None:
            return (Loop(f"cta!={self.cta}", body),)
        return (Loop(f"layer!={self.layer}", body),) if self.layer is not None else ()


def rewrite(body: Body, edit: Edit) -> Body:
    made: list[Statement] = []
    for s in body:
        if isinstance(s, Loop):
            made.append(Loop(s.over, rewrite(s.body, edit)))
        else:
            new = edit(s)
            made.extend((s,) if new is None else new)
    return tuple(made)


Change = Callable[[SyncProgram, OpSync, Where], SyncProgram]


def scripts(role: str, make: Callable[[Where], Edit]) -> Change:
    """Edits the script of one role (or "*") of the op."""

    def change(p: SyncProgram, op: OpSync, where: Where) -> SyncProgram:
        edit = make(where)
        made = tuple(
            dataclasses.replace(s, body=rewrite(s.body, edit)) if role in (s.role, "*") else s
            for s in op.scripts
        )
        return with_op(p, op.name, scripts=made)

    return change


def occurrence(
    verb: str, ring: str = "", bar: str = "", ahead: bool | None = False, numbers: tuple[int, ...] = ()
) -> Callable[[Do], bool]:
    """A test for the statements of a verb; `numbers` picks some of them in the order of the text. `ahead`:
    those out of turn, or any (None)."""
    seen = 0

    def test(do: Do) -> bool:
        nonlocal seen
        if (do.verb, do.ring, do.bar) != (verb, ring, bar) or ahead not in (None, bool(do.ahead)):
            return False
        seen += 1
        return not numbers or seen - 1 in numbers

    return test


def drop(
    role: str,
    verb: str,
    ring: str = "",
    bar: str = "",
    ahead: bool | None = False,
    numbers: tuple[int, ...] = (),
) -> Change:
    def make(where: Where) -> Edit:
        found = occurrence(verb, ring, bar, ahead, numbers)
        return lambda do: where.elsewhere(do) if found(do) else None

    return scripts(role, make)


def twice(role: str, verb: str, ring: str = "", bar: str = "") -> Change:
    def make(where: Where) -> Edit:
        found = occurrence(verb, ring, bar)
        return lambda do: (do, *where.only(do)) if found(do) else None

    return scripts(role, make)


def early(role: str, take: str, ring: str) -> Change:
    """The release of a ring right behind its take."""

    def make(where: Where) -> Edit:
        at, late = occurrence(take, ring, ahead=None), occurrence("release", ring, ahead=None)

        def edit(do: Do) -> Body | None:
            if at(do):
                return (do, *where.only(Do("release", ring, ahead=do.ahead)))
            return where.elsewhere(do) if late(do) else None

        return edit

    return scripts(role, make)


def scope(name: str) -> Change:
    return lambda p, op, where: with_op(p, op.name, scope=name)


def both(*changes: Change) -> Change:
    def change(p: SyncProgram, op: OpSync, where: Where) -> SyncProgram:
        for c in changes:
            p = c(p, p.op(op.name), where)
        return p

    return change


def dealt(role: str | None) -> Change:
    """Tasks of one role, or of all, go to the next CTA."""

    def change(p: SyncProgram, op: OpSync, where: Where) -> SyncProgram:
        made = tuple(dataclasses.replace(s, shift=int(role in (None, s.role))) for s in op.scripts)
        return with_op(p, op.name, scripts=made)

    return change


@dataclass(frozen=True)
class Kind:
    """A mistake of the text: `text` gives other text for its sites, `change` other protocols, in the ops for
    which `on` holds. `role`: the text is that of several roles, of which this one makes the mistake;
    `places`: it may be limited to a CTA or a layer."""

    name: str
    text: dict[Site, str]
    change: Change
    on: Callable[[OpSync], bool]
    role: str = ""
    places: bool = True
    harmless: bool = False


def _is(*kinds: str) -> Callable[[OpSync], bool]:
    return lambda op: op.kind in kinds


def _window(op: OpSync) -> bool:
    return op.kind == "attention" and "window" in op.shape


def _split(op: OpSync) -> bool:
    return op.kind == "attention" and "window" not in op.shape


def _has(op: OpSync, role: str, verb: str) -> bool:
    """The script of the role has such a statement."""

    def inside(body: Body) -> bool:
        return any(inside(s.body) if isinstance(s, Loop) else s.verb == verb for s in body)

    return any(s.role == role and inside(s.body) for s in op.scripts)


# ---- sites -----------------------------------------------------------------------------------------------
W_EMPTY = Site(GEMV, "tk::mbar_wait(c.w_empty(c.w.slot), c.w.phase ^ 1, c.watch);")
A_EMPTY = Site(GEMV, "tk::mbar_wait(c.a_empty(c.a.slot), c.a.phase ^ 1, c.watch);")
A_FULL = Site(GEMV, "tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);")
W_FULL = Site(GEMV, "tk::mbar_wait(c.w_full(c.w.slot), c.w.phase, c.watch);")
A_RELEASE = Site(GEMV, "tk::mbar_arrive(c.a_empty(c.a.slot));")
W_RELEASE = Site(GEMV, "tk::mbar_arrive(c.w_empty(c.w.slot));")
X_EMPTY = Site(GEMV, "tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);")
X_COMMIT = Site(GEMV, "tk::mbar_arrive(c.x_full(c.x.slot));")
X_FULL = Site(GEMV, "tk::mbar_wait(c.x_full(c.x.slot), c.x.phase, c.watch);")
X_RELEASE = Site(GEMV, "tk::mbar_arrive(c.x_empty(c.x.slot));")
INPUTS = Site(GEMV, "c.wait_inputs(r);", before="\n      u32 loaded")
STORE_INPUTS = Site(GEMV, "c.wait_inputs(r);", before="\n    } else {")
IDLE = Site(GEMV, "c.wait_idle(r, q, n);")
LIST_RELEASE = Site(GEMV, "tk::mbar_arrive(c.r_empty());", 4)
SIGNAL = Site(COMMON, "tk::red_release(counter(counter_id), 1);", member=True)
SHIFT = Site(COMMON, "rotation % c.ncta", expression=True)
VECTOR_INPUTS = Site(VECTOR, "c.wait_inputs(r);", 3)
MERGE_INPUTS = Site(SPLIT, "c.wait_inputs(r);", 2)
PREVIOUS = Site(WINDOW, "wait_previous_step(c, r);")
WINDOW_INPUTS = Site(WINDOW, "c.wait_inputs(r);")
QUERY_FULL = Site(WINDOW, "tk::mbar_wait(c.a_full(at.slot), at.phase, c.watch);")
QUERY_RELEASE = Site(WINDOW, "tk::mbar_arrive(c.a_empty(at.slot));")
BLOCK_FULL = "tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);"
KEYS_FULL = Site(WINDOW, BLOCK_FULL, before="\n      if (w == c.warp)")
VALUES_FULL = Site(WINDOW, BLOCK_FULL, before="\n      Probabilities p;")
MAXIMA_SYNC = Site(WINDOW, "tk::bar_sync(2, kWarps * 32);", before="\n    float rescale")
SUMS_SYNC = Site(WINDOW, "tk::bar_sync(2, kWarps * 32);", before="\n    TK_UNROLL")
ROWS_FULL = Site(SPLIT, BLOCK_FULL, before="\n        if (row == my_row)")
BLOCKS_FULL = Site(SPLIT, BLOCK_FULL, before="\n        if (mine && seq == my_seq)")
FILL_EMPTY = Site(FILL, "tk::mbar_wait(c.a_empty(c.a.slot), c.a.phase ^ 1, c.watch);")
FREE = Site(FILL, "tk::mbar_arrive(c.a_empty(c.a.slot));")
ATTENTION_X = {
    "empty": [
        Site(f, "tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);") for f in (WINDOW, SPLIT)
    ],
    "commit": [Site(f, "tk::mbar_arrive(c.x_full(c.x.slot));") for f in (WINDOW, SPLIT)],
    "full": [Site(FILL, "tk::mbar_wait(c.x_full(c.x.slot), c.x.phase, c.watch);")],
    "release": [Site(FILL, "tk::mbar_arrive(c.x_empty(c.x.slot));")],
}
ATTENTION_IDLE = [Site(FILL, "c.wait_idle(r, q, n);")]
LIST_FULL = Site(ROUTE, "tk::mbar_wait(c.r_full(), c.route_phase, c.watch);")
LIST_EMPTY = Site(ROUTE, "tk::mbar_wait(c.r_empty(), c.route_phase ^ 1, c.watch);")
LIST_COMMIT = Site(ROUTE, "tk::mbar_arrive(c.r_full());")
ROUTE_INPUTS = Site(ROUTE, "c.wait_inputs(r);")
BAR = "tk::bar_sync(3, kSelecting * 32);"
SELECT_SYNC = {
    0: [
        Site(ROUTE, BAR, before="  // the logits are there"),
        Site(ROUTE, BAR, before="\n    if constexpr (kHelpers > 0)"),
    ],
    1: [Site(ROUTE, BAR, before="\n    wait(c);"), Site(ROUTE, BAR, before="\n    if (c.warp == 0) {")],
}
ACTIVATIONS_SYNC = Site(ROUTE, "tk::bar_sync(1, C::kActWarps * 32);")


def _gone(*sites: Site) -> dict[Site, str]:
    return dict.fromkeys(sites, "")


def _gemv_kinds() -> Iterator[Kind]:
    gemv = _is("qkv", "project", "gate_up", "experts_up", "experts_down", "router", "head")

    def lost(name: str, site: Site, role: str, verb: str, ring: str = "") -> Kind:
        change = drop(role, verb, ring, ahead=None)
        return Kind(f"{name} lost", _gone(site), change, lambda op: gemv(op) and _has(op, role, verb))

    yield lost("wait for an empty stage", W_EMPTY, "loader", "acquire", "weights")
    yield lost("wait for an empty slot of activations", A_EMPTY, "activations", "acquire", "activations")
    yield lost("wait for activations", A_FULL, "consumer", "take", "activations")
    yield lost("wait for weights", W_FULL, "consumer", "take", "weights")
    yield lost("release of activations", A_RELEASE, "consumer", "release", "activations")
    yield lost("release of a stage", W_RELEASE, "consumer", "release", "weights")
    yield lost("wait for an empty exchange slot", X_EMPTY, "consumer", "acquire", "exchange")
    yield lost("hand-over of an exchange slot", X_COMMIT, "consumer", "commit", "exchange")
    yield lost("wait for partial sums", X_FULL, "store", "take", "exchange")
    yield lost("release of an exchange slot", X_RELEASE, "store", "release", "exchange")
    yield lost("wait for the inputs", INPUTS, "activations", "inputs")
    yield lost("wait for the sums of squares", STORE_INPUTS, "store", "inputs")
    yield lost("wait of an idle CTA", IDLE, "store", "idle")
    for name, ring, full, release, arrive in (
        ("stage", "weights", W_FULL, W_RELEASE, "tk::mbar_arrive(c.w_empty(c.w.slot));"),
        ("slot of activations", "activations", A_FULL, A_RELEASE, "tk::mbar_arrive(c.a_empty(c.a.slot));"),
    ):
        text = {full: f"{full.text} tk::syncwarp(); {arrive}", release: ""}
        yield Kind(f"{name} released before it is read", text, early("consumer", "take", ring), gemv)
    text = {X_FULL: f"{X_FULL.text} tk::syncwarp(); {X_RELEASE.text}", X_RELEASE: ""}
    yield Kind("exchange slot released before it is read", text, early("store", "take", "exchange"), gemv)
    for role in ROLES:
        change = drop(role, "release", "routing")
        yield Kind("release of the list lost", _gone(LIST_RELEASE), change, _is("experts_down"), role)
    yield Kind(
        "inputs waited for twice",
        {INPUTS: INPUTS.text * 2},
        twice("activations", "inputs"),
        gemv,
        harmless=True,
    )


def _vector_kinds() -> Iterator[Kind]:
    vector = _is("embed", "reduce", "commit")
    yield Kind("wait for the inputs lost", _gone(VECTOR_INPUTS), drop("store", "inputs"), vector)
    yield Kind(
        "wait for the inputs lost", _gone(MERGE_INPUTS), drop("store", "inputs"), _is("attention_merge")
    )
    text = {VECTOR_INPUTS: VECTOR_INPUTS.text * 2}
    yield Kind("inputs waited for twice", text, twice("store", "inputs"), vector, harmless=True)


def _attention_kinds() -> Iterator[Kind]:
    attention = _is("attention")
    yield Kind("wait for the step before lost", _gone(PREVIOUS), drop("activations", "previous"), _window)
    yield Kind("wait for the inputs lost", _gone(WINDOW_INPUTS), drop("activations", "inputs"), _window)
    yield Kind("wait for the inputs lost", _gone(MERGE_INPUTS), drop("activations", "inputs"), _split)
    change = drop("consumer", "take", "activations", ahead=True)
    yield Kind("wait for the queries lost", _gone(QUERY_FULL), change, _window)
    change = drop("consumer", "release", "activations", ahead=True)
    yield Kind("release of the queries lost", _gone(QUERY_RELEASE), change, _window)
    # The keys of a round stand twice in the script: those that came early, and the others.
    for numbers, site, what in (((0, 1), KEYS_FULL, "keys"), ((2,), VALUES_FULL, "values")):
        change = drop("consumer", "take", "activations", numbers=numbers)
        yield Kind(f"wait for {what} lost", _gone(site), change, _window)
    for number, site, what in ((0, ROWS_FULL, "queries"), (1, BLOCKS_FULL, "keys and values")):
        change = drop("consumer", "take", "activations", numbers=(number,))
        yield Kind(f"wait for {what} lost", _gone(site), change, _split)
    for number, site, what in ((0, MAXIMA_SYNC, "maxima"), (1, SUMS_SYNC, "sums")):
        change = drop("consumer", "sync", bar="consumers", numbers=(number,))
        yield Kind(f"barrier before the {what} are read lost", _gone(site), change, _window)
    yield Kind(
        "wait for an empty slot lost",
        _gone(FILL_EMPTY),
        drop("activations", "acquire", "activations"),
        attention,
    )
    yield Kind("release of a block lost", _gone(FREE), drop("consumer", "release", "activations"), attention)
    for name, key, role, verb in (
        ("wait for an empty exchange slot", "empty", "consumer", "acquire"),
        ("hand-over of an exchange slot", "commit", "consumer", "commit"),
        ("wait for the consumers", "full", "store", "take"),
        ("release of an exchange slot", "release", "store", "release"),
    ):
        yield Kind(f"{name} lost", _gone(*ATTENTION_X[key]), drop(role, verb, "exchange"), attention)
    yield Kind("wait of an idle CTA lost", _gone(*ATTENTION_IDLE), drop("store", "idle"), attention)
    text = {MAXIMA_SYNC: MAXIMA_SYNC.text * 2, SUMS_SYNC: SUMS_SYNC.text * 2}
    yield Kind("barriers twice", text, twice("consumer", "sync", bar="consumers"), _window, harmless=True)
    yield Kind(
        "step before waited for twice",
        {PREVIOUS: PREVIOUS.text * 2},
        twice("activations", "previous"),
        _window,
        harmless=True,
    )


def _route_kinds() -> Iterator[Kind]:
    route = _is("route")
    for role in ("loader", "store", "consumer"):
        yield Kind("wait for the list lost", _gone(LIST_FULL), drop(role, "take", "routing"), route, role)
    yield Kind(
        "wait for the record to be free lost",
        _gone(LIST_EMPTY),
        drop("activations", "acquire", "routing"),
        route,
    )
    yield Kind(
        "hand-over of the list lost", _gone(LIST_COMMIT), drop("activations", "commit", "routing"), route
    )
    yield Kind("wait for the inputs lost", _gone(ROUTE_INPUTS), drop("activations", "inputs"), route)
    for number, what in ((0, "before"), (1, "after")):
        change = both(
            *(drop(r, "sync", bar="selecting", numbers=(number,)) for r in ("activations", "consumer"))
        )
        yield Kind(f"barrier {what} the selection lost", _gone(*SELECT_SYNC[number]), change, route)
        for role in ("activations", "consumer"):
            change = drop(role, "sync", bar="selecting", numbers=(number,))
            yield Kind(
                f"one role not at the barrier {what} the selection",
                _gone(*SELECT_SYNC[number]),
                change,
                route,
                role,
            )
    change = drop("activations", "sync", bar="activations")
    yield Kind("barrier of the activation warps lost", _gone(ACTIVATIONS_SYNC), change, route)
    sites = [s for pair in SELECT_SYNC.values() for s in pair]
    change = both(*(twice(r, "sync", bar="selecting") for r in ("activations", "consumer")))
    yield Kind("barriers twice", {s: s.text * 2 for s in sites}, change, route, harmless=True)


def _all_kinds() -> Iterator[Kind]:
    counted: Callable[[OpSync], bool] = lambda op: op.counter >= 0  # noqa: E731
    release = SIGNAL.text
    yield Kind("signal lost", _gone(SIGNAL), drop("store", "signal"), counted)
    yield Kind("signal twice", {SIGNAL: release * 2}, twice("store", "signal"), counted)
    yield Kind(
        "relaxed signal",
        {SIGNAL: release.replace("red_release", "red_relaxed")},
        scope("none"),
        counted,
        places=False,
    )
    for name, harmless in (("cta", False), ("sys", True)):
        text = {SIGNAL: release.replace("red_release", f"red_release<tk::Scope::k{name.title()}>")}
        yield Kind(
            f"signal of {name} scope",
            text,
            scope("gpu" if harmless else name),
            counted,
            places=False,
            harmless=harmless,
        )
    dealing: Callable[[OpSync], bool] = lambda op: op.kind not in ("route", "commit")  # noqa: E731
    other = {SHIFT: "(rotation + 1) % c.ncta"}
    # Not harmless by construction: beside words that are their own flags, an order may come from what else
    # the same CTA runs.
    yield Kind("all tasks one CTA further", other, dealt(None), dealing, places=False)
    for role in ROLES:
        several: Callable[[OpSync], bool] = lambda op, role=role: (  # type: ignore[misc]  # noqa: E731
            op.kind in ("qkv", "project", "gate_up", "experts_up", "experts_down", "head", "attention")
            and any(s.role == role for s in op.scripts)
        )
        yield Kind("one role's tasks one CTA further", other, dealt(role), several, role, places=False)


def _count_kinds() -> Iterator[Kind]:
    """Arrival counts of mbarriers; the op is of no consequence, the first one stands for all."""
    for ring, short, full, empty in (
        ("weights", "W", "1", "Config::kConsumerWarps"),
        ("activations", "A", "Config::kActWarps", "Config::kConsumerWarps"),
        ("exchange", "X", "Config::kConsumerWarps", "1"),
    ):
        for side, count in (("full", full), ("empty", empty)):
            site = Site(
                "KERNEL", f"tk::mbar_init(sb + S::k{short}{side.title()} + 8 * i, {count});", plain=True
            )
            for by in (-1, 1) if count != "1" else (1,):
                text = {site: site.text.replace(count + ");", f"{count} + {by});")}
                yield Kind(
                    f"{side} count of {ring} {by:+d}",
                    text,
                    _counts(ring, f"{side}_count", by),
                    _is("embed"),
                    places=False,
                )


def _counts(ring: str, field: str, by: int) -> Change:
    def change(p: SyncProgram, op: OpSync, where: Where) -> SyncProgram:
        rings = tuple(
            dataclasses.replace(r, **{field: getattr(r, field) + by}) if r.name == ring else r
            for r in p.rings
        )
        return dataclasses.replace(p, rings=rings)

    return change


KINDS: tuple[Kind, ...] = (
    *_gemv_kinds(), *_vector_kinds(), *_attention_kinds(), *_route_kinds(), *_all_kinds(), *_count_kinds(),
)  # fmt: skip


# ---- mutants ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mutant:
    """`number` of the kind in KINDS + 1, with role, op, layer and CTA for the switches of the kernel (255:
    all); or `table`, a change of the op table. `change` makes the same mistake in the protocols."""

    name: str
    change: Callable[[SyncProgram], SyncProgram]
    harmless: bool = False
    number: int = 0
    switches: tuple[int, int, int, int] = (255, 255, 255, 255)
    table: Callable[[NDArray[np.uint32]], None] | None = None


def text_mutants(p: SyncProgram, ids: dict[str, int], grid: int) -> Iterator[Mutant]:
    """Every kind at every op that has it, everywhere, in each CTA, and in each layer of several."""
    layers: dict[str, list[int]] = {}
    for row in p.rows:
        layers.setdefault(row.op, []).append(row.layer)
    for number, kind in enumerate(KINDS, 1):
        for op in filter(kind.on, p.ops):
            places = [Where()]
            if kind.places:
                places += [Where(cta=n) for n in range(grid)]
                places += [Where(layer=n) for n in layers[op.name] if len(layers[op.name]) > 1]
            for where in places:
                at = (
                    ""
                    if where == Where()
                    else f" in layer {where.layer}"
                    if where.cta is None
                    else f" on CTA {where.cta}"
                )
                role = f", {kind.role}" if kind.role else ""
                yield Mutant(
                    f"{kind.name}, {op.name}{role}{at}",
                    lambda q, kind=kind, op=op, where=where: kind.change(q, q.op(op.name), where),  # type: ignore[misc]
                    kind.harmless,
                    number,
                    (
                        ROLES[kind.role] if kind.role else 255,
                        255 if "count of" in kind.name else ids[op.name],
                        255 if where.layer is None else where.layer, 255 if where.cta is None else where.cta,
                    ),
                )  # fmt: skip


N_WAITS, WAITS = 6, 8
MAX_WAITS = 3


def wait_mutants(p: SyncProgram, places: list[int]) -> Iterator[Mutant]:
    """Waits of every row lost, weakened, too strong, for another op, exchanged; rows left out; and, harmless,
    waits added that those before imply, and these lost again."""
    by_counter = {op.counter: op for op in p.ops if op.counter >= 0}

    def mutant(name: str, rows: dict[int, tuple[WaitSync, ...]], harmless: bool = False) -> Mutant:
        def change(q: SyncProgram) -> SyncProgram:
            made = tuple(
                dataclasses.replace(row, waits=rows[i]) if i in rows else row for i, row in enumerate(q.rows)
            )
            return dataclasses.replace(q, rows=made)

        def table(words: NDArray[np.uint32]) -> None:
            for i, waits in rows.items():
                row = words[places[i]]
                row[N_WAITS] = len(waits)
                row[WAITS : WAITS + 3 * MAX_WAITS] = 0
                for k, wait in enumerate(waits):
                    ordinal = np.array([wait.ordinal], np.int32).view(np.uint32)[0]
                    row[WAITS + 3 * k : WAITS + 3 * k + 3] = (
                        wait.counter, by_counter[wait.counter].per_step, ordinal
                    )  # fmt: skip

        return Mutant(name, change, harmless, table=table)

    implied = implications(p)
    for i, row in enumerate(p.rows):
        at = f"{row.op}, layer {row.layer}"
        for k, wait in enumerate(row.waits):
            source = by_counter[wait.counter]

            def other(new: WaitSync | None, k: int = k, row: RowSync = row) -> tuple[WaitSync, ...]:
                return (*row.waits[:k], *((new,) if new else ()), *row.waits[k + 1 :])

            yield mutant(f"wait {k} of {at} lost", {i: other(None)})
            for by, name in (
                (-1, "one instance early"),
                (-source.per_step, "one step early"),
                (1, "one instance late"),
            ):
                changed = dataclasses.replace(wait, ordinal=wait.ordinal + by)
                if by != -1 or source.per_step > 1:
                    yield mutant(f"wait {k} of {at} {name}", {i: other(changed)})
            for j, second in enumerate(p.rows):
                if j != i and abs(j - i) < 3 and second.waits and row.waits != second.waits:
                    yield mutant(f"wait {k} of {at} as that of {second.op}", {i: other(second.waits[0])})
                    if j > i:
                        yield mutant(
                            f"waits of {at} and {second.op} exchanged", {i: second.waits, j: row.waits}
                        )
        extra = [w for w in implied[i] if w not in row.waits]
        for w in extra:
            if len(row.waits) < MAX_WAITS:
                yield mutant(f"implied wait added to {at}", {i: (*row.waits, w)}, True)
                yield mutant(f"implied wait put first in {at}", {i: (w, *row.waits)}, True)


def implications(p: SyncProgram) -> list[list[WaitSync]]:
    """For every row waits that its own imply: an instance that is done on all CTAs had all that it waits for
    itself, and all instances of the same op before it, done on all CTAs."""
    rows_of: dict[int, list[int]] = {}
    counters = {op.name: op.counter for op in p.ops}
    for i, row in enumerate(p.rows):
        rows_of.setdefault(counters[row.op], []).append(i)
    found: list[list[WaitSync]] = []
    for row in p.rows:
        made: dict[WaitSync, None] = {}
        for wait in row.waits:
            instances = rows_of[wait.counter]
            steps_back, at = divmod(wait.ordinal - 1, len(instances))
            for w in p.rows[instances[at]].waits:
                per = len(rows_of[w.counter])
                if -per < w.ordinal + steps_back * per:
                    made[dataclasses.replace(w, ordinal=w.ordinal + steps_back * per)] = None
            if wait.ordinal - 1 > -len(instances):
                made[dataclasses.replace(wait, ordinal=wait.ordinal - 1)] = None
        found.append(list(made))
    return found


def ring_mutants(p: SyncProgram) -> Iterator[Mutant]:
    """Deeper rings, harmless; the kernel of these is another one, so they are for the checker alone."""
    for ring in p.rings:
        for more in (1, 2, 5) if ring.slots > 1 else ():

            def change(q: SyncProgram, name: str = ring.name, more: int = more) -> SyncProgram:
                rings = tuple(
                    dataclasses.replace(r, slots=r.slots + more) if r.name == name else r for r in q.rings
                )
                return dataclasses.replace(q, rings=rings)

            yield Mutant(f"{ring.name} {more} slots deeper", change, True, number=-1)
