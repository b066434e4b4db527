"""The inverse of the matrix packers, one element at a time, for tests and for looking into an image.

Deliberately shares no index arithmetic with image_pack.py and image_rows.py: it asks for every stored element
which source element it is, straight from the layout text, and it checks that all padding is zero.
"""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilecc.package import ImageEntry
from tilecc.weights.layout import BLOCK_BYTES

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack_matrix(entry: ImageEntry, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the dequantised logical matrix f32[experts or 1, rows, cols], rows in source order.

    "gate_up" comes back as gate rows, then up rows. ``image`` is the whole image (entry.offset is used).
    Slow: pure Python, for small shapes. Raises ValueError when padding is not zero or a row occurs twice.
    """
    size = BLOCK_BYTES[entry.format]
    out = np.full((max(entry.experts, 1), entry.rows, entry.cols), np.nan, np.float32)
    data = image.tobytes()
    for e in range(out.shape[0]):
        for tile in range(entry.tiles):
            for block in range(entry.k_blocks):
                at = entry.offset + ((e * entry.tiles + tile) * entry.k_blocks + block) * size
                _unpack_block(entry, data[at : at + size], tile, block, out[e])
    if np.isnan(out).any():
        raise ValueError(f"{entry.name}: some elements are not in the image")
    return out


def _unpack_block(entry: ImageEntry, data: bytes, tile: int, block: int, out: NDArray[np.float32]) -> None:
    for r in range(16):
        row = _logical_row(entry, tile, r)
        for c in range(128):
            value = _element(entry.format, data, r, c)
            column = block * 128 + c
            if row < 0 or column >= entry.cols:
                if value != 0.0:
                    raise ValueError(
                        f"{entry.name}: padding of tile {tile} row {r} column {column} is {value}"
                    )
            elif not np.isnan(out[row, column]):
                raise ValueError(f"{entry.name}: row {row} column {column} is stored twice")
            else:
                out[row, column] = value


def _element(format: str, data: bytes, r: int, c: int) -> float:
    """Return the value at row ``r`` (0-15), column ``c`` (0-127) of a block."""
    step, within = divmod(c, 16)
    lane = (r % 8) * 4 + (within % 8) // 2
    number = within % 2 + (2 if r >= 8 else 0) + (4 if within >= 8 else 0)
    if format == "bf16":
        (bits,) = struct.unpack_from("<H", data, ((step * 32 + lane) * 8 + number) * 2)
        return _f32(bits << 16)
    if format == "f32":
        (value,) = struct.unpack_from(
            "<f", data, (((step * 2 + number // 4) * 32 + lane) * 4 + number % 4) * 4
        )
        return float(value)
    register, high = number // 2, number % 2
    if format == "fp8_block":
        u, v = struct.unpack_from("<2I", data, (((step // 2) * 32 + lane) * 2 + step % 2) * 8)
        code = _fp8_code(u, v, register, high)
        (scale,) = struct.unpack_from("<f", data, 2048 + (r % 8) * 8 + r // 8 * 4)
        exact = float(np.array(code, np.uint8).view(ml_dtypes.float8_e4m3fn))
        return float(np.float32(exact) * (np.float32(scale) / np.float32(2**24)))
    (word,) = struct.unpack_from("<I", data, (((step // 4) * 32 + lane) * 4 + step % 4) * 4)
    code = _mxfp4_code(word, register, high)
    (scales,) = struct.unpack_from("<I", data, 1024 + (r % 8) * 8 + r // 8 * 4)
    rotated = (scales << 1 | scales >> 31) & 0xFFFFFFFF
    exponent = (rotated >> (24 - 8 * (c // 32)) & 255) - 30
    return float((-1.0 if code & 8 else 1.0) * _E2M1[code & 7] * 2.0 ** (exponent - 127))


# Bits of a u32 that hold each bit of a code, lowest bit first, for registers a0 to a3 and the even column.
# The odd column's lie 16 further (modulo 32).
_MXFP4_BITS = ((6, 7, 8, 15), (9, 10, 11, 18), (12, 13, 14, 21), (4, 0, 1, 3))
# For FP8: (word, bit).
_FP8_BITS = (
    ((0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (0, 9), (0, 10), (0, 15)),
    ((1, 8), (1, 9), (1, 10), (1, 11), (1, 12), (1, 13), (1, 14), (1, 19)),
    ((0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (0, 11)),
    ((0, 12), (0, 13), (0, 14), (1, 15), (1, 16), (1, 17), (1, 18), (1, 23)),
)


def _mxfp4_code(word: int, register: int, high: int) -> int:
    return sum((word >> (at + 16 * high) % 32 & 1) << i for i, at in enumerate(_MXFP4_BITS[register]))


def _fp8_code(u: int, v: int, register: int, high: int) -> int:
    bits = _FP8_BITS[register]
    return sum(((u, v)[w] >> (at + 16 * high) % 32 & 1) << i for i, (w, at) in enumerate(bits))


def _logical_row(entry: ImageEntry, tile: int, r: int) -> int:
    """Return the source row of row ``r`` of a tile, -1 for padding."""
    if entry.rule == "plain":
        return tile * 16 + r if tile * 16 + r < entry.rows else -1
    if entry.rule == "gate_up":
        width = entry.rows // 2
        neuron = tile * 8 + r % 8
        return -1 if neuron >= width else neuron + (width if r >= 8 else 0)
    args = {k: int(v) for k, v in entry.args.items()}
    dim, v_dim, half = args["head_dim"], args["v_head_dim"], args["rotary"] // 2
    rope = (half + 7) // 8
    per_head = rope + (dim - 2 * half + 15) // 16
    q_tiles, k_tiles = args["heads"] * per_head, args["kv_heads"] * per_head
    if tile < q_tiles:
        kind, head, i = "q", tile // per_head, tile % per_head
    elif tile < q_tiles + k_tiles:
        kind, head, i = "k", (tile - q_tiles) // per_head, (tile - q_tiles) % per_head
    else:
        per_value = (v_dim + 15) // 16
        kind, head, i = "v", (tile - q_tiles - k_tiles) // per_value, (tile - q_tiles - k_tiles) % per_value
    if kind == "v":
        d = i * 16 + r if i * 16 + r < v_dim else -1
    elif i < rope:
        j = i * 8 + r % 8
        d = -1 if j >= half else j + (half if r >= 8 else 0)
    else:
        d = 2 * half + (i - rope) * 16 + r
        d = d if d < dim else -1
    return -1 if d < 0 else _qkv_position(args, kind, head) + d


def _qkv_position(args: dict[str, int], kind: str, head: int) -> int:
    """Return the source row where a head starts, by walking the chunks in their stored order."""
    at = 0
    for chunk in range(args["chunks"]):
        for k, heads, size in (
            ("q", args["heads"], args["head_dim"]),
            ("k", args["kv_heads"], args["head_dim"]),
            ("v", args["kv_heads"], args["v_head_dim"]),
        ):
            count = heads // args["chunks"]
            for within in range(count):
                if (k, chunk * count + within) == (kind, head):
                    return at
                at += size
    raise ValueError(f"no {kind} head {head}")


def _f32(bits: int) -> float:
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(value)
