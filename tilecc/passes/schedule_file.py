"""Reads a schedule file: a Python file that defines `schedule(s: Schedule) -> None`."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from tilecc.diag import Span, TileccError, error
from tilecc.diag.model import nearest
from tilecc.passes.schedule import Schedule
from tilecc.target import Target


def load_schedule(
    path: Path, target: Target, *, ranks: int = 1, max_context: int = 1024, max_seqs: int = 1
) -> Schedule:
    """Run the schedule file for one compilation.

    Raises TileccError TC0710 if there is no such file, it raises, or it has no function `schedule` of one
    argument. Mistakes in its requests are in `problems` of the result: `PassContext.settle` raises them.
    """
    if not path.is_file() or path.suffix != ".py":
        why = "is not a Python file" if path.exists() else "does not exist"
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        note = f"Python files beside it: {', '.join(beside[:10])}" if beside else ""
        help = nearest(path.name, beside) or "give a Python file that defines `schedule(s)`"
        raise error("TC0710", f"schedule file `{path}` {why}", note=note, help=help)
    made = Schedule(target, ranks, max_context, max_seqs, file=str(path))
    spec = importlib.util.spec_from_file_location(f"_tilecc_schedule_{path.stem}", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _user_code(path, "importing it"):
        spec.loader.exec_module(module)
    function = getattr(module, "schedule", None)
    if not callable(function):
        raise error(
            "TC0710",
            f"schedule file `{path.name}` has no function `schedule`",
            span=Span(str(path), 1),
            help="define `def schedule(s: Schedule) -> None`",
        )
    try:
        inspect.signature(function).bind(made)
    except TypeError:
        line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 1
        raise error(
            "TC0710",
            "`schedule` must take one argument, the Schedule",
            span=Span(str(path), line),
            help="define `def schedule(s: Schedule) -> None`",
        ) from None
    with _user_code(path, "`schedule`"):
        function(made)
    return made


@contextlib.contextmanager
def _user_code(path: Path, doing: str) -> Iterator[None]:
    """Prints of the file go to stderr; an exception becomes TC0710 at the innermost line of the file."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except TileccError:
        raise
    except (Exception, SystemExit) as exc:
        frames = traceback.extract_tb(exc.__traceback__)
        lines = [f.lineno or 0 for f in frames if f.filename == str(path)]
        if isinstance(exc, SyntaxError) and exc.filename == str(path):
            lines = [exc.lineno or 0]
        text = str(exc).strip().partition("\n")[0] or "no message"
        raise error(
            "TC0710",
            f"{doing} raised {type(exc).__name__}: {text}",
            span=Span(str(path), lines[-1] if lines else 0),
            help="a schedule file defines `schedule(s)` and calls the methods of tilecc.schedules.Schedule",
        ) from exc
