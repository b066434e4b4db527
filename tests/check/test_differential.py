"""Checker against emulator on mutants of good programs. benchmarks/differential.py runs thousands."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.check import differential
from tests.check.bench import NETS, Bench, Site, build, mutated_package
from tests.check.differential import Table, judge, mutants_of
from tests.check.mutants import KINDS, Mutant, implications
from tests.passes.helpers import Net
from tilecc.check.checker import first_violation

ACCEPTED, REFUSED = range(10), range(2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A dense global layer and a sliding mixture of experts, with every kind of mistake in its text."""
    return build(tmp_path_factory.mktemp("bench"), NETS["diamond"], [kind.text for kind in KINDS])


def sample(bench: Bench, kinds: int, waits: int, harmless: int) -> list[Mutant]:
    """So many kinds of mistakes at a place each, changes of waits, and harmless mutants."""
    rng = random.Random(5)
    every = mutants_of(bench)
    rng.shuffle(every)
    by_kind: dict[int, Mutant] = {}
    for mutant in every:
        if mutant.number > 0 and not mutant.harmless:
            by_kind.setdefault(mutant.number, mutant)
    changed = [m for m in every if m.table is not None and not m.harmless]
    safe = [m for m in every if m.harmless and m.number >= 0]
    return [*list(by_kind.values())[:kinds], *changed[:waits], *safe[:harmless]]


def check_all(table: Table) -> None:
    """Nothing that the emulator found is accepted, nothing harmless is refused."""
    print("\n".join(table.lines()))
    assert [(v.mutant.name, v.found) for v in table.verdicts if v.missed] == []
    assert [(v.mutant.name, v.message) for v in table.verdicts if v.wrong_alarm] == []


def test_sixty_mutants(bench: Bench) -> None:
    table = Table([judge(bench, m, ACCEPTED, REFUSED) for m in sample(bench, 38, 16, 6)])
    check_all(table)
    assert len(table.verdicts) >= 60
    assert sum(v.found is not None for v in table.verdicts) >= 25, "the mutations do something"
    assert any(not v.refused and v.runs == len(ACCEPTED) for v in table.verdicts)


def test_every_harmless_mutant_is_accepted(bench: Bench) -> None:
    """Some of them: implied waits, deeper rings, waits and barriers twice, signals of system scope."""
    harmless = [m for m in mutants_of(bench) if m.harmless][::6]
    assert len(harmless) > 20
    assert [m.name for m in harmless if first_violation(m.change(bench.sync)) is not None] == []


def test_the_emitted_kernel_is_clean(bench: Bench) -> None:
    for seed in range(4):
        assert bench.run(seed).clean


def test_the_campaign_notices_a_checker_that_sleeps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = next(
        m for m in mutants_of(bench) if m.name.startswith("signal lost, QkvGlobal") and "CTA" not in m.name
    )
    assert judge(bench, lost, ACCEPTED, REFUSED).refused == "deadlock"
    monkeypatch.setattr(differential, "first_violation", lambda sync: None)
    with pytest.raises(AssertionError):
        check_all(Table([judge(bench, lost, ACCEPTED, REFUSED)]))


def test_the_stop_flag_is_read_by_warps_without_work(tmp_path: Path) -> None:
    """With more CTAs than tasks nothing orders such a read before the commit of the same step: the flag is an
    atomic word that says which step it is for."""
    net = Net(layers=((0, "dense"),), hidden=32, width=16, vocab=32)
    bench = build(tmp_path, net, [], grid=40)
    steps = [[(token, at, 0)] for at, token in enumerate((3, 5, 7, 9, 1))]
    tokens = bench.launch(0, steps).tokens
    assert tokens is not None
    for seed in range(2):
        stopped = bench.launch(seed, steps, (tokens[3 * 8],))
        assert stopped.clean and stopped.tokens is not None
        assert stopped.tokens[3 * 8] == tokens[3 * 8] and stopped.tokens[4 * 8] == -1


def test_implied_waits_are_implied(bench: Bench) -> None:
    """None of them is one of the waits that `edges` kept for the row."""
    for row, implied in zip(bench.sync.rows, implications(bench.sync), strict=True):
        assert set(implied).isdisjoint(row.waits)


def test_a_site_that_is_not_in_the_text_is_refused(bench: Bench, tmp_path: Path) -> None:
    site = Site("include/op_gemv.cuh", "no such text")
    with pytest.raises(ValueError, match="0 times, not 1"):
        mutated_package(bench.package, tmp_path / "out", [{site: ""}])


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(NETS))
def test_no_harmless_mutant_of_any_net_is_refused(name: str, tmp_path: Path) -> None:
    bench = build(tmp_path, NETS[name], [])
    harmless = [m for m in mutants_of(bench) if m.harmless]
    assert [m.name for m in harmless if first_violation(m.change(bench.sync)) is not None] == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(NETS))
def test_mutants_of_every_net(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    bench = build(tmp_path_factory.mktemp(name), NETS[name], [kind.text for kind in KINDS])
    every = mutants_of(bench)
    random.Random(1).shuffle(every)
    check_all(Table([judge(bench, m, ACCEPTED, REFUSED) for m in every[:840]]))
