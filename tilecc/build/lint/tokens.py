"""C++ tokens with their places; comments dropped, preprocessor lines kept apart."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n\f\v]+|\\\n)
  | (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<raw>(?:u8|[uUL])?R"(?P<mark>[^()\\\s]{0,16})\(.*?\)(?P=mark)")
  | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
  | (?P<char>(?:u8|[uUL])?'(?:\\.|[^'\\\n])*')
  | (?P<number>\.?\d(?:[eEpP][+-]|['\w.])*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<op><<<|>>>|<<=|->\*|\.\.\.|<=>|::|->|\+\+|--|<<|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[^\s])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """``kind``: word, number, string, char or op. ``device_only``: inside ``#if`` of ``__CUDACC__``."""

    kind: str
    text: str
    line: int
    col: int
    directive: bool = False
    device_only: bool = False


@dataclass(frozen=True)
class Directive:
    """A preprocessor line; ``name`` is ``include``, ``define``, ..."""

    name: str
    text: str
    line: int
    col: int


def tokenize(text: str) -> tuple[list[Token], list[Directive]]:
    """Split C++ text. Bodies of ``#define`` are tokens too (``directive``); other directives only lines."""
    starts = [0] + [m.end() for m in re.finditer("\n", text)]

    def place(at: int) -> tuple[int, int]:
        row = bisect_right(starts, at)
        return row, at - starts[row - 1] + 1

    tokens: list[Token] = []
    directives: list[Directive] = []
    regions: list[bool] = []  # of every open #if: does it hold device-only text
    at, line_begin, directive_end = 0, True, -1
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None  # the last alternative takes any character
        kind, word = found.lastgroup or "", found.group()
        if kind == "mark":
            kind = "raw"
        if kind in ("space", "comment"):
            line_begin = line_begin or ("\n" in word and not word.startswith("\\"))
            at = found.end()
            continue
        if word == "#" and line_begin and at >= directive_end:
            end = re.compile(r"(?:\\\n|[^\n])*").match(text, at).end()  # type: ignore[union-attr]
            whole = text[at:end]
            name = re.match(r"#\s*(\w*)", whole).group(1)  # type: ignore[union-attr]
            directives.append(Directive(name, whole, *place(at)))
            _open_or_close(regions, name, whole)
            if name == "define":  # read on inside it
                head = re.match(r"#\s*define\s+\w+(?:\([^)]*\))?", whole)
                at, directive_end = at + (head.end() if head else len(whole)), end
            else:
                at = end
            line_begin = False
            continue
        line_begin = False
        if kind == "raw":
            kind = "string"
        tokens.append(Token(kind, word, *place(at), at < directive_end, any(regions)))
        at = found.end()
    return tokens, directives


def _open_or_close(regions: list[bool], name: str, whole: str) -> None:
    device = re.search(r"\b(__CUDACC__|__CUDA_ARCH__|__NVCC__)\b", whole) is not None
    if name in ("if", "ifdef", "ifndef"):
        regions.append(device)
    elif name == "elif" and regions:
        regions[-1] = regions[-1] or device
    elif name == "endif" and regions:
        regions.pop()
