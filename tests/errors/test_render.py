"""The text and JSON forms of diagnostics."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest

from tilecc.diag import (
    Diagnostic,
    InternalError,
    Span,
    TileccError,
    error,
    exit_code_of,
    render,
    render_all,
    to_json,
)
from tilecc.diag.render import wants_color

EXPECTED = """\
error[TC0105]: op `fft` cannot be lowered
 --> {file}:2:9
  |
2 |     y = torch.fft.rfft(x)
  |         ^^^^^^^^^^^^^^ used here
 --> other.py   (traced here)
  = note: first fact
  = note: second fact
  = help: use `linear`
  = see:  tilecc explain TC0105"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "model.py"
    file.write_text("def f(x):\n    y = torch.fft.rfft(x)\n")
    return file


def test_text_points_at_the_source(source: Path) -> None:
    found = error(
        "TC0105",
        "op `fft` cannot be lowered",
        span=Span(str(source), 2, 9, "used here"),
        note=["first fact", "", "second fact"],
        help="use `linear`",
        secondary=[Span("other.py", label="traced here")],
    ).diagnostics[0]
    assert render(found) == EXPECTED.format(file=source)
    painted = render(found, color=True)
    assert "\x1b[" in painted and painted != render(found)


def test_json_has_the_same_fields(source: Path) -> None:
    found = Diagnostic("TC0105", "message", Span("a.py", 3, 1, "x"), ("n",), ("h",), (Span("b.py", 4),))
    assert to_json(found) == {
        "code": "TC0105",
        "severity": "error",
        "message": "message",
        "spans": [
            {"file": "a.py", "line": 3, "col": 1, "label": "x", "primary": True},
            {"file": "b.py", "line": 4, "col": 0, "label": "", "primary": False},
        ],
        "notes": ["n"],
        "help": ["h"],
    }


def test_findings_are_sorted_counted_and_cut() -> None:
    found = [Diagnostic("TC0302", f"no tensor {i}", Span("a.safetensors", 25 - i)) for i in range(25)]
    text = render_all(found)
    assert text.index("no tensor 24") < text.index("no tensor 5")
    assert "no tensor 4\n" not in text and "... and 5 more" in text and text.endswith("25 errors\n")
    assert "no tensor 4\n" in render_all(found, show_all=True)
    assert "1 error, 1 warning" in render_all([found[0], Diagnostic("TC0302", "w", severity="warning")])


def test_a_source_that_is_gone_still_renders() -> None:
    assert "--> gone.py:7" in render(Diagnostic("TC0101", "m", Span("gone.py", 7)))


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [
        (["TC0302"], 1),
        (["TC0701"], 2),
        (["TC0302", "TC0501"], 3),
        (["TC0402", "TC0302"], 5),
        (["TC0404", "TC0501"], 70),
    ],
)
def test_the_worst_finding_decides_the_exit_code(codes: list[str], exit_code: int) -> None:
    assert exit_code_of([Diagnostic(code, "m") for code in codes]) == exit_code


def test_errors_cross_process_borders() -> None:
    first = error("TC0302", "m", span=Span("a", 1), note="n")
    assert pickle.loads(pickle.dumps(first)).diagnostics == first.diagnostics


def test_an_error_without_findings_is_our_own_fault() -> None:
    with pytest.raises(InternalError):
        TileccError([])


def test_color_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert not wants_color(io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert wants_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color(io.StringIO())
