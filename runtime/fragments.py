"""Activations in the order of MMA fragments, as they lie in device memory. numpy alone.

Per 128 columns, tile of 8 rows, k16 step and lane 4 n + t: columns 2t, 2t + 1, 2t + 8, 2t + 9 of row n
(templates/include/op_common.cuh).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ACT_FACTOR = 2.0**96
"""Activations wait for the main loops multiplied by this (op_common.cuh, kActFactor): exact in bf16."""
ROWS = 8
BLOCK_COLS = 128


def to_fragments(x: NDArray[Any], max_rows: int = ROWS) -> NDArray[Any]:
    """Activations [up to max_rows, K] of any dtype, in fragment order: flat, K padded to a multiple of
    128 and rows to `max_rows` (a multiple of 8) with zeros."""
    rows, cols = x.shape
    padded = np.zeros((max_rows, -(-cols // BLOCK_COLS) * BLOCK_COLS), x.dtype)
    padded[:rows, :cols] = x
    steps = padded.reshape(
        max_rows // ROWS, ROWS, -1, 8, 2, 4, 2
    )  # row tile, row, block, step, half, t, element
    return np.ascontiguousarray(steps.transpose(2, 0, 3, 1, 5, 4, 6)).reshape(-1)


def to_activations(x: NDArray[Any], max_rows: int = ROWS) -> NDArray[Any]:
    """Activations bf16 [up to max_rows, K] as a main loop reads them: in fragment order, times ACT_FACTOR."""
    return to_fragments((x.astype(np.float32) * np.float32(ACT_FACTOR)).astype(x.dtype), max_rows)


def from_activations(flat: NDArray[Any], cols: int, max_rows: int = ROWS) -> NDArray[Any]:
    """The inverse: bf16 [..., max_rows, cols]."""
    x = from_fragments(flat, cols, max_rows)
    return (x.astype(np.float32) / np.float32(ACT_FACTOR)).astype(x.dtype)


def from_fragments(flat: NDArray[Any], cols: int, max_rows: int = ROWS) -> NDArray[Any]:
    """The inverse: [..., max_rows, cols] of [..., padded cols * max_rows]."""
    outer = flat.shape[:-1]
    # block, row tile, step, row, t, half, element
    steps = flat.reshape(*outer, -1, max_rows // ROWS, 8, ROWS, 4, 2, 2)
    n = flat.ndim - 1
    x = steps.transpose(*range(n), *(n + i for i in (1, 3, 0, 2, 5, 4, 6)))
    return np.ascontiguousarray(x).reshape(*outer, max_rows, -1)[..., :cols]
