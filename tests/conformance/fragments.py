"""Where the elements of a matrix lie in the registers of a warp, from the tables of the PTX manual."""

from __future__ import annotations

import numpy as np

from tests.conformance.case import Array

LANE = np.arange(32)
G, T = LANE >> 2, LANE & 3


def matrix_elements(transposed: bool) -> tuple[Array, Array]:
    """(row, column) of the two 16-bit elements that a lane holds of an 8x8 matrix: [32, 2] each."""
    row, column = np.stack([G, G], 1), np.stack([2 * T, 2 * T + 1], 1)
    return (column, row) if transposed else (row, column)


def a_elements(per: int) -> tuple[Array, Array]:
    """(row, k) of A[16][8 per]: [32 lanes, 4 registers, per elements] each; per = 2 (16 bit) or 4 (8 bit)."""
    i, e = np.arange(4)[None, :, None], np.arange(per)[None, None, :]
    row = G[:, None, None] + 8 * (i & 1) + 0 * e
    k = per * T[:, None, None] + e + 4 * per * (i >> 1)
    return row, k


def b_elements(per: int) -> tuple[Array, Array]:
    """(k, column) of B[8 per][8]: [32, 2, per] each."""
    i, e = np.arange(2)[None, :, None], np.arange(per)[None, None, :]
    return per * T[:, None, None] + e + 4 * per * i, G[:, None, None] + 0 * (i + e)


def c_elements() -> tuple[Array, Array]:
    """(row, column) of C[16][8]: [32, 4] each."""
    i = np.arange(4)[None, :]
    return G[:, None] + 8 * (i >> 1), 2 * T[:, None] + (i & 1)
