"""The checker: good programs pass, bad ones (the museum in tests/races) are refused with their diagnosis."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.passes.helpers import Net, tiny
from tests.passes.helpers import lower as lower_net
from tilecc.check import check
from tilecc.check.budgets import budgets
from tilecc.check.checker import ASSIGNMENTS, first_violation, violations
from tilecc.check.explore import Explorer
from tilecc.check.extents import Values
from tilecc.check.lower import lower
from tilecc.check.sync import Do, Script, SyncProgram, with_op
from tilecc.ir.program import Program
from tilecc.target import find_target

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "mimo_tiny" / "20-program.txt"


@cache
def small() -> Program:
    """A net of one dense global layer and one sliding mixture-of-experts layer."""
    return lower_net(Net().graph())[1]


def test_good_programs_pass() -> None:
    for program in (small(), tiny()[1], Program.from_text(GOLDEN.read_text(encoding="utf-8"))):
        assert check(program, find_target("sm_90a")).diagnostics == ()


def test_the_synchronisation_prints_and_parses_back() -> None:
    sync = lower(small())
    assert SyncProgram.from_text(sync.to_text()) == sync


@pytest.mark.parametrize(
    "layers", [((0, "dense"),), ((8, "moe"), (8, "moe")), ((0, "moe"), (8, "dense"), (0, "moe"))]
)
def test_nets_of_other_layers_pass(layers: tuple[tuple[int, str], ...]) -> None:
    program = lower_net(Net(layers=layers).graph())[1]
    assert violations(lower(program)) == []


def test_every_wait_of_a_program_is_needed_and_its_loss_is_found() -> None:
    """`edges` drops what is implied, so the loss of any wait that is left must be a race or a lap."""
    sync = lower(small())
    accepted = []
    for i, row in enumerate(sync.rows):
        for k in range(len(row.waits)):
            rows = list(sync.rows)
            rows[i] = dataclasses.replace(row, waits=row.waits[:k] + row.waits[k + 1 :])
            mutant = dataclasses.replace(sync, rows=tuple(rows))
            if first_violation(mutant) is None:
                accepted.append((row.op, row.layer, row.waits[k]))
    assert accepted == []


def test_a_wait_for_all_but_one_cta_is_found_for_every_wait() -> None:
    sync = lower(small())
    values = Values(grid=3, tasks=3, chunks=1, experts=1, blocks=1)
    for i, row in enumerate(sync.rows):
        for k, wait in enumerate(row.waits):
            rows = list(sync.rows)
            changed = (*row.waits[:k], dataclasses.replace(wait, arrivals=2), *row.waits[k + 1 :])
            rows[i] = dataclasses.replace(row, waits=changed)
            mutant = dataclasses.replace(sync, rows=tuple(rows))
            assert violations(mutant, (values,)), (row.op, row.layer, wait)


def test_more_waits_and_deeper_rings_are_accepted() -> None:
    sync = lower(small())
    rings = tuple(dataclasses.replace(r, slots=r.slots + (r.name != "routing")) for r in sync.rings)
    assert violations(dataclasses.replace(sync, rings=rings)) == []
    rows = list(sync.rows)
    for i in range(1, len(rows)):
        rows[i] = dataclasses.replace(
            rows[i], waits=tuple(dict.fromkeys((*rows[i - 1].waits, *rows[i].waits)))
        )
    found = [v for v in violations(dataclasses.replace(sync, rows=tuple(rows))) if v.kind != "wait"]
    assert found == []


def test_two_runs_say_the_same_and_what_is_blocked_does_not_depend_on_the_order() -> None:
    sync = lower(small())
    rows = list(sync.rows)
    last = rows[-1]
    rows[-1] = dataclasses.replace(last, waits=(dataclasses.replace(last.waits[0], ordinal=1, arrivals=7),))
    mutant = dataclasses.replace(sync, rows=tuple(rows))
    first, second = (Explorer(mutant, ASSIGNMENTS[1]).run() for _ in range(2))
    assert first == second and [v.kind for v in first] == ["deadlock"]


def test_command(cli: Any, tiny_package: Path, tmp_path: Path) -> None:
    shown = cli("check", tiny_package)
    assert shown.code == 0 and "no deadlock, no race" in shown.out
    assert json.loads(cli("check", tiny_package, "--json").out)["violations"] == []
    text = (tiny_package / "ir" / "20-program.txt").read_text(encoding="utf-8")
    broken = tmp_path / "program.txt"
    start = text.index("waits=[", text.index('OpRowSpec(\n      "Attention'))
    end = text.index("]", start)
    broken.write_text(text[:start] + "waits=[" + text[end:], encoding="utf-8")
    shown = cli("check", broken)
    assert shown.code == 1 and "TC0802" in shown.err and "mimo_v2.py" in shown.err
    found = json.loads(cli("check", broken, "--json").out)["violations"]
    assert found and {d["code"] for d in found} <= {"TC0802", "TC0803"}
    assert cli("check", tmp_path / "none.txt").code == 2


def test_a_script_of_another_protocol_is_refused_with_what_it_names() -> None:
    sync = lower(small())
    op = sync.op("GateUp")
    wrong = (*op.scripts, Script("helper", (Do("take", "wieghts"), Do("read", buffer="nothing"))))
    found = [v.message for v in violations(with_op(sync, "GateUp", scripts=wrong)) if v.kind == "script"]
    assert any("`helper`, which is no role" in m for m in found)
    assert any("`take wieghts` is no statement" in m for m in found)
    assert any("`read nothing` names no buffer" in m for m in found)


def test_budgets_of_a_cta() -> None:
    program = small()
    roles = (*program.roles[:-1], dataclasses.replace(program.roles[-1], warps=40, registers=168))
    rings = (dataclasses.replace(program.rings[0], slots=64), *program.rings[1:])
    found = list(budgets(dataclasses.replace(program, roles=roles, rings=rings), find_target("sm_90a")))
    assert [v.kind for v in found] == ["budget"] * 3
    texts = " ".join(v.message for v in found)
    assert "1408 threads" in texts and "registers" in texts and "232448" in texts
