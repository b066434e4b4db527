"""Where a command's words go: data to stdout, prose and progress to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def emit(text: str, end: str = "\n") -> None:
    """Write data to stdout and flush, so that a reader of a pipe sees it at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """Write a JSON document to stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str = "", end: str = "\n") -> None:
    """Write prose to stderr."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show that something takes a while: a spinner on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        say(f"{text} ...")
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{text} ..."):
        yield


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over ``total`` things on a terminal; elsewhere one line. Yields ``advance(n)``."""
    if not sys.stderr.isatty():
        say(f"{text} ({total}) ...")
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda n: bar.advance(task, n)


def table(rows: Sequence[Sequence[str]], gap: int = 2) -> str:
    """Lay out rows in columns padded with spaces; the last column is left as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = [
        "".join(cell.ljust(w + gap) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)
