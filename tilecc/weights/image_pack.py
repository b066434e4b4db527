"""Packers: source tensors to the bytes of one image entry, in MMA-fragment order. Vectorised numpy.

A block is one m16 tile x 128 columns = 8 steps of m16k16. With lane = 4 g + t, the eight A elements of a lane
in a step are, in this order (PTX ISA, mma.m16n8k16 fragment of A):
(g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1) (g, 2t+8) (g, 2t+9) (g+8, 2t+8) (g+8, 2t+9).
Splitting rows as [half 2][g 8] and the columns of a step as [half 2][t 4][e 2] makes every layout an axis
permutation: the element number is (column half, row half, e).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.diag import Span, TileccError, error
from tilecc.package import ImageEntry
from tilecc.weights.image_rows import Index, scale_rows, source_rows
from tilecc.weights.layout import BLOCK_BYTES, BLOCK_COLS, TILE_ROWS

Bytes = NDArray[np.uint8]

MXFP4_MAX_SCALE = 252
"""Largest legal E8M0 byte: 2^(252 - 127) x 6 is still finite in bf16 and float32."""
MXFP4_GROUP = 32


def pack_matrix(
    entry: ImageEntry, values: list[NDArray[Any]], scales: list[NDArray[Any]], names: list[str]
) -> Bytes:
    """Return the blocks of one (expert's) matrix, u8[tiles, k_blocks, block bytes].

    ``values``: one array per source, [rows, cols] (mxfp4: u8[rows, cols / 2]); ``scales``: the matching scale
    tensors of fp8_block (f32) and mxfp4 (u8), else empty; ``names``: tensor names for messages.
    Raises TC0307 (illegal scale) and TC0308 (NaN code), naming the tensor and the position.
    """
    source, row = source_rows(entry)
    out = np.zeros((entry.tiles, entry.k_blocks, BLOCK_BYTES[entry.format]), np.uint8)
    if entry.format == "mxfp4":
        _pack_mxfp4(entry, values, scales, names, source, row, out)
    elif entry.format == "fp8_block":
        _pack_fp8(entry, values, scales, names, source, row, out)
    else:
        dtype = np.uint16 if entry.format == "bf16" else np.uint32
        bits = [v.view(dtype) for v in values]
        grid = _grid(_gather(entry, bits, source, row, entry.cols, BLOCK_COLS))
        # grid axes: 0 tile, 1 row half, 2 g, 3 block, 4 step, 5 column half, 6 t, 7 e
        order = (0, 3, 4, 2, 6, 5, 1, 7) if entry.format == "bf16" else (0, 3, 4, 5, 2, 6, 1, 7)
        flat = out.view(dtype)
        flat[:] = grid.transpose(order).reshape(flat.shape)
    return out


def pack_vector(values: NDArray[Any], k_blocks: int) -> NDArray[np.uint16]:
    """Return bf16[rows, cols] as u16[rows, k_blocks * 128]: per k16 step [t 4][2t, 2t+1, 2t+8, 2t+9]."""
    rows, cols = values.shape
    padded = np.zeros((rows, k_blocks * BLOCK_COLS), np.uint16)
    padded[:, :cols] = values.view(np.uint16)
    steps = padded.reshape(rows, -1, 2, 4, 2)
    return steps.transpose(0, 1, 3, 2, 4).reshape(rows, -1)


def rope_table(positions: int, half: int, theta: float) -> NDArray[np.float32]:
    """Return f32[positions, half, 2] = (cos, sin) of p * inv_j, inv_j = theta^(-j / half).

    inv_j and the angle are rounded to float32 as in the model (mimo 2.4); cos and sin are computed in float64
    and rounded once, so the table does not depend on the vector library of the machine.
    """
    inverse = (float(theta) ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float32)
    angle = (np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]).astype(np.float64)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)


def _pack_fp8(
    entry: ImageEntry,
    values: list[NDArray[Any]],
    scales: list[NDArray[Any]],
    names: list[str],
    source: Index,
    row: Index,
    out: Bytes,
) -> None:
    codes = [v.view(np.uint8) for v in values]
    for code, scale, name in zip(codes, scales, names, strict=True):
        _refuse((code & 0x7F) == 0x7F, code, name, "TC0308", "is the FP8 code of NaN")
        _refuse(~np.isfinite(scale), scale, name + "_scale_inv", "TC0307", "is not a finite scale")
    # Two adjacent columns travel as one u16: half the elements to permute.
    grid = _gather(entry, codes, source, row, entry.cols, BLOCK_COLS).view(np.uint16)
    pairs = grid.reshape(entry.tiles, 2, 8, entry.k_blocks, 4, 2, 2, 4)
    # axes: 0 tile, 1 row half, 2 g, 3 block, 4 step pair, 5 step of the pair, 6 column half, 7 t
    packed = pairs.transpose(0, 3, 4, 2, 7, 5, 6, 1).reshape(entry.tiles, entry.k_blocks, -1)
    out[:, :, :2048] = packed.view(np.uint8)
    per_row = np.zeros((entry.tiles * TILE_ROWS, entry.k_blocks), np.float32)
    for index, scale in enumerate(scales):
        mine = source == index
        per_row[mine] = scale[scale_rows(entry, row[mine])]
    blocks = per_row.reshape(entry.tiles, TILE_ROWS, entry.k_blocks).transpose(0, 2, 1)
    out[:, :, 2048:] = np.ascontiguousarray(blocks).view(np.uint8)


def _pack_mxfp4(
    entry: ImageEntry,
    values: list[NDArray[Any]],
    scales: list[NDArray[Any]],
    names: list[str],
    source: Index,
    row: Index,
    out: Bytes,
) -> None:
    for scale, name in zip(scales, names, strict=True):
        bad = scale > MXFP4_MAX_SCALE
        _refuse(bad, scale, name.removesuffix(".weight") + ".weight_scale", "TC0307", "exceeds 252")
    # A source byte is two adjacent columns, low nibble first: exactly elements (2t, 2t+1) of a lane, so bytes
    # move whole and byte b of the lane's u32 holds elements 2b and 2b + 1.
    grid = _gather(entry, values, source, row, entry.cols // 2, BLOCK_COLS // 2)
    pairs = grid.reshape(entry.tiles, 2, 8, entry.k_blocks, 4, 2, 2, 4)
    packed = pairs.transpose(0, 3, 4, 2, 7, 5, 6, 1).reshape(entry.tiles, entry.k_blocks, -1)
    out[:, :, :1024] = packed
    groups = _gather(entry, scales, source, row, entry.cols // MXFP4_GROUP, 4, fill=0x7F)
    blocks = groups.reshape(entry.tiles, TILE_ROWS, entry.k_blocks, 4).transpose(0, 2, 1, 3)
    out[:, :, 1024:] = blocks.reshape(entry.tiles, entry.k_blocks, -1)


def _gather(
    entry: ImageEntry,
    arrays: list[NDArray[Any]],
    source: Index,
    row: Index,
    width: int,
    per_block: int,
    fill: int = 0,
) -> NDArray[Any]:
    """Return [tiles * 16, k_blocks * per_block]: source rows in image order, ``fill`` outside the tensor."""
    out = np.full((entry.tiles * TILE_ROWS, entry.k_blocks * per_block), fill, arrays[0].dtype)
    for index, array in enumerate(arrays):
        mine = np.flatnonzero(source == index)
        out[mine, :width] = array[row[mine]]
    return out


def _grid(rows: NDArray[Any]) -> NDArray[Any]:
    return rows.reshape(-1, 2, 8, rows.shape[1] // BLOCK_COLS, 8, 2, 4, 2)


def _refuse(bad: NDArray[np.bool_], values: NDArray[Any], name: str, code: str, what: str) -> None:
    if not bad.any():
        return
    r, c = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    raise _illegal(code, name, r, c, values[r, c], what, int(bad.sum()))


def _illegal(code: str, name: str, r: int, c: int, value: Any, what: str, count: int) -> TileccError:
    return error(
        code,
        f"`{name}` cannot go into the weight image: `{value}` at [{r}, {c}] {what}",
        span=Span(name, label=f"[{r}, {c}]"),
        note=[f"{count} such values in this tensor"],
        help="store the checkpoint again; a correct quantiser never writes this value",
    )
