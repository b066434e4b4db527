"""Muon: momentum whose update is orthogonalised by a Newton-Schulz iteration, for hidden weight matrices.

Formula: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). A stack of
matrices [E, N, K] is treated as E matrices at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic with a steep slope at 0; five steps bring singular values to about 0.7..1.2."""


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrix with the singular vectors of g [..., N, K] (bf16 arithmetic, float32
    result)."""
    a, b, c = _COEFFICIENTS
    wide = g.shape[-2] <= g.shape[-1]
    x = (g if wide else g.transpose(-1, -2)).to(torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.transpose(-1, -2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x if wide else x.transpose(-1, -2)).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the step is scaled by sqrt(max(1, N / K))."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer: Tensor = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(buffer, group["momentum"]))
                shape = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * shape)
        return None
