"""Sizes and offsets of the weight image, shared by the compiler and the image builder. No numpy here.

The image does not depend on the schedule: it is a function of the model's shapes and formats only. A matrix
is cut into m16 tiles (16 rows) and K blocks (128 columns); one block holds the codes in MMA-fragment order
with its scales and is moved by one bulk copy. Byte layouts: tilecc/weights/image.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tilecc.diag import InternalError
from tilecc.package import EntryFormat, EntryKind, ImageEntry, RowRule

TILE_ROWS = 16
BLOCK_COLS = 128
ENTRY_ALIGN = 256

# bf16: 8 steps x 32 lanes x 8 x 2 B. f32: the same x 4 B. fp8: 16 x 128 codes + 16 f32 row scales.
# mxfp4: 16 x 128 nibbles + 16 x 4 scale bytes.
BLOCK_BYTES: dict[str, int] = {"bf16": 4096, "f32": 8192, "fp8_block": 2112, "mxfp4": 1088}

QKV_ARGS = ("chunks", "heads", "kv_heads", "head_dim", "v_head_dim", "rotary")


def matrix_entry(
    name: str,
    format: EntryFormat,
    rule: RowRule,
    sources: Sequence[str],
    rows: int,
    cols: int,
    experts: int = 0,
    **args: int,
) -> ImageEntry:
    """Return the entry of a weight matrix [rows, cols], not yet placed (offset 0).

    "plain" and "qkv" have one source, "gate_up" two of rows / 2 each, so ``rows`` = 2 x intermediate width.
    ``args`` of "qkv": chunks, heads, kv_heads, head_dim, v_head_dim, rotary. Raises InternalError when the
    numbers contradict each other: shapes are the tracer's to check, against the user's file.
    """
    if format not in BLOCK_BYTES:
        raise InternalError(f"image entry {name}: no block layout for format {format!r}")
    wanted = 2 if rule == "gate_up" else 1
    if len(sources) != wanted or rows <= 0 or cols <= 0 or experts < 0:
        raise InternalError(
            f"image entry {name}: {rule} of {len(sources)} sources, [{rows}, {cols}] x {experts}"
        )
    if format == "mxfp4" and cols % 32 != 0:
        raise InternalError(f"image entry {name}: {cols} columns are not whole MXFP4 groups of 32")
    entry = ImageEntry(
        name=name,
        kind="matrix",
        format=format,
        rule=rule,
        sources=list(sources),
        rows=rows,
        cols=cols,
        experts=experts,
        tiles=0,
        k_blocks=_ceil(cols, BLOCK_COLS),
        offset=0,
        nbytes=0,
        args=dict(args),
    )
    entry = msgspec.structs.replace(entry, tiles=_tiles(entry))
    return msgspec.structs.replace(entry, nbytes=entry_bytes(entry))


def vector_entry(
    name: str,
    kind: EntryKind,
    sources: Sequence[str],
    rows: int,
    cols: int,
    **args: int | float,
) -> ImageEntry:
    """Return the entry of anything that is not a matrix, not yet placed.

    * "norm":  rows 1, cols = length; bf16, permuted per k16 step, padded to 128 with zeros.
    * "f32":   rows 1, cols = length; args ``fill`` (0) and ``pad_to``, the elements stored (cols).
      No source means a constant vector of ``fill``, and so does ``optional`` = 1 if the tensor is absent.
    * "embed": rows = vocabulary, cols = hidden; bf16, each row as "norm".
    * "rope":  rows = positions, cols = rotary / 2; arg ``theta``; no source: it is computed. f32 (cos, sin).
    """
    formats: dict[str, EntryFormat] = {"norm": "bf16", "f32": "f32", "embed": "bf16", "rope": "f32"}
    sourceless = kind == "rope" or (kind == "f32" and not sources)
    if kind not in formats or rows <= 0 or cols <= 0 or len(sources) != (0 if sourceless else 1):
        raise InternalError(f"image entry {name}: {kind} of {len(sources)} sources, [{rows}, {cols}]")
    if kind in ("norm", "f32") and rows != 1:
        raise InternalError(f"image entry {name}: a {kind} vector has {rows} rows")
    if kind == "rope" and not args.get("theta", 0) > 0:
        raise InternalError(f"image entry {name}: a rope table needs theta")
    if 0 < args.get("pad_to", 0) < cols:
        raise InternalError(f"image entry {name}: {cols} elements padded to {args['pad_to']}")
    entry = ImageEntry(
        name=name,
        kind=kind,
        format=formats[kind],
        rule="-",
        sources=list(sources),
        rows=rows,
        cols=cols,
        experts=0,
        tiles=0,
        k_blocks=_ceil(cols, BLOCK_COLS) if kind in ("norm", "embed") else 0,
        offset=0,
        nbytes=0,
        args=dict(args),
    )
    return msgspec.structs.replace(entry, nbytes=entry_bytes(entry))


def lay_out(entries: Iterable[ImageEntry]) -> tuple[list[ImageEntry], int]:
    """Place the entries one after the other on 256-byte boundaries: (placed entries, bytes of the image)."""
    placed: list[ImageEntry] = []
    seen: set[str] = set()
    at = 0
    for entry in entries:
        if entry.name in seen:
            raise InternalError(f"two image entries are called {entry.name}")
        seen.add(entry.name)
        placed.append(msgspec.structs.replace(entry, offset=at, nbytes=entry_bytes(entry)))
        at = _ceil(at + placed[-1].nbytes, ENTRY_ALIGN) * ENTRY_ALIGN
    return placed, at


def entry_bytes(entry: ImageEntry) -> int:
    """Return the bytes of an entry, from its shape alone."""
    if entry.kind == "matrix":
        return max(entry.experts, 1) * entry.tiles * entry.k_blocks * BLOCK_BYTES[entry.format]
    if entry.kind in ("norm", "embed"):
        return entry.rows * entry.k_blocks * BLOCK_COLS * 2
    if entry.kind == "rope":
        return entry.rows * entry.cols * 8
    return max(entry.cols, int(entry.args.get("pad_to", 0))) * 4


def qkv_head_tiles(head_dim: int, v_head_dim: int, rotary: int) -> tuple[int, int, int]:
    """Return the m16 tiles of one Q or K head (rope tiles, plain tiles) and of one V head.

    A rope tile holds eight rotation partners (j, j + rotary/2): rows 0-7 and 8-15.
    """
    return _ceil(rotary // 2, 8), _ceil(head_dim - rotary, TILE_ROWS), _ceil(v_head_dim, TILE_ROWS)


def _tiles(entry: ImageEntry) -> int:
    if entry.rule == "plain":
        return _ceil(entry.rows, TILE_ROWS)
    if entry.rule == "gate_up":
        if entry.rows % 2 != 0:
            raise InternalError(f"image entry {entry.name}: {entry.rows} rows are not two equal halves")
        return _ceil(entry.rows // 2, 8)
    if entry.rule != "qkv" or sorted(entry.args) != sorted(QKV_ARGS):
        raise InternalError(f"image entry {entry.name}: rule {entry.rule} with args {sorted(entry.args)}")
    chunks, heads, kv_heads, head_dim, v_head_dim, rotary = (int(entry.args[a]) for a in QKV_ARGS)
    rows = (heads + kv_heads) * head_dim + kv_heads * v_head_dim
    whole = chunks > 0 and heads % chunks == 0 and kv_heads % chunks == 0
    if rows != entry.rows or not whole or rotary % 2 != 0 or not 0 <= rotary <= head_dim:
        raise InternalError(f"image entry {entry.name}: {entry.rows} rows do not fit {entry.args}")
    rope, plain, value = qkv_head_tiles(head_dim, v_head_dim, rotary)
    return (heads + kv_heads) * (rope + plain) + kv_heads * value


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
