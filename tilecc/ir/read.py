"""Reads an IR of any level from a file of text, and says where in that file it breaks a rule."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilecc.diag import Diagnostic, InternalError, Span, TileccError, error
from tilecc.ir.graph import Graph
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.program import Program
from tilecc.ir.program_rules import PROGRAM_RULES
from tilecc.ir.text import parse_ir
from tilecc.ir.tile import TileGraph
from tilecc.ir.tile_rules import PARTIAL_RULES, TILE_RULES
from tilecc.ir.verify import verify

Ir = Graph | TileGraph | Program

KINDS: tuple[type[Ir], ...] = (Graph, TileGraph, Program)

LAST_TILE_PASS = "rings"
"""The pass after which every field of a TileGraph is filled."""

MAX_VIOLATIONS = 50

BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    InternalError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
"""What code raises that meets values it was promised not to meet."""


def read_ir(path: Path, kinds: tuple[type[Ir], ...] = KINDS) -> Ir:
    """The sound IR that a file holds, of one of `kinds`.

    Raises TileccError with all that is wrong: TC0703 (not readable), TC0210 (malformed text), TC0211 (text of
    another version), TC0212 (a rule of the verifier is broken).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        why = getattr(reason, "strerror", None) or "it is not UTF-8 text"
        raise error("TC0703", f"`{path}` cannot be read", note=why, help="give a file of IR text") from None
    root = parse_ir(text, kinds, str(path))
    with reading(path, text, "the rules of the verifier"):
        found = list(_violations(root))
    if found:
        raise TileccError([placed(d, path, text) for d in found[:MAX_VIOLATIONS]])
    assert isinstance(root, Graph | TileGraph | Program)
    return root


def _violations(root: object) -> Iterator[Diagnostic]:
    if isinstance(root, Graph):
        yield from verify(root, GRAPH_RULES)
    elif isinstance(root, TileGraph):
        whole = not root.passes or LAST_TILE_PASS in root.passes
        yield from verify(root, TILE_RULES if whole else PARTIAL_RULES)
    elif isinstance(root, Program):
        yield from verify(root, PROGRAM_RULES)


def placed(found: Diagnostic, path: Path, text: str) -> Diagnostic:
    """A finding about an IR that was read from a file, at the line of the first name it speaks of. The place
    in the model file becomes a further one."""
    if not found.code.startswith("TC02") or (found.span is not None and found.span.file == str(path)):
        return found
    other = (*found.secondary, *((found.span,) if found.span is not None else ()))
    lines = text.splitlines()
    for name in re.findall(r"`([^`]+)`", found.message):
        for number, line in enumerate(lines, 1):
            if f'"{name}"' in line:
                return dataclasses.replace(found, span=Span(str(path), number, label=name), secondary=other)
    return dataclasses.replace(found, span=Span(str(path), 1), secondary=other)


@contextmanager
def reading(path: Path, text: str, doing: str) -> Iterator[None]:
    """Errors about an IR that came from a file get their line there; what only a hand-made IR can break, so
    that no rule names it, becomes TC0213 instead of an internal error."""
    try:
        yield
    except TileccError as found:
        raise TileccError([placed(d, path, text) for d in found.diagnostics]) from None
    except BROKEN as broken:
        kind, message = type(broken).__name__, str(broken).strip().partition("\n")[0][:200]
        raise error(
            "TC0213",
            f"{doing} cannot work on this IR text: {kind}: {message}".rstrip(": "),
            span=Span(str(path), 1),
            note="the text keeps the rules of its verifier, but its values do not belong together",
            help="edit text that `tilecc compile --dump` wrote, or start from an earlier pass",
        ) from broken
