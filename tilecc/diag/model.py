"""The data of a diagnostic and the two exception families."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Text = str | Iterable[str]


@dataclass(frozen=True)
class Span:
    """A place in a user's file. ``line`` and ``col`` count from 1; 0 means the whole file or the whole line.

    For a tensor of a checkpoint, ``file`` is the shard and ``label`` names the tensor.
    """

    file: str
    line: int = 0
    col: int = 0
    label: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    ``message`` is one lower-case line without a final full stop, understandable alone, values in backticks.
    ``notes`` hold facts (required against available, with units); ``help`` holds actions. ``span`` is the
    user's own place; ``secondary`` are further places ("traced here", "first consumer here").
    """

    code: str
    message: str
    span: Span | None = None
    notes: tuple[str, ...] = ()
    help: tuple[str, ...] = ()
    secondary: tuple[Span, ...] = ()
    severity: str = "error"


class TileccError(Exception):
    """An error of the user's input. Carries one or more diagnostics."""

    diagnostics: list[Diagnostic]

    def __init__(self, diagnostics: Sequence[Diagnostic] | Diagnostic) -> None:
        found = [diagnostics] if isinstance(diagnostics, Diagnostic) else list(diagnostics)
        if not found:
            raise InternalError("a TileccError needs at least one diagnostic")
        self.diagnostics = found
        super().__init__("; ".join(f"{d.code}: {d.message}" for d in found))

    def __reduce__(self) -> tuple[type[TileccError], tuple[list[Diagnostic]]]:
        """Keep the diagnostics when the exception crosses a process boundary."""
        return (TileccError, (self.diagnostics,))


class InternalError(Exception):
    """A broken promise of tilecc itself (exit code 70), never caused by the user's input alone."""


def error(
    code: str,
    message: str,
    *,
    span: Span | None = None,
    note: Text = (),
    help: Text = (),
    secondary: Sequence[Span] = (),
) -> TileccError:
    """Make a :class:`TileccError` of one diagnostic: ``raise error("TC0302", "...", note=..., help=...)``."""
    return TileccError(Diagnostic(code, message, span, _texts(note), _texts(help), tuple(secondary)))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean `x`?"`` for the closest known name, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


def _texts(value: Text) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(v for v in value if v)
