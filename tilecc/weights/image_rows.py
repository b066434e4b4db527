"""Which source row every row of a matrix entry holds, and which scale row goes with it.

The three row rules put values that one lane must combine into rows r and r + 8 of a tile, which are
accumulators of the same lane: gate and up of one neuron, or the two partners of a rotation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilecc.diag import InternalError
from tilecc.package import ImageEntry
from tilecc.weights.layout import TILE_ROWS, qkv_head_tiles

SCALE_ROWS = 128
"""Rows that share one FP8 block scale."""

Index = NDArray[np.int64]


def source_rows(entry: ImageEntry) -> tuple[Index, Index]:
    """Return (source index, row in it) for every image row, both i64[tiles * 16]; -1 = a zero row."""
    row = np.arange(entry.tiles * TILE_ROWS, dtype=np.int64)
    tile, r = row // TILE_ROWS, row % TILE_ROWS
    if entry.rule == "plain":
        return _cut(np.zeros_like(row), row, entry.rows)
    if entry.rule == "gate_up":
        return _cut(r // 8, tile * 8 + r % 8, entry.rows // 2)
    if entry.rule == "qkv":
        rows = _qkv_rows(entry)
        return np.where(rows < 0, -1, 0), rows
    raise InternalError(f"image entry {entry.name}: unknown row rule {entry.rule}")


def scale_shape(entry: ImageEntry) -> tuple[int, int]:
    """Return the shape of the FP8 scale tensor that goes with one source of the entry."""
    columns = -(-entry.cols // 128)
    if entry.rule == "gate_up":
        return -(-(entry.rows // 2) // SCALE_ROWS), columns
    if entry.rule == "qkv":
        chunks = int(entry.args["chunks"])
        return chunks * -(-(entry.rows // chunks) // SCALE_ROWS), columns
    return -(-entry.rows // SCALE_ROWS), columns


def scale_rows(entry: ImageEntry, rows: Index) -> Index:
    """Return the FP8 scale row of each source row. The tiling restarts in every chunk of a fused qkv."""
    if entry.rule != "qkv":
        return rows // SCALE_ROWS
    chunks = int(entry.args["chunks"])
    per_chunk = entry.rows // chunks
    return rows // per_chunk * -(-per_chunk // SCALE_ROWS) + rows % per_chunk // SCALE_ROWS


def _cut(source: Index, row: Index, limit: int) -> tuple[Index, Index]:
    return np.where(row < limit, source, -1), np.where(row < limit, row, -1)


def _qkv_rows(entry: ImageEntry) -> Index:
    """Tiles of all Q heads, then K heads, then V heads; the source has them interleaved by chunk."""
    chunks, heads, kv_heads, dim, v_dim, rotary = (
        int(entry.args[a]) for a in ("chunks", "heads", "kv_heads", "head_dim", "v_head_dim", "rotary")
    )
    q_in_chunk, kv_in_chunk = heads // chunks, kv_heads // chunks
    per_chunk = entry.rows // chunks
    head_rows, value_rows = _rope_head(dim, v_dim, rotary), _value_head(dim, v_dim, rotary)

    def at(base: Index, pattern: Index) -> Index:
        return np.where(pattern < 0, -1, base[:, None] + pattern[None, :]).reshape(-1)

    q, kv = np.arange(heads, dtype=np.int64), np.arange(kv_heads, dtype=np.int64)
    q_base = q // q_in_chunk * per_chunk + q % q_in_chunk * dim
    k_base = kv // kv_in_chunk * per_chunk + q_in_chunk * dim + kv % kv_in_chunk * dim
    v_base = kv // kv_in_chunk * per_chunk + (q_in_chunk + kv_in_chunk) * dim + kv % kv_in_chunk * v_dim
    return np.concatenate([at(q_base, head_rows), at(k_base, head_rows), at(v_base, value_rows)])


def _rope_head(dim: int, v_dim: int, rotary: int) -> Index:
    """Dimension held by each image row of a Q or K head: rope tiles (partners 8 rows apart), then plain."""
    rope, plain, _ = qkv_head_tiles(dim, v_dim, rotary)
    half = rotary // 2
    row = np.arange(rope * TILE_ROWS, dtype=np.int64)
    j = row // TILE_ROWS * 8 + row % 8
    partner = row % TILE_ROWS // 8
    rotated = np.where(j < half, partner * half + j, -1)
    rest = rotary + np.arange(plain * TILE_ROWS, dtype=np.int64)
    return np.concatenate([rotated, np.where(rest < dim, rest, -1)])


def _value_head(dim: int, v_dim: int, rotary: int) -> Index:
    row = np.arange(qkv_head_tiles(dim, v_dim, rotary)[2] * TILE_ROWS, dtype=np.int64)
    return np.where(row < v_dim, row, -1)
