"""The launch ABI on the Python side: numpy and ctypes mirrors of templates/include/tilecc_params.h.

tests/runtime/test_abi.py compiles the header and compares every size and offset with this file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 8
"""Rows of a step, unless the package was compiled for more (``max_rows`` of its manifest)."""

STATUS_WORDS = 64
PREVIOUS_ARGMAX = -1
"""As a row's token: the argmax of the previous step's last row, taken on the device."""

ROW = np.dtype([("token", "<i4"), ("position", "<i4"), ("seq", "<i4"), ("flags", "<i4")])

Row = tuple[int, int, int]
"""(token, absolute position, sequence slot)."""


class Params(ctypes.Structure):
    """``struct tilecc_params``: device pointers and counts of one launch."""

    _fields_ = [
        ("image", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("kv", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("tokens_out", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("stop_ids", ctypes.c_void_p),
        ("status", ctypes.c_void_p),
        ("n_steps", ctypes.c_uint32),
        ("n_stop", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


def step_type(max_rows: int = MAX_ROWS) -> np.dtype[np.void]:
    """``struct tilecc_step`` of a package whose steps have up to ``max_rows`` rows."""
    return np.dtype([("n_rows", "<i4"), ("reserved", "<i4", (3,)), ("rows", ROW, (max_rows,))])


def pack_steps(steps: Sequence[Sequence[Row]], max_rows: int = MAX_ROWS) -> NDArray[np.void]:
    """Return the row table of a launch, step_type(max_rows)[len(steps)]. Unused rows are zero."""
    table = np.zeros(len(steps), step_type(max_rows))
    for s, rows in enumerate(steps):
        table[s]["n_rows"] = len(rows)
        for i, (token, position, seq) in enumerate(rows):
            table[s]["rows"][i] = (token, position, seq, 0)
    return table
