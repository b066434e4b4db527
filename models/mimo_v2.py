"""MiMo-V2 as one decode step over T table rows, with every size from an official ``config.json``.

Ordinary PyTorch: run eagerly it is the reference, traced by ``torch.export`` it is what tilecc compiles, and
:meth:`MiMoV2.sequence_logits` is the same layers over whole sequences, differentiable, for training.
Semantics: design page "mimo", section 2. All arithmetic is float32; ``rounding = "bf16"`` rounds where the
kernel hands over bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecc.models import ops as plain
from tilecc.weights.checkpoint import Checkpoint
from tilecc.weights.mimo_config import LayerConfig, MiMoConfig, parse_config, tensor_specs
from tilecc.weights.spec import ParamSpec

Choose = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, router logits [T, E], bias [E], chosen ids [T, k]) -> ids to use [T, k]; see
models/reference.py."""


def _matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))


class Linear(nn.Module):
    """A bias-free projection; ``weight`` is [out, in] as in the checkpoint."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.weight = _matrix(rows, cols)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Norm(nn.Module):
    """Holds the weight of an RMSNorm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = _matrix(size)


class Attention(nn.Module):
    """Fused QKV projection, optional sink scores, output projection."""

    def __init__(self, hidden: int, layer: LayerConfig) -> None:
        super().__init__()
        self.qkv_proj = Linear(layer.qkv_rows, hidden)
        self.o_proj = Linear(hidden, layer.heads * layer.v_head_dim)
        if layer.sink:
            self.attention_sink_bias = _matrix(layer.heads)
        else:
            self.register_parameter("attention_sink_bias", None)


class DenseMLP(nn.Module):
    """SwiGLU of the dense layers."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(intermediate, hidden)
        self.up_proj = Linear(intermediate, hidden)
        self.down_proj = Linear(hidden, intermediate)


class Router(nn.Module):
    """Router matrix and the correction bias that only takes part in the selection."""

    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        self.weight = _matrix(experts, hidden)
        self.e_score_correction_bias = nn.Parameter(torch.empty(experts), requires_grad=False)


class Experts(nn.Module):
    """Stacked expert matrices: gate and up [E, I, H], down [E, H, I]."""

    def __init__(self, experts: int, intermediate: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = _matrix(experts, intermediate, hidden)
        self.up_proj = _matrix(experts, intermediate, hidden)
        self.down_proj = _matrix(experts, hidden, intermediate)


class MoE(nn.Module):
    """Router and experts of a sparse layer."""

    def __init__(self, config: MiMoConfig) -> None:
        super().__init__()
        self.gate = Router(config.experts, config.hidden)
        self.experts = Experts(config.experts, config.moe_intermediate, config.hidden)


class Layer(nn.Module):
    """One decoder layer. ``attention_op(q, k, v, sink)`` is the only part that differs between step and
    sequence."""

    def __init__(self, config: MiMoConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.input_layernorm = Norm(config.hidden)
        self.self_attn = Attention(config.hidden, layer)
        self.post_attention_layernorm = Norm(config.hidden)
        self.mlp: Any = MoE(config) if layer.moe else DenseMLP(config.hidden, config.intermediate)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        op: Any,
        rounded: Callable[[Tensor], Tensor],
        stored: Callable[[Tensor], Tensor],
        attention_op: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
        choose: Choose | None,
    ) -> Tensor:
        """x [T, hidden] -> [T, hidden]; ``op`` is torch.ops.tilecc or the plain functions of models/ops.py,
        ``stored`` rounds keys and values to the format of the cache."""
        c, layer, attn = self.config, self.layer, self.self_attn
        y = rounded(op.rms_norm(x, self.input_layernorm.weight, c.eps))
        z = attn.qkv_proj(y)
        q, k, v = op.split_qkv(z, layer.chunks, layer.heads, layer.kv_heads, layer.head_dim, layer.v_head_dim)
        q = rounded(op.rope(q, positions, layer.theta, layer.rotary_dim))
        k = stored(op.rope(k, positions, layer.theta, layer.rotary_dim))
        v = stored(v * c.value_scale)
        o = rounded(attention_op(q, k, v, attn.attention_sink_bias))
        x = rounded(x + attn.o_proj(o))
        y = rounded(op.rms_norm(x, self.post_attention_layernorm.weight, c.eps))
        if layer.moe:
            return rounded(x + self._experts(y, op, rounded, choose))
        h = rounded(F.silu(self.mlp.gate_proj(y)) * self.mlp.up_proj(y))
        return rounded(x + self.mlp.down_proj(h))

    def _experts(
        self, y: Tensor, op: Any, rounded: Callable[[Tensor], Tensor], choose: Choose | None
    ) -> Tensor:
        c, gate, experts = self.config, self.mlp.gate, self.mlp.experts
        logits = plain.linear_f32(y, gate.weight)
        ids, weights = op.route(logits, gate.e_score_correction_bias, c.top_k, c.norm_topk, c.routed_scaling)
        if choose is not None:
            ids = choose(self.layer.index, logits, gate.e_score_correction_bias, ids)
            weights = plain.route_weights(logits, ids, c.norm_topk, c.routed_scaling)
        round_hidden = rounded is not _exact
        return op.experts(
            y, ids, weights, experts.gate_proj, experts.up_proj, experts.down_proj, round_hidden
        )


def _exact(x: Tensor) -> Tensor:
    return x


class Body(nn.Module):
    """The official ``model.`` prefix: embedding, layers, final norm."""

    def __init__(self, config: MiMoConfig) -> None:
        super().__init__()
        self.embed_tokens = Linear(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.layers)
        self.norm = Norm(config.hidden)


class MiMoV2(nn.Module):
    """The decode step (spec: ``forward``, ``caches``, ``checkpoint_spec``, ``rounding``)."""

    def __init__(self, config: MiMoConfig) -> None:
        super().__init__()
        self.config = config
        self.rounding = "bf16"
        self.kv_format = "bf16"
        self.choose: Choose | None = None
        """Overrides or records the experts of eager runs; None (always, when traced) leaves the router
        alone."""
        self.taps: tuple[int, ...] = ()
        """Layers whose outputs :meth:`forward` returns too: the features of a draft (mimo.md 4.3)."""
        self.tap_layers = range(len(config.layers))
        self.model = Body(config)
        self.lm_head = Linear(config.vocab, config.hidden)

    def forward(self, tokens: Tensor, positions: Tensor, seqs: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """One step of T rows: tokens, positions, seqs i64 [T]; caches as made by :meth:`caches`, updated in
        place.

        Returns (logits f32 [T, vocab], next token i64 [T], lowest id on ties), and for each of ``taps`` the
        residual stream f32 [T, hidden] after that layer, before the final norm.
        """
        op = torch.ops.tilecc
        rounded = op.round if self.rounding == "bf16" else _exact
        stored = op.round_e4m3 if self.kv_format == "fp8" else rounded
        x = F.embedding(tokens, self.model.embed_tokens.weight)  # stored as bf16: nothing to round
        tapped: dict[int, Tensor] = {}
        for i, block in enumerate(self.model.layers):
            k_cache, v_cache = caches[2 * i], caches[2 * i + 1]
            layer: LayerConfig = block.layer

            def attention(
                q: Tensor,
                k: Tensor,
                v: Tensor,
                sink: Tensor | None,
                k_cache: Tensor = k_cache,
                v_cache: Tensor = v_cache,
                layer: LayerConfig = layer,
            ) -> Tensor:
                scale = layer.head_dim**-0.5
                return op.attend(
                    q, k, v, k_cache, v_cache, positions, seqs, sink, layer.window, scale, layer.index
                )

            x = block(x, positions, op, rounded, stored, attention, self.choose)
            if i in self.taps:
                tapped[i] = x
        y = rounded(op.rms_norm(x, self.model.norm.weight, self.config.eps))
        logits = self.lm_head(y)
        return logits, torch.argmax(logits, -1), *(tapped[i] for i in self.taps)

    def sequence_logits(self, ids: Tensor) -> Tensor:
        """Logits f32 [B, S, vocab] of whole sequences ids i64 [B, S] from position 0; differentiable."""
        batch, length = ids.shape
        rounded = plain.round if self.rounding == "bf16" else _exact
        stored = plain.round_e4m3 if self.kv_format == "fp8" else rounded
        positions = torch.arange(length, device=ids.device).repeat(batch)
        x = F.embedding(ids.reshape(-1), self.model.embed_tokens.weight)
        for block in self.model.layers:
            layer: LayerConfig = block.layer

            def attention(
                q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, layer: LayerConfig = layer
            ) -> Tensor:
                q, k, v = (t.reshape(batch, length, *t.shape[1:]) for t in (q, k, v))
                o = plain.attend_sequence(q, k, v, sink, layer.window, layer.head_dim**-0.5)
                return o.reshape(batch * length, -1)

            x = block(x, positions, plain, rounded, stored, attention, self.choose)
        y = rounded(plain.rms_norm(x, self.model.norm.weight, self.config.eps))
        return self.lm_head(y).reshape(batch, length, -1)

    def caches(self, device: torch.device | str, max_seqs: int, max_context: int) -> list[Tensor]:
        """Zeroed caches k0, v0, k1, v1, ...: k [S, C, Hk, D], v [S, C, Hk, Dv], float32, indexed by absolute
        position."""
        made = []
        for layer in self.config.layers:
            for width in (layer.head_dim, layer.v_head_dim):
                made.append(torch.zeros(max_seqs, max_context, layer.kv_heads, width, device=device))
        return made

    def checkpoint_spec(self) -> dict[str, ParamSpec]:
        """Official source, format and shape of every parameter."""
        return tensor_specs(self.config)

    def load(self, checkpoint: Checkpoint | Path | str) -> MiMoV2:
        """Read and dequantise every parameter to float32; returns self.

        Raises TileccError (TC03xx) with every missing, misshapen, mistyped or damaged tensor.
        """
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        spec = self.checkpoint_spec()
        opened.require(spec)
        state = {name: torch.from_numpy(opened.parameter(entry)) for name, entry in spec.items()}
        self.load_state_dict(state, assign=True)
        return self.requires_grad_(False)

    @torch.no_grad()
    def initialize(self, seed: int) -> MiMoV2:
        """Random weights for training: normal with 1/sqrt(fan-in), output projections shrunk by depth."""
        generator = torch.Generator().manual_seed(seed)
        depth = (2 * len(self.config.layers)) ** -0.5
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = 0.02 if "embed_tokens" in name else p.shape[-1] ** -0.5
            if "lm_head" in name:
                std *= 0.5
            if "o_proj" in name or "down_proj" in name:
                std *= depth
            p.copy_(torch.randn(p.shape, generator=generator) * std)
        return self


def decode_step(config: dict[str, Any] | None = None) -> MiMoV2:
    """The decode step of an official configuration; None means the tiny model's.

    Weights are uninitialised: call ``load`` or ``initialize``, or trace under ``torch.device("meta")``.
    Raises TileccError TC0107, TC0202 or TC0306 for a configuration that is not usable.
    """
    if config is None:
        from tilecc.models.mimo_tiny import default_config

        config = default_config()
    return MiMoV2(parse_config(config))
