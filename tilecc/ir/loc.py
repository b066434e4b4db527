"""Source location of an IR node in the user's model file."""

from __future__ import annotations

from tilecc.diag import Span
from tilecc.ir.text import ir_node


@ir_node(positional=3)
class Loc:
    """Where a node comes from.

    `file` is relative to the folder of the model file, so that an IR's text is the same on every machine.
    `line` counts from 1 (0: unknown). `module` is the path of the torch module, such as `layers.3.self_attn`.
    """

    file: str
    line: int
    module: str = ""

    def span(self, label: str = "") -> Span:
        """The place as a diagnostic shows it."""
        return Span(self.file, self.line, label=label)

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where} ({self.module})" if self.module else where


UNKNOWN = Loc("", 0)
"""Location of nodes that no source line made."""
