"""Cases of ``kernels/tma.cu``: boxes through tensor maps, in and outside the tensor, swizzled or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.conformance.case import ELEMENT_BYTES, Case, Launch, TensorMap, both, exact, raw, words

SMEM = 1024 + 2 * 16384
WORK_OFFSET = 4096
"""Coordinates come first in ``work``, then the tensor that is stored to."""


def tensor_map(
    buffer: str, dtype: str, dims: Sequence[int], box: Sequence[int], swizzle: int, padding: int = 0
) -> tuple[TensorMap, int]:
    """(map, bytes) of a tensor whose rows are padded to multiples of 16 bytes, and ``padding`` more."""
    size = ELEMENT_BYTES[dtype]
    row = -(-dims[0] * size // 16) * 16 + padding
    strides = (row, row * dims[1] + 32)[: len(dims) - 1] if len(dims) > 1 else ()
    total = row * (dims[1] if len(dims) == 2 else 1)
    if len(dims) == 3:
        total = strides[1] * dims[2]
    offset = WORK_OFFSET if buffer == "work" else 0
    return TensorMap(buffer, dtype, tuple(dims), strides, tuple(box), swizzle, offset), total


def box_indices(m: TensorMap, at: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(offset in the tensor, is it inside) of every byte of a box, before the swizzle."""
    size = ELEMENT_BYTES[m.dtype]
    x = np.arange(m.box[0] * size)
    element, byte = x // size + at[0], x % size
    offset, inside = element * size + byte, (element >= 0) & (element < m.dims[0])
    for d in range(1, len(m.dims)):
        i = np.arange(m.box[d]) + at[d]
        offset = i[(slice(None), *([None] * d))] * m.strides[d - 1] + offset
        inside = ((i >= 0) & (i < m.dims[d]))[(slice(None), *([None] * d))] & inside
    return offset.reshape(-1), inside.reshape(-1)


def swizzled(m: TensorMap, nbytes: int) -> NDArray[np.int64]:
    """Place in shared memory of every byte of a box."""
    o = np.arange(nbytes)
    return o ^ ((o >> 7 & 7) << 4) if m.swizzle else o


def load_launch(seed: int, m: TensorMap, total: int, at: list[tuple[int, ...]]) -> Launch:
    tensor = words(seed, -(-total // 4)).view(np.uint8)
    nbytes = ELEMENT_BYTES[m.dtype] * int(np.prod(m.box))
    want = np.zeros((len(at), nbytes), np.uint8)
    for i, where in enumerate(at):
        offset, inside = box_indices(m, where)
        want[i, swizzled(m, nbytes)[inside]] = tensor[offset[inside]]
    coordinates = np.zeros((len(at), 4), np.int32)
    coordinates[:, : len(m.dims)] = at
    return Launch(
        tensor, want.size, lambda out, _: exact(want, out), 0, len(at), (len(m.dims), nbytes),
        work=raw(coordinates), grid=2, smem=SMEM, maps=(m,),
    )  # fmt: skip


def store_launch(seed: int, m: TensorMap, total: int, at: list[tuple[int, ...]]) -> Launch:
    nbytes = ELEMENT_BYTES[m.dtype] * int(np.prod(m.box))
    boxes = words(seed, len(at), nbytes // 4).view(np.uint8)
    work = words(seed + 1, (WORK_OFFSET + total + 3) // 4).view(np.uint8)
    coordinates = np.zeros((len(at), 4), np.int32)
    coordinates[:, : len(m.dims)] = at
    work[: coordinates.nbytes] = raw(coordinates)
    want = work.copy()
    for i, where in enumerate(at):
        offset, inside = box_indices(m, where)
        want[WORK_OFFSET + offset[inside]] = boxes[i, swizzled(m, nbytes)[inside]]
    lanes = np.arange(32, dtype=np.uint32)
    return Launch(
        raw(boxes), 128, lambda out, after: both(exact(want, after), exact(lanes, out)), 1, len(at),
        (len(m.dims), nbytes), work=work, grid=2, smem=SMEM, maps=(m,),
    )  # fmt: skip


Shape = tuple[str, str, list[int], list[int], int, list[tuple[int, ...]], list[tuple[int, ...]]]
"""(name, dtype, dims, box, swizzle, boxes to load, boxes to store: apart from each other)"""

IN_2D = [(0, 0), (32, 8), (80, 16)]
IN_3D = [(0, 0, 0), (32, 4, 2), (40, 10, 4)]
# The innermost coordinate is a multiple of 16 bytes, and a store starts at no negative coordinate: anything
# else is an illegal instruction (on an H100). Stored tensors have rows of multiples of 16 bytes: past the end
# of any other the rest of the last 16 bytes is written too.
SHAPES: list[Shape] = [
    ("1d_u8", "u8", [1000], [256], 0, [(0,), (256,), (896,), (-16,), (-240,)], [(0,), (256,), (896,)]),
    ("1d_f32", "f32", [301], [64], 0, [(0,), (8,), (288,), (-4,)], [(0,), (100,), (288,)]),
    (
        "2d_bf16", "bf16", [100, 37], [32, 16], 0,
        [(0, 0), (8, 3), (88, 30), (-8, -2)], [(0, 0), (40, 20), (88, 30)],
    ),
    (
        "2d_bf16_swizzled", "bf16", [200, 40], [64, 16], 128,
        [(0, 0), (64, 8), (8, 5), (168, 30), (-16, -4)], [(0, 0), (64, 12), (168, 30)],
    ),
    (
        "2d_u8_swizzled", "u8", [300, 64], [128, 64], 128,
        [(0, 0), (128, 7), (240, 20)], [(0, 0), (128, 7)],
    ),
    ("2d_f32_swizzled", "f32", [96, 20], [32, 8], 128, IN_2D, IN_2D),
    (
        "3d_f16", "f16", [40, 9, 7], [16, 4, 3], 0,
        [(0, 0, 0), (8, 3, 2), (32, 7, 5), (-8, -1, -1)], [(0, 0, 0), (16, 4, 3), (32, 8, 6)],
    ),
    ("3d_u32_swizzled", "u32", [64, 12, 5], [32, 4, 2], 128, IN_3D, IN_3D),
    # Boxes that lie outside altogether: past the end and, loads alone, before the begin.
    ("2d_past_row", "bf16", [100, 37], [32, 16], 0, [(104, 0), (0, 0)], [(104, 0), (0, 0)]),
    ("2d_past_rows", "bf16", [100, 37], [32, 16], 0, [(0, 40), (0, 0)], [(0, 40), (0, 0)]),
    ("2d_before", "bf16", [100, 37], [32, 16], 0, [(-64, 0), (0, -16)], [(96, 32), (0, 0)]),
]  # fmt: skip


def cases(index: int) -> list[Case]:
    name, dtype, dims, box, swizzle, loads, stores = SHAPES[index]
    load_map, total = tensor_map("in", dtype, dims, box, swizzle)
    unit = 16 // ELEMENT_BYTES[dtype]
    stored = [-(-dims[0] // unit) * unit, *dims[1:]]
    store_map, store_total = tensor_map("work", dtype, stored, box, swizzle, 16)
    rank, common = len(dims), ("tma_prefetch_map",)
    return [
        Case(
            f"tma.load_{name}", "tma", (f"tma_load_{rank}d", *common),
            lambda: load_launch(400 + index, load_map, total, loads),
        ),
        Case(
            f"tma.store_{name}", "tma", (f"tma_store_{rank}d", *common),
            lambda: store_launch(420 + 2 * index, store_map, store_total, stores),
        ),
    ]  # fmt: skip


CASES = [case for i in range(len(SHAPES)) for case in cases(i)]
