"""Rule 1, second half: no raw dereference of a pointer into shared or global memory.

A pointer may be dereferenced if it points to a local array: a parameter that every caller hands an array.
What comes from a kernel parameter, a cast, or a function that returns an address does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilecc.build.lint.source import Source
from tilecc.build.lint.structure import Function

_CASTS = frozenset("reinterpret_cast const_cast static_cast".split())
_BEFORE_UNARY = frozenset(
    "( [ { , ; = += -= *= |= &= ^= return ? : && || ! == != < <= >= + - / % << }".split()
)


@dataclass
class Pointers:
    """Names that stand for addresses, over all texts of a package."""

    fields: set[str] = field(default_factory=set)
    array_fields: set[str] = field(default_factory=set)
    returning: set[str] = field(default_factory=set)
    dereferenced: dict[str, set[int]] = field(default_factory=dict)
    """Functions that dereference a parameter: its positions."""


def check_pointers(sources: list[Source]) -> None:
    """Report dereferences in all texts; what one text declares counts in the others."""
    known = Pointers()
    for source in sources:
        _collect(source, known)
    known.fields -= known.array_fields
    raw: dict[tuple[int, int], set[str]] = {}
    for n, source in enumerate(sources):
        for m, f in enumerate(source.structure.functions):
            raw[n, m] = _check_function(source, f, known)
    for n, source in enumerate(sources):
        for m, f in enumerate(source.structure.functions):
            _check_calls(source, f, known, raw[n, m])


def _declared_pointers(source: Source, begin: int, end: int) -> list[tuple[str, int]]:
    """(name, index) of ``T* name`` in a range; a declarator of a function is not one."""
    names = []
    for i in range(begin + 1, end - 1):
        if source.text(i) not in ("*", "&&") or source.tokens[i + 1].kind != "word":
            continue
        before = source.tokens[i - 1]
        typed = before.kind == "word" or before.text in (">", "*")
        if typed and source.text(i + 2) in (",", ")", ";", "=", "") and _is_type(source, i - 1):
            names.append((source.text(i + 1), i + 1))
    return names


def _is_type(source: Source, i: int) -> bool:
    """True if the word at ``i`` ends a type: nothing but type words up to the start of the declaration."""
    while i >= 0 and (source.tokens[i].kind == "word" or source.text(i) in ("::", "*", "<", ">")):
        if source.text(i) in ("return", "case", "else"):
            return False
        i -= 1
    return source.text(i) in ("(", ",", ";", "{", "}", "", ")", ":")


def _collect(source: Source, known: Pointers) -> None:
    s = source.structure
    for begin, end in s.members:
        words = s.words(begin, end)
        if "(" in words[: words.index("=")] if "=" in words else "(" in words:
            continue
        pointers = [source.text(i + 1) for i in range(begin, end - 1) if source.text(i) == "*"]
        known.fields.update(p for p in pointers if p.isidentifier())
        known.array_fields.update(
            source.text(i)
            for i in range(begin, end)
            if source.tokens[i].kind == "word" and source.text(i + 1) == "["
        )
    for f in s.functions:
        at = f.params[0] - 2  # the name
        if source.text(at - 1) == "*":
            known.returning.add(f.name)
        positions = {name: n for n, (name, _) in enumerate(_parameters(source, f)) if name}
        used = {name for name, _ in _dereferenced(source, f)}
        origins = {name: source.text(i + 2) for name, i in _declared_pointers(source, *f.body)}
        used |= {origins[name] for name in used & origins.keys()}
        hits = {
            positions[name] for name in used & positions.keys() if _parameters(source, f)[positions[name]][1]
        }
        if hits:
            known.dereferenced.setdefault(f.name, set()).update(hits)


def _parameters(source: Source, f: Function) -> list[tuple[str, bool]]:
    """(name, is a pointer) of every parameter."""
    found = []
    depth_end = f.params[1]
    begin = i = f.params[0]
    while i <= depth_end:
        text = source.text(i)
        if i == depth_end or text == ",":
            part = source.structure.words(begin, i)
            words = [w for w in part if w.isidentifier()]
            found.append((words[-1] if words else "", "*" in part))
            begin = i + 1
        elif text in ("(", "[", "{"):
            i = source.structure.partner[i]
        i += 1
    return found


def _dereferenced(source: Source, f: Function) -> list[tuple[str, int]]:
    """(name, index) of plain names that the body subscripts, stars or follows with an arrow."""
    found = []
    for i in range(*f.body):
        t = source.tokens[i]
        if t.kind == "word" and source.text(i - 1) not in (".", "->", "::"):
            if source.text(i + 1) == "->" or (source.text(i + 1) == "[" and source.text(i - 1) != "&"):
                found.append((t.text, i))
        if t.text == "*" and source.text(i - 1) in _BEFORE_UNARY and source.tokens[i + 1].kind == "word":
            if source.text(i + 2) not in ("(", ".", "->", "::", "<"):
                found.append((source.text(i + 1), i + 1))
    return found


def _check_function(source: Source, f: Function, known: Pointers) -> set[str]:
    """Report dereferences of addresses; return the local names that hold one."""
    held = set()
    parameters = {name for name, pointer in _parameters(source, f) if pointer}
    for name, i in _declared_pointers(source, *f.body):
        start = source.text(i + 1)
        value = source.text(i + 2)
        # An alias of a parameter counts as that parameter, whose callers are checked.
        local_array = start == "=" and (value == "&" or value in parameters or _is_array(source, f, value))
        if not local_array:
            held.add(name)
    for name, i in _dereferenced(source, f):
        if name in held and not _addresses(source, i):
            source.report(1, f"raw dereference of `{name}`, a pointer into memory", source.tokens[i])
    partner = source.structure.partner
    for i in range(*f.body):
        text = source.text(i)
        subscripted = source.text(i + 1) == "[" or source.text(i + 1) == "->"
        if text in known.fields and source.text(i - 1) in (".", "->") and subscripted:
            if not _addresses(source, _chain_start(source, i)):
                source.report(
                    1, f"raw dereference of `{text}`, an address of global memory", source.tokens[i]
                )
        elif text == ")" and subscripted and i in partner:
            opening = partner[i]
            callee = source.text(opening - 1)
            cast = callee == ">" or _holds_pointer_type(source, opening + 1, i)
            arrow_to_array = source.text(i + 1) == "->" and source.text(i + 2) in known.array_fields
            if arrow_to_array and source.text(i + 3) != "[":
                continue  # the address of an array member
            if callee in known.returning or cast or _mentions_address(source, opening + 1, i, known, held):
                if not _addresses(source, _chain_start(source, opening)):
                    source.report(1, "raw dereference of an address", source.tokens[i + 1])
        elif text == "*" and source.text(i - 1) in _BEFORE_UNARY:
            _check_star(source, i, known, held)
    return held


def _check_star(source: Source, i: int, known: Pointers, held: set[str]) -> None:
    """A star before a cast, a call or a member: ``*p.x``, ``*(p.x + 4)``, ``*reinterpret_cast<T*>(x)``."""
    j = i + 1
    text = source.text(j)
    if text == "(" or text in _CASTS or source.text(j + 1) in (".", "->", "(", "::"):
        end = j
        while end < len(source.tokens) and source.text(end) not in (";", ",", "=", ")", "]", "}"):
            end = source.structure.partner.get(end, end) if source.text(end) in ("(", "[") else end
            end += 1
        if text != "this" and (
            text == "(" or text in _CASTS or _mentions_address(source, j, end, known, held)
        ):
            source.report(1, "raw dereference of an address", source.tokens[i])


def _is_array(source: Source, f: Function, name: str) -> bool:
    declared = any(
        source.text(i) == name and source.text(i + 1) == "[" and source.tokens[i - 1].kind == "word"
        for i in range(*f.body)
    )
    words = source.structure.words(*f.params)
    reference = any(words[k : k + 4] == ["&", name, ")", "["] for k in range(len(words)))
    return declared or reference


def _chain_start(source: Source, i: int) -> int:
    """First token of the member chain that ends at ``i``: of ``c.p.x`` the index of ``c``."""
    while True:
        if source.text(i - 1) in (".", "->", "::"):
            i -= 2
            if source.text(i) in (")", "]") and i in source.structure.partner:
                i = source.structure.partner[i] - 1
        elif source.tokens[i].text == "(" and source.tokens[i - 1].kind == "word":
            i -= 1
        elif source.text(i) == "(" and source.text(i - 1) == ">":
            while source.text(i) not in _CASTS and i > 0:
                i -= 1
            return i
        else:
            return i


def _addresses(source: Source, i: int) -> bool:
    """True if the expression starting at ``i`` only takes an address: ``&p.x[3]``, ``&c.state()->stop``."""
    return source.text(i - 1) == "&" and (source.text(i - 2) in _BEFORE_UNARY or source.text(i - 2) == ">")


def _holds_pointer_type(source: Source, begin: int, end: int) -> bool:
    """True for the inside of ``((const u32*)x)``."""
    return source.text(begin) == "(" and source.text(source.structure.partner[begin] - 1) == "*"


def _mentions_address(source: Source, begin: int, end: int, known: Pointers, held: set[str]) -> bool:
    for i in range(begin, end):
        text = source.text(i)
        after_dot = source.text(i - 1) in (".", "->")
        if text in known.fields and after_dot:
            return True
        if text in known.returning and source.text(i + 1) == "(":
            return True
        if text == "reinterpret_cast" or (text in held and not after_dot):
            return True
        if text == "*" and source.text(i + 1) == ")" and source.tokens[i - 1].kind == "word":
            return True
    return False


def _check_calls(source: Source, f: Function, known: Pointers, held: set[str]) -> None:
    for i in range(*f.body):
        name = source.text(i)
        if name not in known.dereferenced or source.text(i + 1) != "(" or source.text(i - 2) == "tk":
            continue
        arguments = source.arguments(i)
        for n in known.dereferenced[name]:
            if n < len(arguments) and _mentions_address(source, *arguments[n], known, held):
                source.report(
                    1, f"`{name}` dereferences argument {n + 1}, which is an address", source.tokens[i]
                )
