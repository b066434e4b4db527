"""Bad programs. Each exhibit changes the synchronisation of a good one and names the diagnosis that it
must get.

An exhibit is (name, change, kind of violation, words of its message). The good program is the small net of
tests/check: a dense global layer, then a sliding mixture-of-experts layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from tilecc.check.sync import Do, Loop, Script, Statement, SyncProgram, WaitSync, with_op

Change = Callable[[SyncProgram], SyncProgram]


@dataclass(frozen=True)
class Exhibit:
    """`words` must all stand in the message or notes of one violation of `kind`."""

    name: str
    change: Change
    kind: str
    words: tuple[str, ...]


def _ring(name: str, **changes: object) -> Change:
    def change(p: SyncProgram) -> SyncProgram:
        rings = tuple(dataclasses.replace(r, **changes) if r.name == name else r for r in p.rings)  # type: ignore[arg-type]
        return dataclasses.replace(p, rings=rings)

    return change


def _script(op: str, role: str, edit: Callable[[tuple[Statement, ...]], tuple[Statement, ...]]) -> Change:
    def change(p: SyncProgram) -> SyncProgram:
        scripts = tuple(Script(s.role, edit(s.body)) if s.role == role else s for s in p.op(op).scripts)
        assert scripts != p.op(op).scripts, "the edit changes nothing"
        return with_op(p, op, scripts=scripts)

    return change


def _each(body: tuple[Statement, ...], edit: Callable[[Do], tuple[Statement, ...]]) -> tuple[Statement, ...]:
    made: list[Statement] = []
    for s in body:
        if isinstance(s, Loop):
            made.append(Loop(s.over, _each(s.body, edit)))
        else:
            made.extend(edit(s))
    return tuple(made)


def _drop(verb: str, ring: str = "") -> Callable[[tuple[Statement, ...]], tuple[Statement, ...]]:
    return lambda body: _each(body, lambda d: () if (d.verb, d.ring) == (verb, ring) else (d,))


def _drop_bar(bar: str) -> Callable[[tuple[Statement, ...]], tuple[Statement, ...]]:
    return lambda body: _each(body, lambda d: () if d.bar == bar else (d,))


def _both(
    op: str, roles: tuple[str, ...], edit: Callable[[tuple[Statement, ...]], tuple[Statement, ...]]
) -> Change:
    def change(p: SyncProgram) -> SyncProgram:
        for role in roles:
            p = _script(op, role, edit)(p)
        return p

    return change


def _late_inputs(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """The wait for the op's inputs dropped: all keys come under the waits of the step before."""
    return _drop("inputs")(body)


def _swap(first: str, second: str, ring: str) -> Callable[[tuple[Statement, ...]], tuple[Statement, ...]]:
    names = {first: second, second: first}
    return lambda body: _each(
        body,
        lambda d: (
            (dataclasses.replace(d, verb=names[d.verb]),) if d.ring == ring and d.verb in names else (d,)
        ),
    )


def _rows(edit: Callable[[int, tuple[WaitSync, ...]], tuple[WaitSync, ...]], op: str, layer: int) -> Change:
    def change(p: SyncProgram) -> SyncProgram:
        rows = tuple(
            dataclasses.replace(r, waits=edit(i, r.waits)) if (r.op, r.layer) == (op, layer) else r
            for i, r in enumerate(p.rows)
        )
        assert rows != p.rows, "the edit changes nothing"
        return dataclasses.replace(p, rows=rows)

    return change


def _turn(op: str, layer: int, by: int) -> Change:
    """An op polls the words of another turn."""

    def change(p: SyncProgram) -> SyncProgram:
        rows = tuple(
            dataclasses.replace(r, polled=r.polled + by) if (r.op, r.layer) == (op, layer) else r
            for r in p.rows
        )
        assert rows != p.rows, "the edit changes nothing"
        return dataclasses.replace(p, rows=rows)

    return change


def _nothing_waits(p: SyncProgram) -> SyncProgram:
    """No op waits for a counter: words order nothing but themselves."""
    return dataclasses.replace(p, rows=tuple(dataclasses.replace(r, waits=()) for r in p.rows))


def _later(_: int, waits: tuple[WaitSync, ...]) -> tuple[WaitSync, ...]:
    return (dataclasses.replace(waits[0], ordinal=waits[0].ordinal + 1), *waits[1:])


def _swapped_rows(p: SyncProgram) -> SyncProgram:
    rows = list(p.rows)
    at = next(i for i, r in enumerate(rows) if r.op.startswith("Attention"))
    rows[at - 1], rows[at] = rows[at], rows[at - 1]
    return dataclasses.replace(p, rows=tuple(rows))


def _shared_counter(p: SyncProgram) -> SyncProgram:
    """Two ops signal one counter: each stands in for the other."""
    old, new = p.op("GateUp").counter, p.op("MlpReduce").counter
    rows = tuple(
        dataclasses.replace(
            r, waits=tuple(dataclasses.replace(w, counter=new) if w.counter == old else w for w in r.waits)
        )
        for r in p.rows
    )
    return with_op(dataclasses.replace(p, rows=rows), "GateUp", counter=new)


def no_previous(p: SyncProgram) -> SyncProgram:
    """Keys of earlier steps are fetched without waiting for those steps."""
    for op in p.ops:
        if op.kind == "attention" and "window" in op.shape:
            p = _script(op.name, "activations", _drop("previous"))(p)
    return p


def nobody_idles(p: SyncProgram) -> SyncProgram:
    """CTAs without tasks of an op signal it without waiting for anything."""
    for op in p.ops:
        scripts = []
        for s in op.scripts:
            body = _drop("idle")(s.body)
            if s.role == "store" and s.body[:1] == (Do("inputs"),):
                body = (Loop("any", (Do("inputs"),)), *s.body[1:])
            scripts.append(Script(s.role, body))
        p = with_op(p, op.name, scripts=tuple(scripts))
    return p


def _per_task(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """The chunk loop around the consumers' statements taken away."""
    made: list[Statement] = []
    for s in body:
        if isinstance(s, Loop) and s.over in ("chunks", "pieces"):
            made.extend(s.body)
        elif isinstance(s, Loop):
            made.append(Loop(s.over, _per_task(s.body)))
        else:
            made.append(s)
    return tuple(made)


MUSEUM = (
    Exhibit(
        "attention does not wait for qkv",
        _rows(lambda i, w: (), "AttentionGlobal", 0),
        "race",
        ("`queries`",),
    ),
    Exhibit(
        "the down projection overtakes its input", _rows(lambda i, w: (), "Down", 0), "race", ("`hidden`",)
    ),
    Exhibit(
        "reduce does not poll the projection's words",
        _script("AttnReduce", "store", _drop("poll")),
        "wait",
        ("`o_proj_words`", "poisoned by AttnReduce"),
    ),
    Exhibit(
        "taken words stay there",
        _script("AttnReduce", "store", _drop("poison")),
        "wait",
        ("`o_proj_words`", "poisoned by nobody"),
    ),
    Exhibit("words of the turn before are polled", _turn("AttnReduce", 1, -1), "wait", ("turn 0", "turn 1")),
    Exhibit("words of the next turn are polled", _turn("AttnReduce", 1, 1), "wait", ("turn 2", "turn 1")),
    Exhibit(
        "nobody pushes the words that are polled",
        _script("OProj", "store", _drop("push")),
        "wait",
        ("polls turn 0 of `o_proj_words`",),
    ),
    Exhibit(
        "words are pushed again before those of the turn before are taken",
        _nothing_waits,
        "race",
        ("`o_proj_words[",),
    ),
    Exhibit(
        "a wait for all CTAs but one",
        _rows(lambda i, w: (dataclasses.replace(w[0], arrivals=2), *w[1:]), "AttentionGlobal", 0),
        "race",
        ("`queries`",),
    ),
    Exhibit(
        "a wait for an instance that comes later", _rows(_later, "AttentionGlobal", 0), "wait", ("instance",)
    ),
    Exhibit("attention before its projection", _swapped_rows, "wait", ("have started",)),
    Exhibit(
        "a counter that nothing signals",
        _script("GateUp", "store", _drop("signal")),
        "deadlock",
        ("signals of `GateUp`",),
    ),
    Exhibit("two ops on one counter", _shared_counter, "counter", ("`GateUp`", "`MlpReduce`")),
    Exhibit("idle CTAs signal at once", nobody_idles, "race", ("`x`",)),
    Exhibit("a release at CTA scope", lambda p: with_op(p, "GateUp", scope="cta"), "race", ("`hidden`",)),
    Exhibit(
        "too many arrivals asked for", _ring("weights", empty_count=5), "arrivals", ("5 arrivals", "4 warps")
    ),
    Exhibit(
        "too few arrivals asked for", _ring("exchange", full_count=3), "arrivals", ("3 arrivals", "makes 4")
    ),
    Exhibit(
        "a stage given back before it is read",
        _script("GateUp", "consumer", _swap("use", "release", "weights")),
        "ring",
        ("`use weights` stands outside",),
    ),
    Exhibit(
        "a stage never given back",
        _script("GateUp", "consumer", _drop("release", "weights")),
        "ring",
        ("release never",),
    ),
    Exhibit(
        "a stage that is not waited for",
        _script("GateUp", "consumer", _drop("take", "weights")),
        "ring",
        ("take never",),
    ),
    Exhibit(
        "a slot filled without asking",
        _script("GateUp", "loader", _drop("acquire", "weights")),
        "ring",
        ("acquire never",),
    ),
    Exhibit(
        "a slot filled and not handed over",
        _script("GateUp", "loader", _drop("commit", "weights")),
        "ring",
        ("commit never",),
    ),
    Exhibit(
        "one stage per task, filled per chunk",
        _script("GateUp", "consumer", _per_task),
        "ring",
        ("per pieces",),
    ),
    Exhibit(
        "one role keeps the routing",
        _script("ExpertsDown", "loader", _drop("release", "routing")),
        "deadlock",
        ("routing",),
    ),
    Exhibit(
        "the list is read before it is written",
        _script("Route", "consumer", _drop("take", "routing")),
        "race",
        ("`routing`",),
    ),
    Exhibit(
        "the list is made before all rows are selected",
        _both("Route", ("activations", "consumer"), _drop_bar("selecting")),
        "race",
        ("`routing`", "warp:selected"),
    ),
    Exhibit(
        "one role does not come to a named barrier",
        _script("Route", "consumer", _drop_bar("selecting")),
        "arrivals",
        ("`selecting`", "2 come"),
    ),
    Exhibit(
        "maxima are read before every warp has left its own",
        _script("AttentionWindow8", "consumer", _drop_bar("consumers")),
        "race",
        ("`exchange`", "warp:maxima"),
    ),
    Exhibit(
        "new keys are fetched with the old ones",
        _script("AttentionWindow8", "activations", _late_inputs),
        "race",
        ("`kv",),
    ),
    Exhibit(
        "the queries' slot is not passed over",
        _script("AttentionWindow8", "consumer", _drop("skip", "activations")),
        "ring",
        ("alike on both sides",),
    ),
    Exhibit(
        "the stop flag is read before the step has ended",
        lambda p: dataclasses.replace(
            p, begin=tuple(Script(s.role, _drop("ended")(s.body)) for s in p.begin)
        ),
        "race",
        ("`stop`",),
    ),
)
