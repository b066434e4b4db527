"""Every code has a page, is raised somewhere, and has a test that triggers it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tilecc.diag import CATALOGUE, explain

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"\bTC0[0-9]{3}\b")
HERE = {"test_catalogue.py", "test_render.py"}
"""Tests that name codes without triggering them."""

EXIT_CODES = {1, 2, 3, 4, 5, 70}


def python_files(*folders: str) -> list[Path]:
    walks = [os.walk(ROOT / folder) for folder in folders]
    return [
        Path(d) / name for walk in walks for d, _, names in walk for name in names if name.endswith(".py")
    ]


def strings_with_codes(files: list[Path]) -> set[str]:
    """Codes that stand alone in a string literal, as in `error("TC0302", ...)`; prose does not count."""
    return {
        code for file in files for code in re.findall(r'"(TC0[0-9]{3})"', file.read_text(encoding="utf-8"))
    }


SOURCES = [
    f for f in python_files("tilecc", "runtime", "models", "schedules") if not f.name.startswith("codes_")
]
EMULATOR = sorted((ROOT / "templates" / "emulator").glob("*.cpp"))
"""The emulator raises its codes in C++."""

RAISED = strings_with_codes(SOURCES) | {
    code for file in EMULATOR for code in re.findall(r"\bTC09[0-9]{2}\b", file.read_text(encoding="utf-8"))
}
TESTED = strings_with_codes([f for f in python_files("tests") if f.name not in HERE])


@pytest.mark.parametrize("code", CATALOGUE)
def test_page(code: str, cli: Any) -> None:
    entry = CATALOGUE[code]
    assert entry.title and entry.title[0].islower() | entry.title.startswith(("C++", "IR", "KV", "MMA"))
    assert not entry.title.endswith(".")
    assert len(entry.explanation.split()) >= 10 and max(map(len, entry.explanation.splitlines())) <= 110
    assert entry.wrong.strip() and entry.right.strip() and entry.wrong != entry.right
    assert entry.exit_code in EXIT_CODES
    shown = cli("explain", code.lower())
    assert shown.code == 0 and shown.out == explain(code)
    for part in (
        code,
        entry.title,
        entry.explanation.strip(),
        "Wrong:",
        "Right:",
        f"Exit code: {entry.exit_code}",
    ):
        assert part in shown.out


def test_every_code_is_raised() -> None:
    assert sorted(set(CATALOGUE) - RAISED) == []


def test_every_raised_code_has_an_entry() -> None:
    assert sorted(RAISED - set(CATALOGUE)) == []


def test_every_code_has_a_test() -> None:
    assert sorted(set(CATALOGUE) - TESTED) == []
