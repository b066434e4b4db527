"""The documents agree with the program: links resolve, commands and options exist, lists are whole."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tilecc.diag import CATALOGUE
from tilecc.ir.graph_ops import GRAPH_OPS
from tilecc.passes.pipeline import PASSES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:tilecc|runtime|models|templates|schedules|tests|docs)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    for code in re.findall(r"\bTC0\d{3}\b", text):
        assert code in CATALOGUE


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page: Path, cli: Any) -> None:
    """Each `tilecc ...` line names a command and options that its help knows."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^ {4}tilecc (.+)$", text, re.M) + re.findall(r"`tilecc (\w[^`]*)`", text)
    for line in lines:
        words = shlex.split(line.split(" #")[0])
        shown = cli(words[0].rstrip(","), "--help")
        assert shown.code == 0, line
        for option in (w for w in words[1:] if w.startswith("-")):
            assert option in shown.out, line


def test_model_page_lists_every_op() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = text[text.index("| op |") :]
    assert set(GRAPH_OPS) == set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.M))))


def test_architecture_page_lists_every_pass_in_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| `tilecc/passes/\w+\.py`", text, re.M)
    assert rows == [p.__name__ for p in PASSES]


def test_picture_is_well_formed() -> None:
    root = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    assert root.tag.endswith("svg") and root.get("viewBox")


def test_clang_format_file_is_the_emitter_s_style() -> None:
    from tilecc.emit.format import style_text

    assert (ROOT / ".clang-format").read_text() == style_text()
