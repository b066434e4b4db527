"""The op table: one 80-byte row per op of the program, as templates/include/op_common.cuh declares it
(OpRow)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tilecc.ir.program import OpRowSpec, Program
from tilecc.package import ImageEntry

ROW = struct.Struct("<8I 9i 3I")
IMAGE_UNIT = 256
MAX_WAITS = 3


def build_tables(program: Program, image: Sequence[ImageEntry]) -> bytes:
    """Rows of prologue, layers x body, epilogue; a layer that lacks a class of the body has a zero row."""
    offsets = {entry.name: entry.offset for entry in image}
    by_place: dict[tuple[int, str], OpRowSpec] = {}
    outside: list[OpRowSpec] = []
    for row in program.rows:
        if row.layer < 0:
            outside.append(row)
        else:
            by_place[row.layer, row.op] = row
    absent = bytes(ROW.size)
    parts = [_row(row, offsets) for row in outside[: len(program.prologue)]]
    for layer in range(program.layers):
        for name in program.body:
            found = by_place.get((layer, name))
            parts.append(_row(found, offsets) if found is not None else absent)
    parts += [_row(row, offsets) for row in outside[len(program.prologue) :]]
    return b"".join(parts)


def _row(row: OpRowSpec, offsets: dict[str, int]) -> bytes:
    def unit(use: str) -> int:
        return offsets[row.weights[use]] // IMAGE_UNIT if use in row.weights else 0

    waits: list[int] = []
    for wait in row.waits:
        waits += [wait.counter, wait.per_step, wait.ordinal]
    waits += [0] * (3 * MAX_WAITS - len(waits))
    return ROW.pack(
        1, max(row.layer, 0), unit("matrix"), unit("norm"), unit("aux"), row.kv_offset // IMAGE_UNIT,
        len(row.waits), 0,
        *waits, row.pushed, row.polled, 0,
    )  # fmt: skip
