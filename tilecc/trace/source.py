"""Which lines are the user's: maps stack frames to places in the model file or its folder."""

from __future__ import annotations

import functools
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

from tilecc.diag import Span
from tilecc.ir.loc import Loc

_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in ')

_PACKAGE = Path(__file__).resolve().parents[1]

BUILT_IN = (_PACKAGE / "models").resolve()  # a link in the source tree, a folder in an installed package
"""The models that come with tilecc; a user's file may import them."""

_NOT_MODELS = (_PACKAGE, Path(sysconfig.get_path("stdlib")).resolve())
"""Our own code and Python's: a model file may lie above them, for example in a home directory."""


@functools.cache
def _relative(model_folder: Path, file: str) -> str | None:
    if file.startswith("<"):
        return None
    path = Path(file).resolve()
    if path.is_relative_to(BUILT_IN):
        name = path.relative_to(BUILT_IN).as_posix()
        prefix = "" if model_folder == BUILT_IN else "models/"
        return None if name == "ops.py" else prefix + name
    if any(path.is_relative_to(other) for other in _NOT_MODELS) or not path.is_relative_to(model_folder):
        return None
    inside = path.relative_to(model_folder)
    return None if "site-packages" in inside.parts else inside.as_posix()


@dataclass(frozen=True)
class Sources:
    """The model file as the user named it. Frames under its folder, and under our `models`, are the model's.

    Files of installed packages and `models/ops.py` (the definition of the custom ops, not their use) are not.
    """

    model_file: Path

    @functools.cached_property
    def folder(self) -> Path:
        return self.model_file.resolve().parent

    def relative(self, file: str) -> str | None:
        """Path of a model's file as locations show it, or None for a file that is not the model's."""
        return _relative(self.folder, file)

    def actual(self, relative: str) -> str:
        """The file that `relative` named, as the user can open it: beside the model file as he wrote it."""
        if (self.folder / relative).exists():
            return str(self.model_file.parent / relative)
        return str(BUILT_IN.parent / relative)

    def span(self, loc: Loc, label: str = "") -> Span | None:
        """Place of `loc` for a diagnostic, or None when it is unknown."""
        return Span(self.actual(loc.file), loc.line, label=label) if loc.file else None

    def loc_of_trace(self, stack_trace: str | None, module: str = "") -> Loc:
        """Innermost frame of the model in a printed stack trace (outermost frame first)."""
        for match in reversed(list(_FRAME.finditer(stack_trace or ""))):
            file = self.relative(match["file"])
            if file is not None:
                return Loc(file, int(match["line"]), module)
        return Loc("", 0, module)

    def span_of_exception(self, exc: BaseException) -> Span:
        """Innermost frame of the model in an exception's traceback; the model file if there is none."""
        if isinstance(exc, SyntaxError) and exc.filename and self.relative(exc.filename) is not None:
            return Span(self.actual(self.relative(exc.filename) or ""), exc.lineno or 0, exc.offset or 0)
        for frame in reversed(traceback.extract_tb(exc.__traceback__)):
            file = self.relative(frame.filename)
            if file is not None:
                return Span(self.actual(file), frame.lineno or 0)
        return Span(str(self.model_file))
