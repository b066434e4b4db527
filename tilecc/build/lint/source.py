"""One text under lint, and what a rule says about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tilecc.build.lint.structure import Control, Function, Structure, parse
from tilecc.build.lint.tokens import Directive, Token, tokenize


@dataclass(frozen=True)
class Found:
    """A violation of rule ``rule`` (1 to 10, 11 for flushing forms) at a token."""

    rule: int
    message: str
    line: int
    col: int


@dataclass
class Source:
    """A text, its tokens without directives, the bodies of its macros, and its structure."""

    file: str
    tokens: list[Token]
    macros: list[Token]
    directives: list[Directive]
    structure: Structure
    unqualified: bool
    """The text says ``using namespace tk``: primitives need no ``tk::``."""
    found: list[Found] = field(default_factory=list)

    @classmethod
    def of(cls, file: str, text: str) -> Source:
        tokens, directives = tokenize(text)
        code = [t for t in tokens if not t.directive]
        joined = " ".join(t.text for t in code)
        return cls(
            file,
            code,
            [t for t in tokens if t.directive],
            directives,
            parse(code),
            "using namespace tk ;" in joined,
        )

    def report(self, rule: int, message: str, at: Token | Directive) -> None:
        self.found.append(Found(rule, message, at.line, at.col))

    def text(self, i: int) -> str:
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ""

    def primitive(self, i: int) -> str:
        """The name if token ``i`` calls a primitive: ``tk::NAME(``, ``tk::NAME<...>(``, or without ``tk::``
        where the text uses the namespace; else the empty string."""
        t = self.tokens[i]
        if t.kind != "word" or self.text(i + 1) not in ("(", "<"):
            return ""
        if self.text(i - 1) == "::":
            return t.text if self.text(i - 2) in ("tk", "tk_emu") else ""
        if t.text.startswith("tk_"):
            return t.text.removeprefix("tk_")
        before = self.text(i - 1)
        # A word before the name makes it a declaration of an own function.
        if not self.unqualified or before in (".", "->"):
            return ""
        return "" if self.tokens[i - 1].kind == "word" and before not in ("return", "else") else t.text

    def calls(self, begin: int, end: int) -> Iterator[tuple[int, str]]:
        """(index, name) of the calls of primitives in a range of tokens."""
        for i in range(begin, end):
            name = self.primitive(i)
            if name:
                yield i, name

    def arguments(self, i: int) -> list[tuple[int, int]]:
        """Token ranges of the arguments of the call whose name is token ``i``."""
        opening = i + 1
        while self.text(opening) not in ("(", ""):
            opening += 1
        close = self.structure.partner.get(opening, opening)
        ranges, begin, j = [], opening + 1, opening + 1
        while j < close:
            if self.text(j) in ("(", "[", "{"):
                j = self.structure.partner[j]
            elif self.text(j) == ",":
                ranges.append((begin, j))
                begin = j + 1
            j += 1
        return [*ranges, (begin, close)] if close > begin else ranges

    def controls(self, f: Function, i: int) -> tuple[Control, ...]:
        return f.controls.get(i, ())
