"""Edits of a package's kernel text, all built into one library and chosen at run time.

A site is a piece of the text; a mutation gives other text for some sites. Every site that some mutation
touches becomes ``if (tk_inject == 1) {...} else if (tk_inject == 2) {...} else {as emitted}``, so that one
compilation serves the whole table and number 0 is the emitted kernel.
"""

from __future__ import annotations

import ctypes
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilecc.package import Manifest
from tilecc.runtime.devices.emulator import EmulatorDevice
from tilecc.runtime.engine import Engine

ROW_WORDS = 20  # of one row of the op table, `OpRow` in include/op_common.cuh


@dataclass(frozen=True)
class Site:
    """``text`` occurs exactly ``count`` times in ``file`` (relative to the package). ``expression``: it is
    one, otherwise whole statements."""

    file: str
    text: str
    count: int = 1
    expression: bool = False


@dataclass(frozen=True)
class Expected:
    """A finding: its class, text in a line that it names ("" as ``file``: of any file), and text in its
    message or notes."""

    code: str
    file: str
    line: str
    says: str = ""


@dataclass(frozen=True)
class Mutation:
    """``edits``: site -> text in its place; ``data``: changes the op table, given as u32[rows, 20], with the
    bytes of the weight image. ``expected``: any of these must be among the findings; none for
    a harmless mutation. ``bug``: number of the class in the table of bug classes. A launch ends at
    ``max_findings``: what follows a mistake need not be looked at."""

    edits: Mapping[Site, str]
    expected: tuple[Expected, ...] = ()
    bug: int = 0
    data: Callable[[NDArray[np.uint32], int], None] | None = None
    max_findings: int = 2


def combined(package: Path, out: Path, mutations: Sequence[Mutation]) -> Path:
    """Copy a package with all mutations in its text; number i + 1 is ``mutations[i]``.

    Raises ValueError for a site that does not occur as often as it says, or that overlaps another.
    """
    shutil.copytree(package, out)
    sites: dict[Site, dict[int, str]] = defaultdict(dict)
    for number, mutation in enumerate(mutations, 1):
        for site, text in mutation.edits.items():
            sites[site][number] = text
    source = Manifest.load(package).source
    for file in sorted({site.file for site in sites} | {source}):
        spans: list[tuple[int, int, str]] = []
        text = (package / file).read_text()
        for site, alternatives in sites.items():
            if site.file != file:
                continue
            if text.count(site.text) != site.count:
                raise ValueError(f"{file}: {text.count(site.text)} times, not {site.count}: {site.text}")
            at = -1
            for _ in range(site.count):
                at = text.index(site.text, at + 1)
                spans.append((at, at + len(site.text), _choice(site, alternatives)))
        spans.sort(reverse=True)
        for (start, _, new), (_, end, _) in pairwise(spans):
            if end > start:
                raise ValueError(f"{file}: two sites overlap before {new}")
        for start, end, new in spans:
            text = text[:start] + new + text[end:]
        if file == source:
            text = (
                'extern "C" __attribute__((visibility("default"))) int tk_inject;\nint tk_inject = 0;\n'
                + text
            )
        (out / file).write_text(text)
    return out


def _choice(site: Site, alternatives: Mapping[int, str]) -> str:
    text = site.text
    for number, new in alternatives.items():
        if site.expression:
            text = f"(::tk_inject == {number} ? ({new}) : {text})"
        else:
            text = f"if (::tk_inject == {number}) {{ {new}\n}} else {{ {text}\n}}"
    return text if site.expression else f"{{ {text} }}"


@contextmanager
def selected(engine: Engine, number: int, mutation: Mutation) -> Iterator[None]:
    """Launches run mutation ``number`` of a package made by :func:`combined`; 0 is the text as emitted."""
    assert isinstance(engine.device, EmulatorDevice)
    library = ctypes.CDLL(str(engine.device.library_path))
    chosen = ctypes.c_int.in_dll(library, "tk_inject")
    table = engine.session.tables.handle.view(np.uint32).reshape(-1, ROW_WORDS)
    before = table.copy()
    if mutation.data is not None:
        mutation.data(table, engine.manifest.image_bytes)
    chosen.value = number
    try:
        yield
    finally:
        chosen.value = 0
        table[:] = before
