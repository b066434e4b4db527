"""Verifiers: each IR level has a tuple of small named rules, each of which yields what it finds wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tilecc.diag import Diagnostic, InternalError, TileccError
from tilecc.ir.loc import Loc

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Generic[T]):
    """One property of an IR: `doc` states it in a sentence, `check` yields a diagnostic per violation."""

    name: str
    doc: str
    check: Callable[[T], Iterable[Diagnostic]]


def violation(rule: str, message: str, loc: Loc | None = None, help: str = "") -> Diagnostic:
    """Diagnostic TC0212 of one broken rule."""
    span = loc.span() if loc is not None and loc.file else None
    return Diagnostic("TC0212", f"{message} [{rule}]", span, (), (help,) if help else ())


def verify(root: T, rules: Sequence[Rule[T]]) -> list[Diagnostic]:
    """Everything the rules find wrong with `root`, in the order of the rules. Empty: the IR is sound."""
    return [found for rule in rules for found in rule.check(root)]


def require(root: T, rules: Sequence[Rule[T]]) -> T:
    """`root` itself, if it is sound; otherwise raises TileccError with all violations."""
    found = verify(root, rules)
    if found:
        raise TileccError(found)
    return root


def expect(root: T, rules: Sequence[Rule[T]], level: str) -> T:
    """`root` itself, if it is sound; otherwise InternalError: an IR that a pass made is never the user's
    fault."""
    found = verify(root, rules)
    if found:
        shown = [f"{d.message}" + (f" at {d.span.file}:{d.span.line}" if d.span else "") for d in found[:20]]
        more = [f"and {len(found) - 20} more"] if len(found) > 20 else []
        raise InternalError("\n  ".join([f"the {level} IR breaks its rules:", *shown, *more]))
    return root
