"""Functions of a C++ text, and for each of their tokens the conditions and loops that control it.

A recursive descent over statements, enough for device code: no exceptions, no K&R, no macros that open
blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilecc.build.lint.tokens import Token

CONTROL = frozenset("if for while do switch else".split())
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_AFTER_PARAMETERS = frozenset("const noexcept override final mutable".split())
_NO_NAME = CONTROL | frozenset("return sizeof alignof decltype static_assert catch alignas constexpr".split())


@dataclass(frozen=True)
class Control:
    """What decides whether, or how often, a statement runs: ``kind`` if, else, for, while, do or switch.

    ``at``: indices [begin, end) of the condition's tokens; of a ``for`` all of its header.
    """

    kind: str
    begin: int
    end: int
    constant: bool = False


@dataclass
class Function:
    """``params`` and ``body``: token indices [begin, end) between the brackets."""

    name: str
    params: tuple[int, int]
    body: tuple[int, int]
    controls: dict[int, tuple[Control, ...]] = field(default_factory=dict)
    """By token index; a token under no control is absent."""
    statements: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Structure:
    """All functions, and the tokens at namespace scope by statement."""

    tokens: list[Token]
    partner: dict[int, int]
    functions: list[Function] = field(default_factory=list)
    declarations: list[tuple[int, int]] = field(default_factory=list)
    """Statements at file or namespace scope that end in a semicolon."""
    members: list[tuple[int, int]] = field(default_factory=list)
    """The same of class bodies."""

    def words(self, begin: int, end: int) -> list[str]:
        return [t.text for t in self.tokens[begin:end]]


def parse(tokens: list[Token]) -> Structure:
    """Find functions, declarations and controls. Tokens of directives must have been removed."""
    s = Structure(tokens, _partners(tokens))
    _scope(s, 0, len(tokens), s.declarations)
    return s


def _partners(tokens: list[Token]) -> dict[int, int]:
    """Index of the bracket that closes (opens) each bracket; unbalanced ones pair with the end."""
    partner: dict[int, int] = {}
    stack: list[int] = []
    for i, t in enumerate(tokens):
        if t.kind != "op":
            continue
        if t.text in _PAIRS:
            stack.append(i)
        elif t.text in _PAIRS.values():
            while stack and _PAIRS[tokens[stack[-1]].text] != t.text:
                partner[stack.pop()] = len(tokens) - 1
            if stack:
                partner[stack[-1]] = i
                partner[i] = stack.pop()
    for i in stack:
        partner[i] = len(tokens) - 1
    return partner


def _scope(s: Structure, i: int, end: int, into: list[tuple[int, int]]) -> None:
    """Declarations of a file, namespace or class."""
    begin = i
    while i < end:
        text = s.tokens[i].text
        if text in ("(", "["):
            i = s.partner[i] + 1
        elif text == "{":
            close = s.partner[i]
            words = s.words(begin, i)
            function = _function(s, begin, i)
            if function is not None:
                s.functions.append(function)
                _block(s, function, i + 1, close, ())
                begin = i = close + 1
            elif "namespace" in words or (words[:1] == ["extern"] and len(words) == 2):
                _scope(s, i + 1, close, into)
                begin = i = close + 1
            else:
                if {"struct", "class", "union"} & set(words):
                    _scope(s, i + 1, close, s.members)
                i = close + 1
        elif text == ";":
            into.append((begin, i))
            begin = i = i + 1
        elif text == ":" and s.words(begin, i) in (["public"], ["private"], ["protected"]):
            begin = i = i + 1
        else:
            i += 1


def _function(s: Structure, begin: int, brace: int) -> Function | None:
    """The function whose body opens at ``brace``, if what stands before is a function header."""
    i = brace - 1
    while i > begin and (s.tokens[i].text in _AFTER_PARAMETERS):
        i -= 1
    if i <= begin or s.tokens[i].text != ")" or i not in s.partner:
        return None
    opening = s.partner[i]
    name = s.tokens[opening - 1]
    if opening - 1 < begin or (name.kind != "word" and name.text not in (")", ">")) or name.text in _NO_NAME:
        return None
    # TK_KERNEL(name, threads)(parameters)
    label = name.text if name.kind == "word" else "kernel"
    return Function(label, (opening + 1, i), (brace + 1, s.partner[brace]))


def _block(s: Structure, f: Function, i: int, end: int, controls: tuple[Control, ...]) -> None:
    while i < end:
        i = _statement(s, f, i, end, controls)


def _statement(s: Structure, f: Function, i: int, end: int, controls: tuple[Control, ...]) -> int:
    """Walk one statement and return the index behind it."""
    tokens = s.tokens
    text = tokens[i].text
    while text.isupper() and tokens[i].kind == "word" and i + 1 < end and tokens[i + 1].text in CONTROL:
        i += 1  # a macro that stands for a pragma
        text = tokens[i].text
    if text == "{":
        close = min(s.partner[i], end)
        _block(s, f, i + 1, close, controls)
        return close + 1
    if text == "if":
        j = i + 1
        constant = tokens[j].text == "constexpr"
        j += constant
        close = s.partner.get(j, end)
        _plain(s, f, j + 1, close, controls)
        then = _statement(s, f, close + 1, end, (*controls, Control("if", j + 1, close, constant)))
        if then < end and tokens[then].text == "else":
            return _statement(s, f, then + 1, end, (*controls, Control("else", j + 1, close, constant)))
        return then
    if text in ("for", "while", "switch"):
        close = s.partner.get(i + 1, end)
        control = Control(text, i + 2, close)
        _plain(s, f, i + 2, close, (*controls, control))
        if close + 1 < end and tokens[close + 1].text == ";":  # an empty body
            f.controls[close + 1] = (*controls, control)
            return close + 2
        return _statement(s, f, close + 1, end, (*controls, control))
    if text == "do":
        # The condition stands behind the body.
        probe = i + 1
        after = s.partner[probe] + 1 if tokens[probe].text == "{" else _until(s, probe, end) + 1
        close = s.partner.get(after + 1, end) if after + 1 < end else end
        control = Control("do", after + 2, close)
        _statement(s, f, i + 1, end, (*controls, control))
        _plain(s, f, after + 2, close, (*controls, control))
        return close + 2
    stop = _until(s, i, end)
    _plain(s, f, i, stop, controls)
    return stop + 1


def _until(s: Structure, i: int, end: int) -> int:
    """Index of the semicolon that ends the statement at ``i``, brackets skipped."""
    while i < end and s.tokens[i].text != ";":
        i = s.partner[i] if s.tokens[i].text in _PAIRS and i in s.partner else i
        i += 1
    return min(i, end)


def _plain(s: Structure, f: Function, i: int, end: int, controls: tuple[Control, ...]) -> None:
    """Tokens of an expression or declaration; bodies of lambdas in it are blocks again."""
    f.statements.append((i, end))
    while i < end:
        if controls:
            f.controls[i] = controls
        if s.tokens[i].text == "{" and s.tokens[i - 1].text in (")", "]", "mutable"):
            close = min(s.partner[i], end)
            _block(s, f, i + 1, close, controls)
            i = close
        i += 1
