"""The manifest of a package: what the compiler decided and the runtime must know, as frozen structs.

A package is the directory that ``tilecc compile`` writes. ``manifest.json`` is its only entry point: the
runtime never guesses a size, a symbol or an offset that is not in it. All byte counts are bytes, all offsets
are from the start of their buffer (weight image, workspace).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

from tilecc.diag import Span, TileccError, error

FORMAT_VERSION = 3
"""Version of the package layout, of the weight image and of this file. Another version is refused."""

ABI_VERSION = 1
"""Version of the launch ABI (``tilecc_params`` in templates/include/tilecc_params.h)."""

IR_VERSION = 1
"""Version of the Program (tilecc.ir.program) that a package was made from."""

MANIFEST_NAME = "manifest.json"

EntryKind = Literal["matrix", "norm", "f32", "embed", "rope"]
EntryFormat = Literal["bf16", "f32", "fp8_block", "mxfp4", "-"]
KvFormat = Literal["bf16", "fp8"]
RowRule = Literal["plain", "gate_up", "qkv", "-"]


class ImageEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the weight image: where its official source tensors go and in which block layout.

    ``rows`` and ``cols`` are the logical shape ([N, K] of a matrix; N counts both halves of "gate_up").
    ``sources`` are official tensor names, "{e}" stands for the expert index. ``experts`` is 0 for a matrix
    that is not stacked. ``tiles`` counts m16 tiles, ``k_blocks`` blocks of 128 columns. ``args`` are the
    numbers of the row rule (qkv: chunks, heads, kv_heads, head_dim, v_head_dim, rotary) or of the kind
    (rope: theta; f32: fill, pad_to).
    """

    name: str
    kind: EntryKind
    format: EntryFormat
    rule: RowRule
    sources: list[str]
    rows: int
    cols: int
    experts: int
    tiles: int
    k_blocks: int
    offset: int
    nbytes: int
    args: dict[str, int | float] = {}


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named range of the workspace. "zero" regions need zeros at the start of a session."""

    name: str
    offset: int
    nbytes: int
    init: Literal["zero", "none"] = "zero"


class Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names for the numbers of a status record: roles and ops by number, counters by number (one per 128
    bytes of the workspace region "counters"), mbarriers by place (8 bytes each from shared offset 0)."""

    roles: list[str] = []
    ops: list[str] = []
    counters: list[str] = []
    barriers: list[str] = []


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the runtime needs besides ``tables.bin`` and the built kernel."""

    format_version: int = FORMAT_VERSION
    abi_version: int = ABI_VERSION
    ir_version: int = IR_VERSION
    name: str
    model_file: str
    target: str
    tilecc_version: str
    config: dict[str, Any]
    kernel: str
    source: str
    text_sha256: str = ""
    """Of kernel and headers as they were written (tilecc.package.text): any other text was edited."""
    threads: int
    smem_bytes: int
    default_grid: int
    max_rows: int = 8
    max_context: int
    max_seqs: int
    vocab: int
    hidden: int
    image_bytes: int
    image: list[ImageEntry]
    workspace_bytes: int
    workspace: list[Region]
    kv_bytes: int
    kv_format: KvFormat = "bf16"
    tables: str = "tables.bin"
    tables_bytes: int
    decisions: list[dict[str, Any]] = []
    names: Names = Names()

    def entry(self, name: str) -> ImageEntry:
        """Return the image entry called ``name``. Raises KeyError."""
        for entry in self.image:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def to_json(self) -> bytes:
        """Return the file's text: indented JSON in field order, so equal manifests are equal bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def save(self, path: Path | str) -> Path:
        """Write ``manifest.json`` into the directory ``path`` (or to the file ``path``) and return its path.

        Written under a temporary name and renamed, so a reader sees the old file or the whole new one.
        """
        target = _file_of(Path(path))
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(self.to_json())
            # mkstemp makes private files; a package is an ordinary one.
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return target

    @classmethod
    def load(cls, path: Path | str) -> Manifest:
        """Read the manifest of a package directory (or the manifest file itself).

        Raises TC0601 (no package there), TC0602 (other version, with both numbers) and TC0603 (damaged).
        """
        given = Path(path)
        file = _file_of(given)
        try:
            text = file.read_bytes()
        except OSError as reason:
            raise error(
                "TC0601",
                f"`{given}` is not a tilecc package",
                note=f"cannot read `{file}`: {reason.strerror or reason}",
                help="`tilecc compile MODEL --target sm_90a -o DIR` writes a package directory",
            ) from None
        span = Span(str(file))
        _check_versions(text, span)
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as reason:
            raise _damaged(span, reason) from None


class _Versions(msgspec.Struct):
    """The numbers that are read before anything else of the file is trusted."""

    format_version: int
    abi_version: int
    ir_version: int = 0


def _check_versions(text: bytes, span: Span) -> None:
    try:
        found = msgspec.json.decode(text, type=_Versions)
    except msgspec.DecodeError as reason:
        raise _damaged(span, reason) from None
    wanted = {"format_version": FORMAT_VERSION, "abi_version": ABI_VERSION, "ir_version": IR_VERSION}
    for field, number in wanted.items():
        other = getattr(found, field)
        if other != number:
            raise error(
                "TC0602",
                f"the package has {field} {other}, this tilecc reads {field} {number}",
                span=span,
                help="compile the model again with the installed version",
            )


def _damaged(span: Span, reason: Exception) -> TileccError:
    return error(
        "TC0603", "the manifest is damaged", span=span, note=str(reason), help="compile the model again"
    )


def _file_of(path: Path) -> Path:
    """A directory stands for the manifest in it. A path that does not exist is taken as it is named."""
    return path if path.suffix == ".json" and not path.is_dir() else path / MANIFEST_NAME
