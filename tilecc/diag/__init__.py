"""Diagnostics: what the user did wrong, where, and what to do about it.

Every error a user can cause is a :class:`TileccError` made of :class:`Diagnostic` values, each with a code of
the catalogue (``tilecc explain CODE``). Anything else that escapes is our own fault: :class:`InternalError`.
This package imports nothing outside the standard library at import time, so every layer may use it.
"""

from tilecc.diag.catalogue import CATALOGUE, exit_code_of, explain
from tilecc.diag.entry import Entry
from tilecc.diag.model import Diagnostic, InternalError, Span, TileccError, error
from tilecc.diag.render import render, render_all, to_json

__all__ = [
    "CATALOGUE",
    "Diagnostic",
    "Entry",
    "InternalError",
    "Span",
    "TileccError",
    "error",
    "exit_code_of",
    "explain",
    "render",
    "render_all",
    "to_json",
]
