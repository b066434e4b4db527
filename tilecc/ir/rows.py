"""How many rows a step may have, and what follows from it alone. The layouts are those of
templates/include/op_common.cuh, whose static_asserts check the sizes.
"""

from __future__ import annotations

TILE_ROWS = 8
"""Rows of one row tile: the N side of an MMA."""

ROW_COUNTS = (8, 16, 32, 64)
"""Legal largest numbers of rows of a step: 1, 2, 4 or 8 row tiles."""

BASE_ROWS = 8
"""The choices that decide a row's bits (splits of K and of the context, warps that share K) are those of a
program of so many rows: programs of any number of rows give the same bits."""

MAX_TOP_K = 8
"""Experts per row that the routing record has room for."""

DENSE_ROWS = 16
_STARTS = 16


def row_tiles(rows: int) -> int:
    """Row tiles of a step of up to `rows` rows."""
    return rows // TILE_ROWS


def act_block_bytes(rows: int) -> int:
    """Activations of all rows and 128 columns in bf16."""
    return rows * 256


def routing_bytes(rows: int) -> int:
    """Shared memory of the routing record (Smem in op_common.cuh)."""
    selections = rows * MAX_TOP_K
    # Weights by place and row, or a list with masks of two words and a start for every place.
    weights = selections * rows if rows <= DENSE_ROWS else selections + 3 * selections
    return -(-(16 + 4 * (selections + weights + 2 * selections + _STARTS)) // 128) * 128
