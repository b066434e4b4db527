"""The text of a package: the kernel and the headers it includes, and whether somebody edited them."""

from __future__ import annotations

import hashlib
from pathlib import Path

PRIMITIVES = "tk_"
"""Begin of the names of the primitive headers, which the rules for emitted text do not apply to."""

HOST_HEADERS = ("tilecc.h", "tilecc_ffi.h")
"""Headers of the host launcher, which the build puts beside the kernel's: no part of its text."""


def text_files(package: Path, source: str) -> list[Path]:
    """The kernel ``source`` and every header of the package but the primitive and the host ones."""
    headers = sorted(p for p in (package / "include").glob("*") if p.suffix in (".h", ".cuh"))
    return [
        package / source,
        *(h for h in headers if not h.name.startswith(PRIMITIVES) and h.name not in HOST_HEADERS),
    ]


def text_digest(package: Path, source: str) -> str:
    """SHA-256 over names and bytes of :func:`text_files`, in hex. Raises OSError if one is missing."""
    digest = hashlib.sha256()
    for path in text_files(package, source):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
