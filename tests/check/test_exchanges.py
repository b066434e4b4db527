"""Programs of several ranks: pushed words, their slots, and what orders them."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

from tests.passes.helpers import context
from tests.passes.test_ranks import RANKS, tiles
from tilecc.check import check
from tilecc.check.checker import first_violation, violations
from tilecc.check.exchange import Exchanges
from tilecc.check.lower import lower
from tilecc.check.sync import Do, Loop, Script, Statement, SyncProgram, with_op
from tilecc.ir.program import Program
from tilecc.passes.pipeline import PROGRAM
from tilecc.target import find_target


@cache
def program() -> Program:
    """One of four ranks of a small net."""
    return PROGRAM(tiles(), dataclasses.replace(context(), ranks=RANKS))


def without(sync: SyncProgram, op: str, verb: str) -> SyncProgram:
    def drop(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
        made: list[Statement] = []
        for s in body:
            if isinstance(s, Loop):
                made.append(Loop(s.over, drop(s.body)))
            elif s.verb != verb:
                made.append(s)
        return tuple(made)

    scripts = tuple(Script(s.role, drop(s.body)) for s in sync.op(op).scripts)
    assert scripts != sync.op(op).scripts
    return with_op(sync, op, scripts=scripts)


def test_one_rank_of_several_passes() -> None:
    report = check(program(), find_target("sm_90a"))
    assert report.diagnostics == ()
    assert all(values.ranks == 2 for values in report.assignments)


def test_a_poll_reads_the_last_push_before_it() -> None:
    sync = lower(program())
    exchanges = Exchanges(sync)
    polled = [i for i, row in enumerate(sync.rows) if sync.op(row.op).kind == "reduce"]
    sources = [exchanges.source("peer_terms", i)[0].kind for i in polled]
    assert sources == ["project", "project", "project", "experts_down"]
    assert exchanges.per_step == {"peer_terms": 4, "peer_argmax": 1}
    assert exchanges.number("peer_terms", 2, polled[1]) == 9


@pytest.mark.parametrize(("polls", "pushes"), [(1, 1), (2, 5), (5, 2), (3, 3), (2, 0)])
def test_every_pushed_word_is_read_by_some_task(polls: int, pushes: int) -> None:
    read = [part for task in range(polls) for part in Exchanges.parts(task, polls, pushes)]
    assert set(read) == set(range(pushes))


def test_a_slot_that_may_not_have_been_read_is_not_pushed_into() -> None:
    sync = lower(program())
    buffers = tuple(dataclasses.replace(b, slots=min(b.slots, 1)) for b in sync.buffers)
    found = violations(dataclasses.replace(sync, buffers=buffers))
    assert {v.kind for v in found} == {"race"}
    assert any("may still hold what `OProj`" in v.message for v in found)


@pytest.mark.parametrize(
    ("op", "verb", "kind", "words"),
    [
        ("OProj", "send", "wait", "`AttnReduce` waits for words of `peer_terms` that no op before it pushes"),
        ("ArgmaxPush", "send", "wait", "`Commit` waits for words of `peer_argmax`"),
        ("AttnReduce", "receive", "wait", "before what `OProj` pushed is read"),
        ("ArgmaxPush", "inputs", "race", "`argmax`"),
    ],
)
def test_a_broken_exchange_is_refused(op: str, verb: str, kind: str, words: str) -> None:
    found = violations(without(lower(program()), op, verb))
    texts = [" ".join((v.message, *v.notes)) for v in found if v.kind == kind]
    assert any(words in text for text in texts), found


def test_a_rank_does_not_wait_for_the_counters_of_another() -> None:
    """The loss of a counter's wait is found on each rank by itself."""
    sync = lower(program())
    rows = list(sync.rows)
    at = next(i for i, row in enumerate(rows) if row.op.startswith("Attention"))
    rows[at] = dataclasses.replace(rows[at], waits=())
    found = first_violation(dataclasses.replace(sync, rows=tuple(rows)))
    assert found is not None and found.kind == "race"


def test_the_synchronisation_of_ranks_prints_and_parses_back() -> None:
    sync = lower(program())
    assert SyncProgram.from_text(sync.to_text()) == sync
    assert Do("receive", buffer="peer_terms") in [
        d
        for op in sync.ops
        for s in op.scripts
        for loop in s.body
        if isinstance(loop, Loop)
        for d in loop.body
    ]
