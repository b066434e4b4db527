"""clang-format of emitted text, with the project's style, so that goldens do not depend on the user's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tilecc.diag import InternalError

STYLE = "{BasedOnStyle: Google, ColumnLimit: 120, IndentPPDirectives: None, SortIncludes: Never, ReflowComments: Never}"


def clang_format(text: str) -> str:
    """Formatted C++ text. Raises InternalError when the formatter fails."""
    beside = Path(sys.executable).with_name("clang-format")
    run = subprocess.run(
        [str(beside) if beside.exists() else "clang-format", f"--style={STYLE}"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode != 0:
        raise InternalError(f"clang-format failed: {run.stderr.strip()}")
    return run.stdout
