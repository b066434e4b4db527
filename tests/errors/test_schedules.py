"""Schedule files that cannot be used, and the command line that is given one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.errors.test_bad_input import MODEL, SMALL, check

HEAD = "from tilecc.schedules import Schedule\n"


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("splits = 2\n", 1, ["no function `schedule`"]),
        ("def schedule():\n    pass\n", 1, ["must take one argument"]),
        ("def schedule(s):\n    s.opp('head', group=1)\n", 2, ["AttributeError", "opp"]),
        ("def schedule(s):\n    s.op('head', group=1\n", 2, ["SyntaxError"]),
        ("import no_such_package\n", 1, ["ModuleNotFoundError"]),
        ("def schedule(s):\n    raise SystemExit(3)\n", 2, ["SystemExit"]),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, cli: Any, text: str, line: int, parts: list[str]) -> None:
    file = tmp_path / "plan.py"
    file.write_text(text)
    done = cli("compile", SMALL, "--target", "sm_90a", "-o", tmp_path / "out", "--schedule", file)
    check(done, "TC0710", f"{file}:{line}", *parts)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing(tmp_path: Path, cli: Any) -> None:
    (tmp_path / "plan.py").write_text(HEAD)
    done = cli("compile", SMALL, "--target", "sm_90a", "--schedule", tmp_path / "plam.py")
    check(done, "TC0710", "does not exist", "did you mean `plan.py`?")


def test_all_mistakes_of_a_file_in_one_report(tmp_path: Path, cli: Any) -> None:
    file = tmp_path / "plan.py"
    file.write_text(
        HEAD
        + "def schedule(s: Schedule) -> None:\n"
        + "    s.op('head', grup=2)\n"
        + "    s.op('head', group=3)\n"
        + "    s.op('qkv', group=1)\n"
        + "    s.op('qkv', group=2)\n"
    )
    done = cli("compile", MODEL, "--target", "sm_90a", "-o", tmp_path / "out", "--schedule", file)
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err
    for part in ("error[TC0711]", f"{file}:3", "did you mean `group`?", "error[TC0713]", f"{file}:4",
                 "legal here:", "error[TC0712]", f"{file}:6", f"{file}:5"):  # fmt: skip
        assert part in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_a_schedule_of_the_command_line(tmp_path: Path, cli: Any) -> None:
    file = tmp_path / "plan.py"
    file.write_text(
        HEAD + "def schedule(s: Schedule) -> None:\n    s.op('down', splits=2, why='two halves')\n"
    )
    args = ("compile", MODEL, "--target", "sm_90a", "--to", "tiles", "--schedule", file)
    done = cli(*args)
    assert done.code == 0 and '"splits": 2' in done.out
