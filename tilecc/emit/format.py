"""Lays out emitted C++ with clang-format, so that people can read and diff it.

The style lives here and not in a file looked up from the working directory: an installed tilecc must write
the same bytes everywhere. The binary comes from the ``clang-format`` package, never from PATH, for the same
reason.
"""

from __future__ import annotations

import subprocess
from functools import cache

from tilecc.diag import InternalError

# The same settings as the hand-written headers of templates/include.
STYLE: dict[str, str | int | bool] = {
    "BasedOnStyle": "Google",
    "ColumnLimit": 120,
    "DerivePointerAlignment": False,
    "PointerAlignment": "Left",
    "AllowShortFunctionsOnASingleLine": "All",
    "AllowShortIfStatementsOnASingleLine": "WithoutElse",
    "AllowShortLoopsOnASingleLine": True,
    "SortIncludes": "Never",
    "ReflowComments": "Never",
    "StatementMacros": "[TK_UNROLL]",
    "InsertNewlineAtEOF": True,
}


def style_text() -> str:
    """Return the style as the content of a ``.clang-format`` file."""
    return "".join(f"{key}: {_yaml(value)}\n" for key, value in STYLE.items())


def clang_format(text: str, filename: str = "kernel.cuh") -> str:
    """Return ``text`` (C++ or CUDA) in the house layout. The suffix of ``filename`` tells the language.

    Deterministic for one version of clang-format. Raises InternalError when clang-format refuses the text or
    is not installed: both are faults of tilecc or of its installation, not of the user's model.
    """
    style = "{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in STYLE.items()) + "}"
    done = subprocess.run(
        [_binary(), f"--style={style}", f"--assume-filename={filename}"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise InternalError(f"clang-format failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@cache
def _binary() -> str:
    try:
        from clang_format import get_executable
    except ImportError as e:
        raise InternalError(
            "the Python package clang-format, which tilecc depends on, is not installed"
        ) from e
    return str(get_executable("clang-format"))


def _yaml(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
