"""IR text broken by hand: every edit is read and compiled on, or refused with places in the file; nothing
else is ever raised."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.passes.helpers import Net, context, lower
from tilecc.check import check
from tilecc.diag import CATALOGUE, TileccError
from tilecc.ir.graph import Graph
from tilecc.ir.program import Program
from tilecc.ir.read import read_ir, reading
from tilecc.ir.tile import TileGraph
from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import TILE_PASS_NAMES, lower_to_tiles, run_pass
from tilecc.target import find_target

VALUE = re.compile(r'"[^"\n]*"|-?\b\d+(?:\.\d+)?(?:e-?\d+)?')
WORD = re.compile(r"\b[A-Za-z_]+\b")
NUMBERS = ("0", "-1", "1", "2", "3", "16", "128", "1000000007")
BIG = ("99999999999999999999", "1e400", "nan", "-0.5", "True", "None", "[]", "{}", '["a"]', "9" * 5000)
WORDS = ('"x"', '"layers.9.qkv"', '""', "Value", 'Loc("m.py", 3)', "Space.CTA", "inf")


@functools.cache
def texts() -> dict[str, str]:
    """The three levels of a small model, and a TileGraph that is not finished."""
    graph = Net().graph()
    ctx = context()
    half = lower_to_tiles(graph, ctx, until="tile")
    tiles = lower_to_tiles(graph, context())
    _, program = lower(graph)
    return {
        "graph": graph.to_text(),
        "half": half.to_text(),
        "tiles": tiles.to_text(),
        "program": program.to_text(),
    }


@st.composite
def edited(draw: st.DrawFn) -> str:
    """Text of one level with one to three random edits, most of which leave it well-formed."""
    text = texts()[draw(st.sampled_from(sorted(texts())))]
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        text = edit(draw, text)
    return text


def edit(draw: st.DrawFn, text: str) -> str:
    kind = draw(st.sampled_from(("value",) * 10 + ("drop", "twice", "move", "swap", "cut", "noise", "word")))
    if kind in ("value", "word"):
        return replaced(draw, text, VALUE if kind == "value" else WORD)
    if kind == "noise":
        at = draw(st.integers(0, len(text)))
        noise = draw(st.text(alphabet="()[]{},:=\"'\\#\n \t\x00é0aA.-", min_size=1, max_size=3))
        return text[:at] + noise + text[at + draw(st.integers(0, 3)) :]
    if kind == "cut":
        return text[: draw(st.integers(0, len(text)))]
    lines = text.split("\n")
    a, b = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if kind == "drop":
        del lines[a]
    elif kind == "twice":
        lines.insert(b, lines[a])
    elif kind == "move":
        lines.insert(b, lines.pop(a))
    else:
        lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def replaced(draw: st.DrawFn, text: str, pattern: re.Pattern[str]) -> str:
    """One string, number or word exchanged for another one, now and then of another kind."""
    found = list(pattern.finditer(text))
    if not found:
        return text
    at = found[draw(st.integers(0, len(found) - 1))]
    if at[0].startswith('"'):
        others = [m[0] for m in found if m[0].startswith('"')]
        near = st.sampled_from(others)
    elif at[0][-1].isdigit():
        near = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 300).map(str))
    else:
        near = st.sampled_from([m[0] for m in found])
    new = draw(st.one_of(near, near, near, st.sampled_from((*WORDS, *NUMBERS, *BIG))))
    return text[: at.start()] + new + text[at.end() :]


def survive(text: str, file: Path) -> str:
    """Read the text and do with it what the command line would; how it ended. Fails for any exception but the
    user's, and for a diagnostic without a page or a place."""
    file.write_text(text, encoding="utf-8")
    try:
        ir = read_ir(file)
        with reading(file, text, "a pass"):
            if isinstance(ir, Graph):
                ir = lower_to_tiles(ir, context())
            if isinstance(ir, TileGraph):
                ctx = PassContext(find_target(ir.target), ir.max_context, ir.max_seqs, ir.ranks)
                ir = lower_to_tiles(ir, ctx) if ir.passes != TILE_PASS_NAMES else ir
                made = run_pass("program", ir, ctx)
                assert isinstance(made, Program)
                ir = made
            assert isinstance(ir, Program)
            check(ir, find_target(ir.target))
        return "done"
    except TileccError as refused:
        for found in refused.diagnostics:
            assert found.code in CATALOGUE
            assert found.code == "TC0701" or (found.span is not None and found.span.file == str(file)), found
            assert found.span is None or 1 <= found.span.line <= text.count("\n") + 2, found
        return refused.diagnostics[0].code


@settings(max_examples=80, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(text=edited())
def test_edited_text(text: str, tmp_path: Path) -> None:
    survive(text, tmp_path / "edited.txt")


@pytest.mark.nightly
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=edited())
def test_much_edited_text(text: str, tmp_path: Path) -> None:
    survive(text, tmp_path / "edited.txt")


def test_the_fuzzer_reaches_everything(tmp_path: Path) -> None:
    """Untouched text of every level goes through; the edits are not all refused by the parser."""
    assert [survive(text, tmp_path / "ir.txt") for text in texts().values()] == ["done"] * 4
    broken = texts()["program"].replace('"matrix": "embed"', '"matrix": "nothing"')
    assert survive(broken, tmp_path / "ir.txt") == "TC0212"
