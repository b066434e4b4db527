"""Quantisation in the loop: the number formats of tilecc.weights.formats in torch, with straight-through
gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tilecc.weights.spec import FP8_BLOCK, MXFP4_GROUP, ParamSpec, fp8_scale_shape


def mxfp4(w: Tensor) -> Tensor:
    """Values of ``mxfp4_dequantize(*mxfp4_quantize(w))`` for float32 w [..., K]; bit-equal
    (tests/weights)."""
    groups = w.reshape(*w.shape[:-1], -1, MXFP4_GROUP)
    mantissa, exponent = torch.frexp(groups.abs().amax(-1, keepdim=True))
    e = (exponent - torch.where(mantissa > 0.875, 2, 3)).clamp(-127, 125)
    x = torch.ldexp(groups, -e)
    a = x.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    q = (torch.round(a / step) * step).clamp(
        max=6.0
    )  # torch.round takes ties to even, as the grid's codes do
    return torch.ldexp(torch.copysign(q, x), e).reshape(w.shape)


def fp8_block(w: Tensor, chunks: int = 1) -> Tensor:
    """Values of ``fp8_block_dequantize(*fp8_block_quantize(w, chunks), chunks)`` for float32 w [N, K];
    bit-equal."""
    rows, cols = w.shape
    blocks_n, blocks_k = fp8_scale_shape(rows // chunks, cols)
    pad = (0, blocks_k * FP8_BLOCK - cols, 0, blocks_n * FP8_BLOCK - rows // chunks)
    tiles = F.pad(w.reshape(chunks, rows // chunks, cols), pad)
    tiles = tiles.reshape(chunks, blocks_n, FP8_BLOCK, blocks_k, FP8_BLOCK)
    amax = tiles.abs().amax((2, 4), keepdim=True)
    scale = torch.where(amax > 0, amax / 448.0, torch.ones_like(amax)).clamp(
        min=torch.finfo(torch.float32).tiny
    )
    codes = (tiles / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    whole = (codes * scale).reshape(chunks, blocks_n * FP8_BLOCK, -1)
    return whole[:, : rows // chunks, :cols].reshape(rows, cols)


def straight_through(w: Tensor, spec: ParamSpec) -> Tensor:
    """``w`` as its stored format represents it; the gradient passes unchanged. Plain formats are left
    alone."""
    if spec.format not in ("mxfp4", "fp8_block"):
        return w
    with torch.no_grad():
        q = mxfp4(w) if spec.format == "mxfp4" else fp8_block(w, spec.chunks)
        delta = q - w
    return w + delta
