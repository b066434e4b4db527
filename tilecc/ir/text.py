"""Text form of the IRs: trees of frozen dataclasses printed as constructor calls and parsed back exactly.

    tilecc.graph 1
    Graph(
      "mimo_tiny",
      nodes=[
        Node("layers.0.norm", "rms_norm", inputs=["x", "layers.0.norm.weight"], attrs={"eps": 1e-05}),
      ],
    )

The first line names the IR and its version. The rest is a Python expression, so editors highlight it and
comments are allowed, but it is only ever read through `ast`: nothing is evaluated. Tuples print as `[...]`. A
field equal to its default is omitted. Leading required `str` and enum fields (at most two, or `positional=`
of them) print without name.

Values: str, int, float (shortest round-trip form, `inf`, `nan`), bool, None, tuple, dict with str keys
(insertion order), enum members (`Role.LOADER`) and other IR nodes.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

from tilecc.diag import Diagnostic, Span, TileccError, error
from tilecc.diag.model import nearest

T = TypeVar("T")
K = TypeVar("K")

WIDTH = 150
"""Columns a node may take before it is broken into one field per line."""

_POSITIONAL = "__ir_positional__"


def _memo(function: Callable[[K], T]) -> Callable[[K], T]:
    """functools.cache with its argument typed."""
    return functools.cache(function)


@overload
def ir_node(cls: type[T], /) -> type[T]: ...
@overload
def ir_node(*, positional: int | None = None) -> Callable[[type[T]], type[T]]: ...
@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def ir_node(cls: type[T] | None = None, /, *, positional: int | None = None) -> Any:
    """Make a class an IR node: a frozen, slotted dataclass that `print_ir` and `parse_ir` know.

    `positional` says how many leading fields print without their name. A root class may set the class
    variables `IR_NAME` (default: the class name in lower case) and `IR_VERSION` (default 1).
    """

    def make(plain: type[T]) -> type[T]:
        made = dataclasses.dataclass(frozen=True, slots=True)(plain)
        setattr(made, _POSITIONAL, positional)
        return made

    return make if cls is None else make(cls)


def is_ir_node(cls: object) -> bool:
    """Whether `cls` is a class made by `ir_node`."""
    return isinstance(cls, type) and _POSITIONAL in cls.__dict__


def ir_header(cls: type[Any]) -> tuple[str, int]:
    """Name and version that the first line of a printed `cls` carries."""
    return getattr(cls, "IR_NAME", cls.__name__.lower()), getattr(cls, "IR_VERSION", 1)


# ------------------------------------------------------------------------------------------------ printing


def print_ir(root: Any) -> str:
    """Text of an IR, ending with a newline. Raises TypeError for a value that has no text form."""
    name, version = ir_header(type(root))
    return f"tilecc.{name} {version}\n{_block(root, 0, is_root=True)}\n"


def format_node(node: Any) -> str:
    """One node on one line, without header: for messages and tables."""
    return _flat(node)


def _flat(value: Any) -> str:
    """`value` on one line."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(float(value))
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_flat, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if is_ir_node(type(value)):
        return type(value).__name__ + "(" + ", ".join(p + _flat(v) for p, v in _arguments(value)) + ")"
    raise TypeError(f"{type(value).__name__} value {value!r} has no IR text form")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"dict key {key!r} of an IR node is not a string")
    return _quote(key)


def _quote(text: str) -> str:
    out = ['"']
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        elif char == "\n":
            out.append("\\n")
        else:
            code = ord(char)
            wide = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
            out.append(f"\\x{code:02x}" if code < 0x100 else wide)
    out.append('"')
    return "".join(out)


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    positional: bool
    default: Callable[[], Any] | None


@_memo
def _layout(cls: type[Any]) -> tuple[_Field, ...]:
    """Print layout of the fields of a node class."""
    fields = [f for f in dataclasses.fields(cls) if f.init]
    count: int | None = cls.__dict__[_POSITIONAL]
    if count is None:
        hints = typing.get_type_hints(cls)
        count = 0
        for field in fields[:2]:
            hint = hints[field.name]
            named = hint is str or (isinstance(hint, type) and issubclass(hint, enum.Enum))
            if not named or _default(field) is not None:
                break
            count += 1
    return tuple(_Field(f.name, i < count, _default(f)) for i, f in enumerate(fields))


def _default(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return lambda: value
    return None if field.default_factory is dataclasses.MISSING else field.default_factory


def _arguments(node: Any) -> Iterator[tuple[str, Any]]:
    """Printed (prefix, value) pairs of a node: prefix is "" for a positional argument, "name=" otherwise."""
    named = False
    for field in _layout(type(node)):
        value = getattr(node, field.name)
        if field.default is not None:
            default = field.default()
            # == alone would drop True for 1 and -0.0 for 0.0
            if type(value) is type(default) and value == default and _flat(value) == _flat(default):
                named = True
                continue
        yield ("" if field.positional and not named else f"{field.name}="), value


def _block(value: Any, indent: int, prefix: str = "", is_root: bool = False) -> str:
    """`value` at `indent` columns, on several lines where one is too short; the first is not indented."""
    flat = _flat(value)
    if not is_root and indent + len(prefix) + len(flat) + 1 <= WIDTH:
        return prefix + flat
    pad = " " * (indent + 2)
    close = "\n" + " " * indent
    if is_ir_node(type(value)):
        lines = []
        for name, item in _arguments(value):
            nodes = is_root and isinstance(item, tuple) and any(is_ir_node(type(i)) for i in item)
            write = _rows if nodes else _block
            lines.append(pad + write(item, indent + 2, name) + ",")
        return prefix + type(value).__name__ + "(\n" + "\n".join(lines) + close + ")"
    if isinstance(value, tuple) and value:
        return _rows(value, indent, prefix)
    if isinstance(value, dict) and value:
        lines = [pad + _block(item, indent + 2, f"{_quote(key)}: ") + "," for key, item in value.items()]
        return prefix + "{\n" + "\n".join(lines) + close + "}"
    return prefix + flat  # a long string or number cannot be broken


def _rows(items: tuple[Any, ...], indent: int, prefix: str) -> str:
    """A tuple over several lines: one compound item per line, scalars filled up to the line width."""
    pad = " " * (indent + 2)
    if any(isinstance(item, tuple | dict) or is_ir_node(type(item)) for item in items):
        lines = [pad + _block(item, indent + 2) + "," for item in items]
    else:
        lines, line = [], pad
        for item in items:
            text = _flat(item) + ","
            if line != pad and len(line) + len(text) > WIDTH:
                lines.append(line.rstrip())
                line = pad
            line += text + " "
        lines.append(line.rstrip())
    return prefix + "[\n" + "\n".join(lines) + "\n" + " " * indent + "]"


# ------------------------------------------------------------------------------------------------- parsing


def parse_ir(text: str, kinds: Sequence[type[Any]], file: str = "<ir>") -> Any:
    """Read the text that `print_ir` wrote.

    `kinds` are the classes the text may contain; classes and enums that their field annotations name are
    added. The first of `kinds` that the header line names is the root. `file` is named in errors. Raises
    TileccError: TC0210 for malformed text, one for every mistake with its line, TC0211 when the text has
    another IR version.
    """
    return _Parser(file, tuple(kinds)).parse(text)


MAX_MISTAKES = 50
"""Mistakes of one text that are reported."""


class _Bad(enum.Enum):
    """Stands for a value that could not be read."""

    HERE = 0


class _Parser:
    def __init__(self, file: str, kinds: tuple[type[Any], ...]) -> None:
        self.file = file
        self.roots = kinds
        self.names = _closure(kinds)
        self.found: list[Diagnostic] = []

    def fail(self, line: int, message: str, help: str = "") -> TileccError:
        return error("TC0210", f"malformed IR text: {message}", span=Span(self.file, line), help=help)

    def note(self, line: int, message: str, help: str = "") -> _Bad:
        """Record a mistake and go on; what it spoils is not reported again."""
        if len(self.found) < MAX_MISTAKES:
            self.found += self.fail(line, message, help).diagnostics
        return _Bad.HERE

    def parse(self, text: str) -> Any:
        header, _, body = text.partition("\n")
        root = self.root_of(header)
        try:
            # the header's place is kept by an empty line, so that line numbers of `ast` are those of the text
            expression = ast.parse("\n" + body, mode="eval").body
        except SyntaxError as exc:
            raise self.fail(max(1, exc.lineno or 1), exc.msg) from None
        except (ValueError, RecursionError, MemoryError, OverflowError) as exc:
            raise self.fail(1, str(exc) or "nested too deeply") from None
        try:
            value = self.decode(expression)
        except RecursionError:
            raise self.fail(1, "nested too deeply") from None
        if self.found:
            raise TileccError(self.found)
        if type(value) is not root:
            raise self.fail(expression.lineno, f"expected one {root.__name__}(...), found {_describe(value)}")
        return value

    def root_of(self, header: str) -> type[Any]:
        known: dict[str, type[Any]] = {ir_header(cls)[0]: cls for cls in reversed(self.roots)}
        if not re.fullmatch(r"tilecc\.\w+ [0-9]+", header):
            raise self.fail(1, f"the first line must be `tilecc.<ir> <version>`, found {header[:60]!r}")
        name, found = header.removeprefix("tilecc.").split()
        if name not in known:
            raise self.fail(1, f"this is tilecc.{name}, expected tilecc." + " or tilecc.".join(known))
        version = ir_header(known[name])[1]
        if found != str(version):
            raise error(
                "TC0211",
                f"IR text has version tilecc.{name} {found}, this compiler reads tilecc.{name} {version}",
                span=Span(self.file, 1),
                help="compile the model again with this version of tilecc",
            )
        return known[name]

    def decode(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.decode(operand)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return -value
                if value is _Bad.HERE:
                    return value
            case ast.Name(id="inf"):
                return math.inf
            case ast.Name(id="nan"):
                return math.nan
            case ast.List(elts=items) | ast.Tuple(elts=items):
                values = tuple(self.decode(item) for item in items)
                return _Bad.HERE if _Bad.HERE in values else values
            case ast.Dict(keys=keys, values=values):
                return self.decode_dict(node, keys, values)
            case ast.Attribute(value=ast.Name(id=name), attr=member):
                cls = self.names.get(name)
                if cls is None or not issubclass(cls, enum.Enum) or member not in cls.__members__:
                    members = list(cls.__members__) if cls and issubclass(cls, enum.Enum) else []
                    return self.note(node.lineno, f"unknown name {name}.{member}", nearest(member, members))
                return cls[member]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                cls = self.names.get(name)
                if cls is None or not is_ir_node(cls):
                    known = sorted(k for k, v in self.names.items() if is_ir_node(v))
                    help = nearest(name, known) or "known: " + ", ".join(known)
                    return self.note(node.lineno, f"unknown node {name}", help)
                return self.decode_node(node.lineno, cls, args, keywords)
        return self.note(node.lineno, f"`{_unparsed(node)}` is not IR text")

    def decode_dict(
        self, node: ast.expr, keys: list[ast.expr | None], values: list[ast.expr]
    ) -> dict[str, Any] | _Bad:
        out: dict[str, Any] = {}
        bad = False
        for key, value in zip(keys, values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                self.note(value.lineno, "a dict key must be a string")
                bad = True
                continue
            if key.value in out:
                self.note(value.lineno, f"dict key {key.value!r} given twice")
                bad = True
            out[key.value] = self.decode(value)
        return _Bad.HERE if bad or _Bad.HERE in out.values() else out

    def decode_node(
        self, line: int, cls: type[Any], args: list[ast.expr], keywords: list[ast.keyword]
    ) -> Any:
        hints = _hints(cls)
        fields = _layout(cls)
        given: dict[str, Any] = {}
        bad: _Bad | None = None
        if len(args) > len(fields):
            return self.note(line, f"{cls.__name__} has {len(fields)} fields, {len(args)} values given")
        pairs = [(field.name, value) for field, value in zip(fields, args, strict=False)]
        pairs += [(keyword.arg or "**", keyword.value) for keyword in keywords]
        for name, expression in pairs:
            if name not in hints:
                message = f"{cls.__name__} has no field {name!r}"
                bad = self.note(expression.lineno, message, nearest(name, hints))
                continue
            if name in given:
                bad = self.note(expression.lineno, f"field {name!r} of {cls.__name__} given twice")
            value = self.decode(expression)
            if value is _Bad.HERE:
                bad = value
            elif not _matches(value, hints[name]):
                want = f"field {name!r} of {cls.__name__} must be {_type_name(hints[name])}"
                bad = self.note(expression.lineno, f"{want}, found {_describe(value)}")
            given[name] = value
        missing = [f.name for f in fields if f.name not in given and f.default is None]
        strange = any(name not in hints for name, _ in pairs)  # most likely the missing one, misspelt
        if missing and not strange:
            bad = self.note(line, f"{cls.__name__} lacks field {', '.join(map(repr, missing))}")
        if bad is not None:
            return bad
        try:
            return cls(**given)
        except (ValueError, TypeError) as exc:  # a class may check itself in __post_init__
            return self.note(line, f"{cls.__name__}: {exc}")


def _unparsed(node: ast.expr) -> str:
    """The start of an expression's text; of one nested too deeply for `ast.unparse`, its kind."""
    try:
        return ast.unparse(node)[:60]
    except (RecursionError, ValueError):
        return type(node).__name__


@_memo
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in _layout(cls)}


@_memo
def _closure(kinds: tuple[type[Any], ...]) -> dict[str, type[Any]]:
    """Classes reachable from `kinds` through field annotations, by name."""
    found: dict[str, type[Any]] = {}
    todo: list[Any] = list(kinds)
    while todo:
        hint = todo.pop()
        if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
            if not is_ir_node(hint) and not issubclass(hint, enum.Enum):
                continue
            if hint in found.values():
                continue  # a node may hold nodes of its own class
            if found.setdefault(hint.__name__, hint) is not hint:
                raise ValueError(f"two IR classes of one text are named {hint.__name__}")
            if is_ir_node(hint):
                todo += _hints(hint).values()
        else:
            todo += typing.get_args(hint)
    return found


def _matches(value: Any, hint: Any) -> bool:
    """Whether `value` fits the annotation `hint`. Unresolved names of recursive aliases match anything."""
    if hint is Any or hint is object or isinstance(hint, typing.ForwardRef | str | TypeVar):
        return True
    if hint is None or hint is type(None):
        return value is None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        return any(_matches(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple or hint is tuple:
        if not isinstance(value, tuple):
            return False
        if not args:
            return True
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_matches(item, args[0]) for item in value)
        return len(args) == len(value) and all(map(_matches, value, args))
    if origin is not None or hint is dict:  # dict, Mapping
        values = args[1] if len(args) == 2 else Any
        return isinstance(value, dict) and all(_matches(item, values) for item in value.values())
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint.__name__
    text = str(hint).replace("typing.", "")
    return text.replace("NoneType", "None")


def _describe(value: Any) -> str:
    text = _flat(value)
    return text if len(text) <= 60 else text[:57] + "..."
