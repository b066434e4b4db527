"""A model file for the tests of the tracer: a dense and a sparse layer, all Graph ops, tiny sizes.

The tests of bad input change single lines of this text, so each statement they change has its own line.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecc.models import ops  # noqa: F401  (defines torch.ops.tilecc)
from tilecc.weights.spec import ParamSpec

HIDDEN, HEADS, KV_HEADS, DIM, V_DIM, EXPERTS, WIDTH, VOCAB = 32, 4, 2, 12, 8, 6, 16, 100


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


class Attention(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.qkv_proj = nn.Linear(HIDDEN, (HEADS + KV_HEADS) * DIM + KV_HEADS * V_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * V_DIM, HIDDEN, bias=False)
        self.sink = matrix(HEADS) if layer else None

    def forward(self, y: Tensor, positions: Tensor, seqs: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        t = torch.ops.tilecc
        q, k, v = t.split_qkv(self.qkv_proj(y), 2, HEADS, KV_HEADS, DIM, V_DIM)
        q = t.round(t.rope(q, positions, 10000.0, 4))
        k = t.round_e4m3(t.rope(k, positions, 10000.0, 4))
        v = t.round_e4m3(v * 0.5)
        window = 8 * self.layer
        o = t.attend(q, k, v, k_cache, v_cache, positions, seqs, self.sink, window, 0.3, self.layer)
        return self.o_proj(t.round(o))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.up_proj = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.down_proj = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        h = F.silu(self.gate_proj(y)) * self.up_proj(y)
        return self.down_proj(torch.ops.tilecc.round(h))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.register_buffer("bias", torch.empty(EXPERTS))
        self.gate, self.up = matrix(EXPERTS, WIDTH, HIDDEN), matrix(EXPERTS, WIDTH, HIDDEN)
        self.down = matrix(EXPERTS, HIDDEN, WIDTH)

    def forward(self, y: Tensor) -> Tensor:
        ids, weights = torch.ops.tilecc.route(self.router(y), self.bias, 2, True, 1.0)
        return torch.ops.tilecc.experts(y, ids, weights, self.gate, self.up, self.down, True)


class Layer(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.norm = matrix(HIDDEN)
        self.attn = Attention(layer)
        self.mlp = Sparse() if layer else Dense()

    def normed(self, x: Tensor) -> Tensor:
        return torch.ops.tilecc.round(torch.ops.tilecc.rms_norm(x, self.norm, 1e-5))

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        y = self.normed(x)
        x = torch.ops.tilecc.round(x + self.attn(y, *rest))
        return torch.ops.tilecc.round(self.mlp(self.normed(x)) + x)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer(i) for i in range(2))
        self.unused = matrix(3)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, seqs: Tensor, *caches: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = F.embedding(tokens, self.embed.weight)
        for i, layer in enumerate(self.layers):
            x = layer(x, positions, seqs, *caches[2 * i : 2 * i + 2])
        logits = self.head(x)
        return logits, torch.argmax(logits, -1)

    def caches(self, device: Any, max_seqs: int, max_context: int) -> list[Tensor]:
        sizes = [DIM, V_DIM] * 2
        return [torch.zeros(max_seqs, max_context, KV_HEADS, size, device=device) for size in sizes]

    def checkpoint_spec(self) -> dict[str, ParamSpec]:
        spec = {}
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            stacked = tensor.ndim == 3
            source = name.replace(".mlp.", ".mlp.experts.{e}.") if stacked else name
            shape = tuple(tensor.shape[1:] if stacked else tensor.shape)
            spec[name] = ParamSpec(source, "bf16", shape, EXPERTS if stacked else 0)
        return spec


def decode_step(config: dict[str, Any] | None = None) -> nn.Module:
    return Small()
