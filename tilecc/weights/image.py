"""Builds the weight image: all weights, repacked once into the order in which the kernel reads them.

The image depends on shapes and formats only, never on the schedule, the grid or the machine. Entry layouts
(offsets and sizes: layout.py, row rules: image_rows.py, packers: image_pack.py). A matrix is
[expert][m16 tile][k block] blocks, one block being one bulk copy:

* bf16  4096 B: [step 8][lane 32][8 x bf16]
* f32   8192 B: [step 8][half 2][lane 32][4 x f32]
* fp8   2112 B: [step pair 4][lane 32][step 2][u, v: u32], then f32 scale * 2^24 [row g 8][row half 2]
* mxfp4 1088 B: [half 2][lane 32][step 4][u32 of 8 nibbles], then u32 [row g 8][row half 2]: four E8M0 bytes
  + 30 for the row's groups of 32 columns, group 0 highest, rotated right by one bit

How the bits of codes lie in their words: image_pack.py, for the decode in templates/include/mma_formats.cuh.
Rows and columns outside the tensor are zero (codes 0; scales f32 0, E8M0 0x7f).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilecc.diag import InternalError, Span, error
from tilecc.package import ImageEntry, Manifest
from tilecc.weights.image_pack import Bytes, pack_matrix, pack_vector, rope_table
from tilecc.weights.image_rows import scale_shape
from tilecc.weights.image_unpack import unpack_matrix

__all__ = ["TensorSource", "build_image", "pack_entry", "unpack_matrix"]

_BF16 = np.dtype(ml_dtypes.bfloat16)
_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_F32 = np.dtype(np.float32)
_U8 = np.dtype(np.uint8)


class TensorSource(Protocol):
    """What the builder needs of tilecc.weights.checkpoint.Checkpoint: tensors by official name."""

    def tensor(self, name: str) -> NDArray[Any]: ...

    def names(self) -> list[str]: ...


def build_image(
    manifest: Manifest,
    checkpoint: TensorSource,
    out: NDArray[np.uint8],
    on_entry: Callable[[ImageEntry], None] | None = None,
) -> None:
    """Fill ``out`` (u8[manifest.image_bytes], an array or a memmap) from ``checkpoint``.

    Every byte is written, gaps between entries with zeros. ``on_entry`` is called after each entry. Raises
    TC0302-TC0304 for tensors that do not fit the manifest, TC0307 and TC0308 for values that it refuses.
    """
    if out.shape != (manifest.image_bytes,) or out.dtype != _U8:
        raise InternalError(
            f"image buffer {out.dtype}{out.shape}, manifest says {manifest.image_bytes} bytes"
        )
    end = 0
    for entry in manifest.image:
        out[end : entry.offset] = 0
        end = entry.offset + entry.nbytes
        pack_entry(entry, checkpoint, out[entry.offset : end])
        if on_entry is not None:
            on_entry(entry)
    out[end:] = 0


def pack_entry(entry: ImageEntry, checkpoint: TensorSource, out: NDArray[np.uint8]) -> None:
    """Fill ``out`` (u8[entry.nbytes]) with one entry."""
    if entry.kind == "matrix":
        experts = max(entry.experts, 1)
        per_expert = entry.nbytes // experts
        for e in range(experts):
            names = [name.replace("{e}", str(e)) for name in entry.sources]
            out[e * per_expert : (e + 1) * per_expert] = _matrix(entry, checkpoint, names).reshape(-1)
    else:
        out[:] = _vector(entry, checkpoint).reshape(-1).view(np.uint8)


def _matrix(entry: ImageEntry, checkpoint: TensorSource, names: list[str]) -> Bytes:
    rows = entry.rows // len(names)
    values, scales = [], []
    for name in names:
        if entry.format == "mxfp4":
            values.append(_get(checkpoint, name, _U8, (rows, entry.cols // 2)))
            scale = name.removesuffix(".weight") + ".weight_scale"
            scales.append(_get(checkpoint, scale, _U8, (rows, entry.cols // 32)))
        elif entry.format == "fp8_block":
            values.append(_get(checkpoint, name, _FP8, (rows, entry.cols)))
            scales.append(_get(checkpoint, name + "_scale_inv", _F32, scale_shape(entry)))
        elif entry.format == "bf16":
            values.append(_get(checkpoint, name, _BF16, (rows, entry.cols)))
        else:
            # The router may be stored in bf16 (mimo 3.4); widening is exact.
            values.append(_get(checkpoint, name, None, (rows, entry.cols)).astype(np.float32))
    return pack_matrix(entry, values, scales, names)


def _vector(entry: ImageEntry, checkpoint: TensorSource) -> NDArray[Any]:
    if entry.kind == "rope":
        return rope_table(entry.rows, entry.cols, float(entry.args["theta"]))
    if entry.kind == "f32":
        stored = entry.nbytes // 4
        out = np.full(stored, entry.args.get("fill", 0.0), np.float32)
        absent = entry.args.get("optional") and entry.sources[0] not in checkpoint.names()
        if entry.sources and not absent:
            out[: entry.cols] = _get(checkpoint, entry.sources[0], None, (entry.cols,))
        return out
    shape = (entry.cols,) if entry.kind == "norm" else (entry.rows, entry.cols)
    values = _get(checkpoint, entry.sources[0], _BF16, shape)
    return pack_vector(values.reshape(entry.rows, entry.cols), entry.k_blocks)


def _get(
    checkpoint: TensorSource, name: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Read a tensor and compare it with the manifest. ``dtype`` None: any plain float (f32 or bf16)."""
    array = checkpoint.tensor(name)
    if array.shape != shape:
        raise error(
            "TC0303",
            f"`{name}` has shape {list(array.shape)}, the package needs {list(shape)}",
            span=Span(name),
            help="use the checkpoint that the package was compiled for, or compile for this one",
        )
    if array.dtype != dtype if dtype is not None else array.dtype not in (_F32, _BF16):
        raise error(
            "TC0304",
            f"`{name}` is stored as {array.dtype}, the package needs {dtype or 'float32 or bfloat16'}",
            span=Span(name),
            help="use the checkpoint that the package was compiled for",
        )
    return np.ascontiguousarray(array)
