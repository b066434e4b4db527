"""Text and JSON forms of diagnostics, in the layout that rustc made familiar.

error[TC0102]: model file has no `decode_step`
  --> models/foo.py:1
   |
 1 | import torch
   | ^^^^^^^^^^^^ nothing here defines it
   = note: ...
   = help: ...
   = see:  tilecc explain TC0102
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Sequence
from typing import Any, TextIO

from tilecc.diag.model import Diagnostic, Span

MAX_SHOWN = 20

_RED, _YELLOW, _BLUE = "\x1b[31;1m", "\x1b[33;1m", "\x1b[34;1m"
_CYAN, _BOLD, _RESET = "\x1b[36m", "\x1b[1m", "\x1b[0m"


def wants_color(stream: TextIO) -> bool:
    """Follow NO_COLOR and FORCE_COLOR (any non-empty value), else colour only a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def render(diagnostic: Diagnostic, *, color: bool = False) -> str:
    """Return one diagnostic as text without a final newline."""

    def paint(style: str, text: str) -> str:
        return f"{style}{text}{_RESET}" if color else text

    level = _RED if diagnostic.severity == "error" else _YELLOW
    head = paint(level, f"{diagnostic.severity}[{diagnostic.code}]")
    lines = [head + paint(_BOLD, f": {diagnostic.message}")]
    spans = ([] if diagnostic.span is None else [diagnostic.span]) + list(diagnostic.secondary)
    width = max([len(str(s.line)) for s in spans] + [1])
    for span in spans:
        lines += _snippet(span, width, paint, level if span is diagnostic.span else _BLUE)
    bar = " " * (width + 1) + paint(_BLUE, "=")
    lines += [f"{bar} note: {_indent(text, width)}" for text in diagnostic.notes]
    lines += [f"{bar} {paint(_CYAN, 'help')}: {_indent(text, width)}" for text in diagnostic.help]
    lines.append(f"{bar} see:  tilecc explain {diagnostic.code}")
    return "\n".join(lines)


def render_all(diagnostics: Sequence[Diagnostic], *, color: bool = False, show_all: bool = False) -> str:
    """Return all findings sorted by place, at most ``MAX_SHOWN`` unless ``show_all``, then a count line."""
    ordered = sorted(diagnostics, key=_place)
    shown = ordered if show_all else ordered[:MAX_SHOWN]
    blocks = [render(d, color=color) for d in shown]
    if len(ordered) > len(shown):
        blocks.append(f"... and {len(ordered) - len(shown)} more")
    if len(ordered) > 1:
        errors = sum(d.severity == "error" for d in ordered)
        warnings = len(ordered) - errors
        counts = [(errors, "error"), (warnings, "warning")]
        blocks.append(", ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n))
    return "\n\n".join(blocks) + "\n"


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return the JSON form: code, severity, message, spans (the primary one first), notes, help."""
    spans = ([] if diagnostic.span is None else [diagnostic.span]) + list(diagnostic.secondary)
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "spans": [
            {"file": s.file, "line": s.line, "col": s.col, "label": s.label, "primary": s is diagnostic.span}
            for s in spans
        ],
        "notes": list(diagnostic.notes),
        "help": list(diagnostic.help),
    }


def _snippet(span: Span, width: int, paint: Any, style: str) -> list[str]:
    place = ":".join([span.file] + [str(n) for n in (span.line, span.col) if n])
    arrow = " " * width + paint(_BLUE, "-->")
    source = linecache.getline(span.file, span.line).rstrip("\n") if span.line else ""
    if not source.strip():
        return [f"{arrow} {place}" + (f"   ({span.label})" if span.label else "")]
    bar = paint(_BLUE, "|")
    text = source.expandtabs(1)
    start = span.col - 1 if span.col else len(text) - len(text.lstrip())
    length = _token_length(text, start) if span.col else max(len(text.strip()), 1)
    mark = paint(style, "^" * length + (f" {span.label}" if span.label else ""))
    return [
        f"{arrow} {place}",
        f"{' ' * width} {bar}",
        f"{paint(_BLUE, str(span.line).rjust(width))} {bar} {text}",
        f"{' ' * width} {bar} {' ' * start}{mark}",
    ]


def _token_length(text: str, start: int) -> int:
    """Length of the dotted name or the quoted key that starts at ``start``, at least 1."""
    if text[start : start + 1] == '"':
        return max(text.find('"', start + 1) + 1 - start, 1)
    end = start
    while end < len(text) and (text[end].isalnum() or text[end] in "_."):
        end += 1
    return max(end - start, 1)


def _indent(text: str, width: int) -> str:
    return text.replace("\n", "\n" + " " * (width + 9))


def _place(diagnostic: Diagnostic) -> tuple[int, str, int, int]:
    span = diagnostic.span
    return (1, "", 0, 0) if span is None else (0, span.file, span.line, span.col)
