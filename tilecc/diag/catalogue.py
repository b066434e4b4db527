"""All diagnostic codes, merged from one file per range.

TC01xx model file and tracing, TC02xx lowering and shapes (codes_model.py, codes_passes.py); TC03xx checkpoint
and weights (codes_weights.py); TC04xx runtime: prompt, context, device, TC05xx toolchain, TC06xx package and
manifest (codes_runtime.py); TC07xx target, schedule and command line (codes_target.py); TC08xx
what the checker finds in a program (codes_check.py); TC09xx what the
emulator finds in a kernel (codes_emulator.py).

Codes are never reused or renumbered. A new code needs an entry here and a test that triggers it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tilecc.diag import (
    codes_check,
    codes_emulator,
    codes_model,
    codes_passes,
    codes_runtime,
    codes_target,
    codes_weights,
)
from tilecc.diag.entry import Entry
from tilecc.diag.model import Diagnostic, InternalError, error, nearest

# Worst first: with several findings the exit code is the first of these that occurs.
_EXIT_ORDER = (70, 3, 5, 4, 2, 1)


def _merge(*tables: dict[str, Entry]) -> dict[str, Entry]:
    merged: dict[str, Entry] = {}
    for table in tables:
        for code, entry in table.items():
            if code in merged:
                raise InternalError(f"diagnostic code {code} is defined twice")
            merged[code] = entry
    return dict(sorted(merged.items()))


CATALOGUE: dict[str, Entry] = _merge(
    codes_model.ENTRIES,
    codes_passes.ENTRIES,
    codes_weights.ENTRIES,
    codes_runtime.ENTRIES,
    codes_target.ENTRIES,
    codes_check.ENTRIES,
    codes_emulator.ENTRIES,
)


def exit_code_of(diagnostics: Iterable[Diagnostic]) -> int:
    """Return the exit code of a set of findings: the worst by kind, 1 when a code is not in the catalogue."""
    codes = {CATALOGUE[d.code].exit_code if d.code in CATALOGUE else 1 for d in diagnostics}
    return next((code for code in _EXIT_ORDER if code in codes), 1)


def explain(code: str) -> str:
    """Return the explain page of ``code`` as plain text. Raises TC0702 for an unknown code."""
    wanted = code.strip().upper()
    entry = CATALOGUE.get(wanted)
    if entry is None:
        raise error(
            "TC0702",
            f"no diagnostic has the code `{code}`",
            note=f"codes go from {next(iter(CATALOGUE))} to {next(reversed(CATALOGUE))}",
            help=[nearest(wanted, CATALOGUE), "`tilecc explain --list` lists all codes"],
        )
    parts = [f"{wanted}: {entry.title}", "", entry.explanation.strip()]
    for name, text in (("Wrong", entry.wrong), ("Right", entry.right)):
        parts += ["", f"{name}:", ""]
        parts += [f"    {line}".rstrip() for line in text.strip("\n").splitlines()]
    parts += ["", f"Exit code: {entry.exit_code}"]
    return "\n".join(parts) + "\n"
