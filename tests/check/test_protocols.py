"""The checker's protocols are those that the kernel runs: calls of every primitive, per op and role, as the
emulator counts them.

The emulator counts per role. What one row of the step adds is the difference between a launch that ends
after it and one that ends before it: rows behind are made absent in the op table.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.check.bench import table_rows
from tests.mutations.inject import ROW_WORDS
from tilecc.check.calls import EXACT, TOUCHES, calls
from tilecc.check.extents import Launch
from tilecc.check.lower import lower
from tilecc.check.sync import Do, Loop, SyncProgram, with_op
from tilecc.ir.program import Program
from tilecc.runtime.devices.emulator import EmulatorDevice
from tilecc.runtime.engine import Engine

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny"
PRIMED = 4  # word of `State` in the same file
FLAG_POISON = 0x7FA57FA5

Counts = dict[str, dict[str, int]]


@dataclass
class Measured:
    """An engine of `mimo_tiny`, its Program, and what the emulator counted."""

    engine: Engine
    program: Program
    sync: SyncProgram

    def until(self, count: int, rows: list[tuple[int, int, int]]) -> Counts:
        """Counts per role of a launch whose step is the first `count` rows of the program."""
        device, session = self.engine.device, self.engine.session
        assert isinstance(device, EmulatorDevice)
        table = session.tables.handle.view(np.uint32).reshape(-1, ROW_WORDS)
        before = table.copy()
        table[table_rows(self.program)[count:], 0] = 0
        primed(self.engine, self.program)
        device.configure(seed=0)
        try:
            session.run([rows])
        finally:
            table[:] = before
        found = {role: dict(counts) for role, counts in device.stats.roles.items()}
        for role in self.sync.roles:
            # A warp's role is known from its first wait on; before the step every warp passes one barrier.
            found.setdefault(role.name, {"barrier": role.warps * device.grid})
        return found

    def launch(self, rows: list[tuple[int, int, int]]) -> Launch:
        """The extents of a step of these rows, with the experts that the kernel chooses."""
        self.until(len(self.program.rows), rows)
        route = next(op for op in self.program.classes if op.kind == "route")
        chosen = self.engine.session.region("routes").reshape(
            self.program.layers, 8, int(route.constants["k"])
        )
        experts = {n: tuple(sorted(set(chosen[n, : len(rows)].ravel().tolist()))) for n in range(len(chosen))}
        assert isinstance(self.engine.device, EmulatorDevice)
        return Launch(self.engine.device.grid, tuple((p, s) for _, p, s in rows), experts)


def primed(engine: Engine, program: Program) -> None:
    """A session as it is after its first launch, which fills words that are flags with poison."""
    engine.session.reset()
    whole = engine.session.workspace.handle
    for region in program.workspace:
        if region.init == "poison":
            whole[region.offset : region.offset + region.nbytes].view(np.uint32)[:] = FLAG_POISON
    whole[program.region("state").offset :].view(np.uint32)[PRIMED] = 1


@pytest.fixture(scope="module", params=[2, 5])
def measured(request: pytest.FixtureRequest, tiny_package: Path) -> Iterator[Measured]:
    program = Program.from_text((tiny_package / "ir" / "20-program.txt").read_text(encoding="utf-8"))
    with Engine.open(tiny_package, CHECKPOINT, grid=request.param) as engine:
        yield Measured(engine, program, lower(program))


def first_rows(program: Program) -> list[int]:
    """The first row of every op class."""
    names = [row.op for row in program.rows]
    return sorted(names.index(op.name) for op in program.classes)


def compare(expected: dict[str, Counter[str]], before: Counts, after: Counts) -> list[str]:
    """How the calls of one row differ from its protocol."""
    wrong = []
    for role, want in expected.items():
        got = {name: after[role].get(name, 0) - before[role].get(name, 0) for name in (*EXACT, *TOUCHES)}
        for name in EXACT:
            if got[name] != want[name]:
                wrong.append(f"{role}: {name} {got[name]}, the protocol says {want[name]}")
        for name in ("bulk_load", "lds", "sts", "stg", "word_push", "word_poll"):
            if bool(got[name]) != bool(want[name]):
                wrong.append(f"{role}: {name} {got[name]}, the protocol says {want[name]}")
        if want["ldg"] and not got["ldg"]:  # weights and tables are read without a statement
            wrong.append(f"{role}: the protocol reads global memory, the kernel does not")
    return wrong


STEPS = {
    "long": [(300 + i, 100 + i, 0) for i in range(5)],
    "short": [(40 + 7 * i, i, 0) for i in range(8)],
}


@pytest.mark.parametrize("name", STEPS)
def test_calls_of_every_op_and_role(measured: Measured, name: str) -> None:
    rows = STEPS[name]
    launch = measured.launch(rows)
    wrong: list[str] = []
    counted: dict[int, Counts] = {}
    for index in first_rows(measured.program):
        for end in (index, index + 1):
            if end not in counted:
                counted[end] = measured.until(end, rows)
        row = measured.program.rows[index]
        expected = calls(measured.sync, launch, index)
        wrong += [f"`{row.op}`, {text}" for text in compare(expected, counted[index], counted[index + 1])]
    assert not wrong, "\n".join(wrong)


def _without(sync: SyncProgram, op: str, role: str, verb: str) -> SyncProgram:
    def drop(body: tuple[Do | Loop, ...]) -> tuple[Do | Loop, ...]:
        kept = (dataclasses.replace(s, body=drop(s.body)) if isinstance(s, Loop) else s for s in body)
        return tuple(s for s in kept if not (isinstance(s, Do) and s.verb == verb))

    scripts = (
        dataclasses.replace(s, body=drop(s.body)) if s.role == role else s for s in sync.op(op).scripts
    )
    return with_op(sync, op, scripts=tuple(scripts))


def test_a_protocol_that_has_drifted_is_noticed(measured: Measured) -> None:
    rows = STEPS["long"]
    launch = measured.launch(rows)
    (name,) = (
        op.name for op in measured.program.classes if op.kind == "attention" and op.constants["window"]
    )
    index = [row.op for row in measured.program.rows].index(name)
    counted = [measured.until(end, rows) for end in (index, index + 1)]
    assert compare(calls(measured.sync, launch, index), *counted) == []
    for role, verb, primitive in (
        ("consumer", "sync", "barrier"), ("consumer", "release", "mbar_arrive"),
        ("consumer", "put", "sts"), ("consumer", "write", "stg"), ("activations", "previous", "counter_wait"),
        ("activations", "acquire", "mbar_wait"), ("store", "signal", "counter_signal"),
    ):  # fmt: skip
        drifted = _without(measured.sync, name, role, verb)
        wrong = compare(calls(drifted, launch, index), *counted)
        assert any(text.startswith(f"{role}: {primitive} ") for text in wrong), (role, verb, wrong)


def test_stop_ids_make_every_warp_wait_for_the_commit(measured: Measured) -> None:
    device, session, found = measured.engine.device, measured.engine.session, []
    assert isinstance(device, EmulatorDevice)
    for stop in ((), (1,)):
        session.reset()
        device.configure(seed=0)
        session.run([[(300, 0, 0)], [(301, 1, 0)]], stop_ids=stop)
        found.append({role: counts["counter_wait"] for role, counts in device.stats.roles.items()})
    for role in measured.sync.roles:
        begin = next(s.body for s in measured.sync.begin if s.role == role.name)
        assert [do.verb for s in begin if isinstance(s, Loop) for do in s.body if isinstance(do, Do)] == [
            "ended", "read",
        ]  # fmt: skip
        more = found[1].get(role.name, 0) - found[0].get(role.name, 0)
        assert more == role.warps * device.grid, role
