"""Random tensors in the formats of the official checkpoints, with their exact values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilecc.weights.formats import mxfp4_dequantize

BF16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
F64 = NDArray[np.float64]


class Synthetic:
    """A checkpoint in memory; `build_image` reads it as it reads files."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.tensors: dict[str, NDArray[Any]] = {}

    def tensor(self, name: str) -> NDArray[Any]:
        """The tensor of that name. Raises KeyError."""
        return self.tensors[name]

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self.tensors)

    def matrix(self, name: str, format: str, rows: int, cols: int) -> F64:
        """Add a random matrix under the names of its format; return its exact values [rows, cols].

        bf16, f32: normal. mxfp4: uniform codes, scales 2^-3 to 2^3. fp8_block: uniform codes but NaN, scales
        from 0.5 to 2 per 128 x 128.
        """
        if format in ("bf16", "f32"):
            w = self.rng.standard_normal((rows, cols), np.float32)
            stored = w.astype(BF16) if format == "bf16" else w
            self.tensors[name] = stored
            return stored.astype(np.float64)
        codes = self.rng.integers(0, 256, (rows, cols // 2 if format == "mxfp4" else cols), np.uint8)
        if format == "mxfp4":
            scale = self.rng.integers(124, 131, (rows, cols // 32), np.uint8)
            self.tensors[name] = codes
            self.tensors[name.removesuffix(".weight") + ".weight_scale"] = scale
            return mxfp4_dequantize(codes, scale).astype(np.float64)
        codes[(codes & 0x7F) == 0x7F] = 0
        blocks = self.rng.uniform(0.5, 2.0, (-(-rows // 128), -(-cols // 128))).astype(np.float32)
        self.tensors[name] = codes.view(FP8)
        self.tensors[name + "_scale_inv"] = blocks
        full = np.repeat(np.repeat(blocks.astype(np.float64), 128, 0), 128, 1)[:rows, :cols]
        values: F64 = codes.view(FP8).astype(np.float64) * full
        return values
