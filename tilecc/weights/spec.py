"""What a model parameter looks like in an official checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Format = Literal["bf16", "f32", "fp8_block", "mxfp4"]

FP8_BLOCK = 128
"""Rows and columns that share one FP8 scale (``weight_block_size`` of the official configurations)."""

MXFP4_GROUP = 32
"""Columns of one row that share one E8M0 scale (OCP Microscaling 1.0)."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: its name, the element types it may have, and its stored shape."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ParamSpec:
    """Where one parameter of a model comes from.

    ``source`` is the official tensor name; for a stacked parameter "{e}" stands for the expert index and
    ``experts`` is their number (0: not stacked). ``shape`` is the logical shape of ONE source tensor (an
    MXFP4 matrix of N rows and K columns has shape (N, K) although K/2 bytes are stored). ``chunks`` is the
    number of row chunks whose FP8 scale grid restarts (the fused QKV matrix; 1 elsewhere). ``shared``: the
    tensor is the target model's, whose weight image a draft reads; the draft's own checkpoint has none.
    """

    source: str
    format: Format
    shape: tuple[int, ...]
    experts: int = 0
    optional: bool = False
    chunks: int = 1
    shared: bool = False

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape of the model's parameter: ``shape`` with the expert dimension in front when stacked."""
        return (self.experts, *self.shape) if self.experts else self.shape

    def names(self) -> list[str]:
        """Official names of the source tensors, one per expert (without scales)."""
        if not self.experts:
            return [self.source]
        return [self.source.replace("{e}", str(e)) for e in range(self.experts)]

    def stored(self) -> Iterator[StoredTensor]:
        """Every tensor that must be in the checkpoint for this parameter, scales included."""
        for name in self.names():
            yield from stored_tensors(name, self)


def scale_name(name: str, format: Format) -> str:
    """Official name of the scales of ``name``: "_scale_inv" for FP8, "_scale" (no "_inv") for MXFP4."""
    return name + {"fp8_block": "_scale_inv", "mxfp4": "_scale"}[format]


def fp8_scale_shape(rows: int, cols: int, chunks: int = 1) -> tuple[int, int]:
    """Shape of the FP8 scale grid; the row blocks restart at every chunk (mimo.md 3.3)."""
    per_chunk = rows // chunks
    return chunks * -(-per_chunk // FP8_BLOCK), -(-cols // FP8_BLOCK)


def stored_tensors(name: str, spec: ParamSpec) -> Iterator[StoredTensor]:
    """The tensors stored for one source ``name`` of ``spec``. Scale tensors follow their codes."""
    if spec.format == "bf16":
        yield StoredTensor(name, ("BF16",), spec.shape)
    elif spec.format == "f32":
        # The router of V2.6 is BF16 where V2.5 has F32; widening is exact, so both are accepted.
        yield StoredTensor(name, ("F32", "BF16"), spec.shape)
    elif spec.format == "fp8_block":
        rows, cols = spec.shape
        yield StoredTensor(name, ("F8_E4M3",), spec.shape)
        yield StoredTensor(scale_name(name, spec.format), ("F32",), fp8_scale_shape(rows, cols, spec.chunks))
    else:
        rows, cols = spec.shape
        yield StoredTensor(name, ("U8",), (rows, cols // 2))
        yield StoredTensor(scale_name(name, spec.format), ("U8",), (rows, cols // MXFP4_GROUP))
