"""Every bug class, injected into the emitted kernel, is reported with its class and place in every seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations import campaign
from tests.mutations.conftest import ALL, Mutants, adversary
from tests.mutations.inject import Expected, Mutation, Site, combined
from tests.mutations.table import FURTHER, GENUINE, HARMLESS, PARITY, WORDS

ROOT = Path(__file__).resolve().parents[2]

SEEDS = range(2)
"""In every test run; the campaign of the nightly run takes ten."""


def check_reported(mutants: Mutants, name: str, seeds: range) -> None:
    mutation = ALL[name]
    runs = mutants.campaign(name, adversary(seeds, mutation.max_findings)).runs
    caught: dict[str, int] = {}
    missed = []
    for run in runs:
        found = [f for f in run.findings if any(mutants.matches(f, e) for e in mutation.expected)]
        if found:
            caught[found[0].code] = caught.get(found[0].code, 0) + 1
        else:
            missed.append((run.setting, run.findings))
    print(f"class {mutation.bug}, {name}: {caught} of {len(seeds)} seeds")
    assert not missed, missed[:2]


def test_the_table_has_every_class_once() -> None:
    assert [m.bug for m in GENUINE.values()] == list(range(1, 25))
    assert all(m.expected for m in (GENUINE | FURTHER | WORDS).values())
    assert [e.code for e in GENUINE["whole warp loads without syncwarp"].expected] == [PARITY]


@pytest.mark.parametrize("name", [*GENUINE, *FURTHER, *WORDS])
def test_mutation_is_reported_in_every_seed(mutants: Mutants, name: str) -> None:
    check_reported(mutants, name, SEEDS)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*GENUINE, *FURTHER, *WORDS])
def test_mutation_is_reported_in_a_hundred_seeds(mutants: Mutants, name: str) -> None:
    check_reported(mutants, name, range(100, 200))


def check_silent(mutants: Mutants, name: str, seeds: range) -> None:
    found = mutants.campaign(name, adversary(seeds))
    assert found.ok, found.groups
    assert list(found.answers) == [mutants.answer]


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_edit_is_not_reported(mutants: Mutants, name: str) -> None:
    check_silent(mutants, name, range(1))


@pytest.mark.nightly
def test_the_campaign(tiny_package: Path) -> None:
    """Ten seeds of every bug and of every harmless edit, 200 clean ones: the table goes to build/."""
    rows = campaign.run(tiny_package, seeds=10, clean_runs=200)
    campaign.write(ROOT / "build" / "mutations.md", rows)
    assert {row.bug for row in rows if row.seeds == 10} >= set(range(1, 25))
    assert sum(row.seeds for row in rows if row.name.startswith("text as emitted")) >= 200
    assert not [row for row in rows if not row.ok]


def test_the_checks_can_fail(mutants: Mutants) -> None:
    """The emitted text is not reported as a mutant, nor a mutant as harmless."""
    with pytest.raises(AssertionError):
        check_silent(mutants, "relaxed signal", range(1))
    with pytest.raises(AssertionError):
        check_reported(mutants, "second syncwarp", range(1))
    run = mutants.campaign("relaxed signal", adversary(range(1))).runs[0]
    assert not any(mutants.matches(f, Expected("TC0901", "", "")) for f in run.findings)
    assert not any(
        mutants.matches(f, Expected("TC0912", "include/op_gemv.cuh", "no such")) for f in run.findings
    )


def test_a_site_that_is_not_in_the_text_is_refused(
    mutants: Mutants, tmp_path_factory: pytest.TempPathFactory
) -> None:
    head = (mutants.package / "include" / "op_vector.cuh").read_text().splitlines()[:2]
    for sites, message in (
        ([Site("include/op_gemv.cuh", "no such text")], "0 times, not 1"),
        ([Site("include/op_gemv.cuh", "tk::syncwarp();")], "times, not 1"),
        (
            [
                Site("include/op_vector.cuh", head[0]),
                Site("include/op_vector.cuh", "\n".join(head)),
            ],
            "overlap",
        ),
    ):
        out = tmp_path_factory.mktemp("refused") / "package"
        with pytest.raises(ValueError, match=message):
            combined(mutants.package, out, [Mutation({site: "" for site in sites})])
