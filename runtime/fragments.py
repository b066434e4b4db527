"""Activations in the order of MMA fragments, as they lie in device memory. numpy alone.

Per k16 step and lane 4 n + t: columns 2t, 2t + 1, 2t + 8, 2t + 9 of row n (templates/include/op_common.cuh).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 8
BLOCK_COLS = 128


def to_fragments(x: NDArray[Any]) -> NDArray[Any]:
    """Activations [8, K] of any dtype, in fragment order: flat, K padded to a multiple of 128 with zeros."""
    rows, cols = x.shape
    padded = np.zeros((ROWS, -(-cols // BLOCK_COLS) * BLOCK_COLS), x.dtype)
    padded[:rows, :cols] = x
    steps = padded.reshape(ROWS, -1, 2, 4, 2)  # row, step, half, t, element
    return np.ascontiguousarray(steps.transpose(1, 0, 3, 2, 4)).reshape(-1)


def from_fragments(flat: NDArray[Any], cols: int) -> NDArray[Any]:
    """The inverse: [..., 8, cols] of [..., padded cols * 8]."""
    steps = flat.reshape(*flat.shape[:-1], -1, ROWS, 4, 2, 2)  # step, row, t, half, element
    n = flat.ndim - 1
    x = steps.transpose(*range(n), n + 1, n, n + 3, n + 2, n + 4)
    return np.ascontiguousarray(x).reshape(*flat.shape[:-1], ROWS, -1)[..., :cols]
