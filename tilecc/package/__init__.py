"""The package format: the contract between the compiler, the builders and the runtime."""

from tilecc.package.manifest import (
    ABI_VERSION,
    FORMAT_VERSION,
    IR_VERSION,
    MANIFEST_NAME,
    EntryFormat,
    EntryKind,
    ImageEntry,
    Manifest,
    Names,
    Region,
    RowRule,
)
from tilecc.package.text import text_digest, text_files

__all__ = [
    "ABI_VERSION",
    "FORMAT_VERSION",
    "IR_VERSION",
    "MANIFEST_NAME",
    "EntryFormat",
    "EntryKind",
    "ImageEntry",
    "Manifest",
    "Names",
    "Region",
    "RowRule",
    "text_digest",
    "text_files",
]
