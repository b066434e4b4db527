"""A model of blocks that a configuration lists: the random graphs of test_random.py.

    {"hidden": 48, "vocab": 100, "layers": [["attention", "dense"], ["moe"]], ...}

A layer is any selection of the blocks attention, dense and moe, in this order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecc.models import ops
from tilecc.weights.checkpoint import Checkpoint
from tilecc.weights.spec import ParamSpec


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))


class Attention(nn.Module):
    def __init__(self, c: dict[str, Any], window: int, index: int) -> None:
        super().__init__()
        self.c, self.window, self.index = c, window, index
        rows = (c["heads"] + c["kv_heads"]) * c["dim"] + c["kv_heads"] * c["v_dim"]
        self.norm = matrix(c["hidden"])
        self.qkv = matrix(rows, c["hidden"])
        self.out = matrix(c["hidden"], c["heads"] * c["v_dim"])
        self.sink = matrix(c["heads"]) if c["sink"] and window else None

    def forward(self, x: Tensor, step: Any) -> Tensor:
        c, t = self.c, torch.ops.tilecc
        z = F.linear(step.normed(x, self.norm), self.qkv)
        q, k, v = t.split_qkv(z, 1, c["heads"], c["kv_heads"], c["dim"], c["v_dim"])
        q = t.round(t.rope(q, step.positions, c["theta"], c["rotary"]))
        k = t.round(t.rope(k, step.positions, c["theta"], c["rotary"]))
        v = t.round(v * 0.75) if c["scaled"] else t.round(v)
        caches = step.caches[2 * self.index : 2 * self.index + 2]
        o = t.attend(
            q, k, v, *caches, step.positions, step.seqs, self.sink, self.window, c["dim"] ** -0.5, self.index
        )
        return F.linear(t.round(o), self.out)


class Dense(nn.Module):
    def __init__(self, c: dict[str, Any], width: int) -> None:
        super().__init__()
        self.c = c
        self.norm = matrix(c["hidden"])
        self.gate, self.up = matrix(width, c["hidden"]), matrix(width, c["hidden"])
        self.down = matrix(c["hidden"], width)

    def forward(self, x: Tensor, step: Any) -> Tensor:
        y = step.normed(x, self.norm)
        gate, up = F.silu(F.linear(y, self.gate)), F.linear(y, self.up)
        h = up * gate if self.c["swapped"] else gate * up
        return F.linear(torch.ops.tilecc.round(h), self.down)


class Moe(nn.Module):
    def __init__(self, c: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.c, self.layer = c, layer
        e, w = c["experts"], c["expert_width"]
        self.norm = matrix(c["hidden"])
        self.router = matrix(e, c["hidden"])
        self.bias = nn.Parameter(torch.empty(e), requires_grad=False)
        self.gate, self.up = matrix(e, w, c["hidden"]), matrix(e, w, c["hidden"])
        self.down = matrix(e, c["hidden"], w)

    def forward(self, x: Tensor, step: Any) -> Tensor:
        c, t = self.c, torch.ops.tilecc
        y = step.normed(x, self.norm)
        logits = F.linear(y, self.router)
        ids, weights = t.route(logits, self.bias, c["k"], c["norm_topk"], c["scaling"])
        if step.choose is not None:
            ids = step.choose(self.layer, logits, self.bias, ids)
            weights = ops.route_weights(logits, ids, c["norm_topk"], c["scaling"])
        return t.experts(y, ids, weights, self.gate, self.up, self.down, True)


class Layer(nn.Module):
    def __init__(self, c: dict[str, Any], index: int, attention: int) -> None:
        super().__init__()
        made: dict[str, Any] = {
            "attention": lambda: Attention(c, c["windows"][index], attention),
            "dense": lambda: Dense(c, c["widths"][index]),
            "moe": lambda: Moe(c, index),
        }
        self.blocks = nn.ModuleDict({name: made[name]() for name in c["layers"][index]})

    def forward(self, x: Tensor, step: Any, swapped: bool) -> Tensor:
        for block in self.blocks.values():
            y = block(x, step)
            x = torch.ops.tilecc.round(y + x if swapped else x + y)
        return x


class Step:
    """What all blocks of a step read."""

    def __init__(
        self, positions: Tensor, seqs: Tensor, caches: tuple[Tensor, ...], choose: Any, split: bool
    ) -> None:
        self.positions, self.seqs, self.caches, self.choose, self.split = (
            positions,
            seqs,
            caches,
            choose,
            split,
        )

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the next matrix multiplies. As a reference (`split`) it rounds where the kernel does: x * w is
        bf16, and 1 / rms multiplies later."""
        if self.split:
            return ops.round(x * weight) * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        return torch.ops.tilecc.round(torch.ops.tilecc.rms_norm(x, weight, 1e-5))


class Model(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.c, self.rounding, self.choose, self.split = c, "bf16", None, False
        self.embed = matrix(c["vocab"], c["hidden"])
        before = [sum("attention" in b for b in c["layers"][:i]) for i in range(len(c["layers"]) + 1)]
        self.attentions = before[-1]
        self.layers = nn.ModuleList(Layer(c, i, before[i]) for i in range(len(c["layers"])))
        self.norm = matrix(c["hidden"])
        self.head = matrix(c["vocab"], c["hidden"])

    def forward(
        self, tokens: Tensor, positions: Tensor, seqs: Tensor, *caches: Tensor
    ) -> tuple[Tensor, Tensor]:
        step = Step(positions, seqs, caches, self.choose, self.split)
        x = F.embedding(tokens, self.embed)
        for layer in self.layers:
            x = layer(x, step, self.c["swapped"])
        logits = F.linear(step.normed(x, self.norm), self.head)
        return logits, torch.argmax(logits, -1)

    def caches(self, device: Any, max_seqs: int, max_context: int) -> list[Tensor]:
        c = self.c
        sizes = [c["dim"], c["v_dim"]] * self.attentions
        return [torch.zeros(max_seqs, max_context, c["kv_heads"], size, device=device) for size in sizes]

    def checkpoint_spec(self) -> dict[str, ParamSpec]:
        """Matrices in the format that the configuration names for them, experts one tensor each."""
        spec = {}
        for name, tensor in self.named_parameters():
            part = name.rpartition(".")[2]
            shape = tuple(tensor.shape[1:] if tensor.ndim == 3 else tensor.shape)
            format = "f32" if part == "router" else "bf16"
            if len(shape) == 2 and part in ("qkv", "gate", "up", "down"):
                format = self.c["expert_format"] if tensor.ndim == 3 else self.c["dense_format"]
            stacked = tensor.shape[0] if tensor.ndim == 3 else 0
            spec[name] = ParamSpec(name + (".{e}.weight" if stacked else ".weight"), format, shape, stacked)  # type: ignore[arg-type]
        return spec

    def load(self, checkpoint: Checkpoint | Path | str) -> Model:
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        state = {n: torch.from_numpy(opened.parameter(s)) for n, s in self.checkpoint_spec().items()}
        self.load_state_dict(state, assign=True)
        return self.requires_grad_(False)


def decode_step(config: dict[str, Any] | None = None) -> Model:
    assert config is not None
    return Model(config)
