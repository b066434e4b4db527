"""Packers: source tensors to the bytes of one image entry, in MMA-fragment order. Vectorised numpy.

A block is one m16 tile x 128 columns = 8 steps of m16k16. With lane = 4 g + t, the eight A elements of a lane
in a step are, in this order (PTX ISA, mma.m16n8k16 fragment of A):
(g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1) (g, 2t+8) (g, 2t+9) (g+8, 2t+8) (g+8, 2t+9).
Two neighbours share a register of the fragment, a0 to a3, the even column in its low half. Splitting rows as
[half 2][g 8] and the columns of a step as [half 2][t 4][e 2] makes every layout an axis permutation: the
element number is (column half, row half, e).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.diag import Span, TileccError, error
from tilecc.package import ImageEntry
from tilecc.weights.formats import MXFP4_MAX_SCALE
from tilecc.weights.image_rows import Index, scale_rows, source_rows
from tilecc.weights.layout import BLOCK_BYTES, BLOCK_COLS, TILE_ROWS

Bytes = NDArray[np.uint8]

MXFP4_GROUP = 32
FP8_SCALE_FACTOR = np.float32(2.0**24)
"""What is left of the codes' 2^120 after the activations' 2^96 (templates/include/mma_formats.cuh)."""
FP8_REGISTERS = ((0, 0x00000000), (4, 0xFFFFFFFF), (28, 0x00700070), (8, 0x8FFF8FFF))
"""Of each register: rotation of the word that it comes from, and which bits of that word lie in v, not u."""


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
        with np.errstate(over="ignore"):
            shifted = scale * FP8_SCALE_FACTOR
        _refuse(~np.isfinite(shifted), scale, name + "_scale_inv", "TC0307", "is not a scale below 2^104")
    # Two adjacent columns, one register of the fragment, travel as one u16: half the elements to permute.
    grid = _gather(entry, codes, source, row, entry.cols, BLOCK_COLS).view(np.uint16)
    pairs = grid.reshape(entry.tiles, 2, 8, entry.k_blocks, 8, 2, 4)
    # axes: 0 tile, 1 row half, 2 g, 3 block, 4 step, 5 column half, 6 t -> tile, block, step, g, t, register
    registers = pairs.transpose(0, 3, 4, 2, 6, 5, 1).reshape(entry.tiles, entry.k_blocks, 8, 32, 4)
    words = _fp8_words(registers).reshape(entry.tiles, entry.k_blocks, 4, 2, 32, 2)
    packed = words.transpose(0, 1, 2, 4, 3, 5).reshape(entry.tiles, entry.k_blocks, -1)
    out[:, :, :2048] = np.ascontiguousarray(packed).view(np.uint8)
    per_row = np.zeros((entry.tiles * TILE_ROWS, entry.k_blocks), np.float32)
    for index, scale in enumerate(scales):
        mine = source == index
        per_row[mine] = scale[scale_rows(entry, row[mine])] * FP8_SCALE_FACTOR
    blocks = per_row.reshape(entry.tiles, 2, 8, entry.k_blocks).transpose(0, 3, 2, 1)
    out[:, :, 2048:] = np.ascontiguousarray(blocks).reshape(entry.tiles, entry.k_blocks, -1).view(np.uint8)


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
        bad, full = scale > MXFP4_MAX_SCALE, name.removesuffix(".weight") + ".weight_scale"
        _refuse(bad, scale, full, "TC0307", f"exceeds {MXFP4_MAX_SCALE}")
    # A source byte is two adjacent columns, low nibble first: one register of the fragment.
    grid = _gather(entry, values, source, row, entry.cols // 2, BLOCK_COLS // 2)
    pairs = grid.reshape(entry.tiles, 2, 8, entry.k_blocks, 8, 2, 4)
    registers = pairs.transpose(0, 3, 4, 2, 6, 5, 1).reshape(entry.tiles, entry.k_blocks, 8, 32, 4)
    words = _mxfp4_words(registers).reshape(entry.tiles, entry.k_blocks, 2, 4, 32)
    packed = words.transpose(0, 1, 2, 4, 3).reshape(entry.tiles, entry.k_blocks, -1)
    out[:, :, :1024] = np.ascontiguousarray(packed).view(np.uint8)
    groups = _gather(entry, scales, source, row, entry.cols // MXFP4_GROUP, 4, fill=0x7F) + np.uint8(30)
    # Group 0 in the highest byte, the word then moved right by one bit: group 0 at bits 30 to 23.
    word = np.ascontiguousarray(groups.reshape(-1, 4)[:, ::-1]).view("<u4").reshape(-1)
    word = word >> np.uint32(1) | word << np.uint32(31)
    blocks = word.reshape(entry.tiles, 2, 8, entry.k_blocks).transpose(0, 3, 2, 1)
    out[:, :, 1024:] = np.ascontiguousarray(blocks).reshape(entry.tiles, entry.k_blocks, -1).view(np.uint8)


def _mxfp4_words(registers: Bytes) -> NDArray[np.uint32]:
    """Return the u32 of one lane and k16 step: u8[..., 4 registers of two nibbles] -> u32[...].

    The inverse of decode_mxfp4 in templates/include/mma_formats.cuh. A nibble (sign, e1, e0, m) goes to the
    bits that end at 15, 8, 7, 6 of its half: register r is the word rotated right by 3 r, and of register 3,
    whose place would be taken, bits 3, 1, 0, 4 are multiplied there.
    """
    out = np.zeros(registers.shape[:-1], np.uint32)
    for r in range(4):
        places = (3, 1, 0, 4) if r == 3 else tuple(bit + 3 * r for bit in (15, 8, 7, 6))
        table = np.zeros(256, np.uint32)
        for half in range(2):
            for bit, place in zip((3, 2, 1, 0), places, strict=True):
                mask = np.arange(256, dtype=np.uint32) >> (4 * half + bit) & 1
                table |= (mask << ((place + 16 * half) % 32)).astype(np.uint32)
        out |= table[registers[..., r]]
    return out


def _fp8_words(registers: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Return the two u32 of one lane and k16 step: u16[..., 4 registers of two codes] -> u32[..., 2].

    The inverse of decode_fp8 in templates/include/mma_formats.cuh. A code goes to the bits that end at 15
    (sign) and 10 to 4 of its half; register r is u, v or a mixture, rotated right by 0, 4, 28 or 8.
    """
    out = np.zeros((*registers.shape[:-1], 2), np.uint32)
    for r, (rotation, in_v) in enumerate(FP8_REGISTERS):
        for half in range(2):
            code = (registers[..., r] >> np.uint16(8 * half) & np.uint16(0xFF)).astype(np.uint32)
            for bit in range(8):
                place = ((15 if bit == 7 else bit + 4) + 16 * half + rotation) % 32
                out[..., in_v >> place & 1] |= (code >> np.uint32(bit) & np.uint32(1)) << np.uint32(place)
    return out


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
