"""DFlash, the block draft of the MiMo family, as one step: what a verify step committed goes into the draft's
KV caches, then one block of masked rows is filled in a single pass.

Semantics: design pages "mimo", section 4, and "dflash", section 1. Embedding and head are the target's. The
features are the target's taps (the residual stream after the layers `target_layer_ids`, side by side), rows
of the verify step; row i of the step is committed at position `ctx_positions[i]`, or not at all if that is
negative. All arithmetic is float32; ``rounding = "bf16"`` rounds where a kernel hands over bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecc.models import ops  # noqa: F401  (defines the ops of the namespace tilecc)
from tilecc.models.mimo_v2 import DenseMLP, Linear, Norm
from tilecc.weights.dflash_config import DFlashConfig, dflash_specs, parse_dflash_config
from tilecc.weights.spec import ParamSpec

Rounded = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Separate projections, a norm per query and key head, optional sink scores."""

    def __init__(self, c: DFlashConfig) -> None:
        super().__init__()
        self.q_proj = Linear(c.heads * c.head_dim, c.hidden)
        self.k_proj = Linear(c.kv_heads * c.head_dim, c.hidden)
        self.v_proj = Linear(c.kv_heads * c.v_head_dim, c.hidden)
        self.o_proj = Linear(c.hidden, c.heads * c.v_head_dim)
        self.q_norm = Norm(c.head_dim)
        self.k_norm = Norm(c.head_dim)
        if c.sink:
            self.attention_sink_bias = nn.Parameter(torch.empty(c.heads, dtype=torch.float32))
        else:
            self.register_parameter("attention_sink_bias", None)


class Layer(nn.Module):
    """One draft layer."""

    def __init__(self, c: DFlashConfig, index: int) -> None:
        super().__init__()
        self.config, self.index = c, index
        self.input_layernorm = Norm(c.hidden)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.hidden)
        self.mlp = DenseMLP(c.hidden, c.intermediate)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        positions: Tensor,
        ctx_positions: Tensor,
        seqs: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        rounded: Rounded,
    ) -> Tensor:
        """x [T, hidden] of the block and context [T, hidden] of the committed rows -> [T, hidden]."""
        c, attn, op = self.config, self.self_attn, torch.ops.tilecc
        y = rounded(op.rms_norm(x, self.input_layernorm.weight, c.eps))
        q = op.rms_norm(op.split_heads(attn.q_proj(y), c.heads), attn.q_norm.weight, c.eps)
        q = rounded(op.rope(q, positions, c.theta, c.rotary_dim))
        k, v = self.keys_values(y, positions, rounded)
        # The context does not go through input_layernorm: it has a norm of its own, once for all layers.
        ctx_k, ctx_v = self.keys_values(context, ctx_positions, rounded)
        o = op.attend_block(
            q, k, v, ctx_k, ctx_v, k_cache, v_cache, positions, seqs, ctx_positions,
            attn.attention_sink_bias, c.windows[self.index], c.head_dim**-0.5, self.index,
        )  # fmt: skip
        x = rounded(x + attn.o_proj(rounded(o)))
        y = rounded(op.rms_norm(x, self.post_attention_layernorm.weight, c.eps))
        h = rounded(F.silu(self.mlp.gate_proj(y)) * self.mlp.up_proj(y))
        return rounded(x + self.mlp.down_proj(h))

    def keys_values(self, y: Tensor, positions: Tensor, rounded: Rounded) -> tuple[Tensor, Tensor]:
        """k [T, Hk, D] and v [T, Hk, Dv] of block or context rows, by the same matrices."""
        c, attn, op = self.config, self.self_attn, torch.ops.tilecc
        k = op.rms_norm(op.split_heads(attn.k_proj(y), c.kv_heads), attn.k_norm.weight, c.eps)
        v = op.split_heads(attn.v_proj(y), c.kv_heads) * c.value_scale
        return rounded(op.rope(k, positions, c.theta, c.rotary_dim)), rounded(v)


class DFlash(nn.Module):
    """The draft step."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        self.rounding = "bf16"
        self.step_inputs = {"features": config.features, "ctx_positions": 0}
        self.embed_tokens = Linear(config.vocab, config.hidden)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden, dtype=torch.float32))
        self.fc = Linear(config.hidden, config.features)
        self.hidden_norm = Norm(config.hidden)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(len(config.windows)))
        self.norm = Norm(config.hidden)
        self.lm_head = Linear(config.vocab, config.hidden)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        seqs: Tensor,
        features: Tensor,
        ctx_positions: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step of T rows: tokens (the newest, then mask tokens), positions, seqs and ctx_positions i64
        [T], features f32 [T, taps * hidden] with bf16 values; caches as made by :meth:`caches`.

        Returns (logits f32 [T, vocab], token i64 [T]). The row of a mask predicts the token at its own
        position; the first row of a block predicts nothing.
        """
        c, op = self.config, torch.ops.tilecc
        rounded: Rounded = op.round if self.rounding == "bf16" else _exact
        fused = rounded(self.fc(features))
        context = rounded(op.rms_norm(fused, self.hidden_norm.weight, c.eps))
        x = op.embed_masked(tokens, self.embed_tokens.weight, self.mask_embedding, c.mask_token)
        for i, layer in enumerate(self.layers):
            k_cache, v_cache = caches[2 * i], caches[2 * i + 1]
            x = layer(x, context, positions, ctx_positions, seqs, k_cache, v_cache, rounded)
        y = rounded(op.rms_norm(x, self.norm.weight, c.eps))
        logits = self.lm_head(y)
        return logits, torch.argmax(logits, -1)

    def caches(self, device: torch.device | str, max_seqs: int, max_context: int) -> list[Tensor]:
        """Zeroed caches k0, v0, ...: k [S, C, Hk, D], v [S, C, Hk, Dv], float32, by absolute position."""
        c = self.config
        return [
            torch.zeros(max_seqs, max_context, c.kv_heads, width, device=device)
            for _ in self.layers
            for width in (c.head_dim, c.v_head_dim)
        ]

    def checkpoint_spec(self) -> dict[str, ParamSpec]:
        """Official source, format and shape of every parameter."""
        return dflash_specs(self.config)

    @torch.no_grad()
    def initialize(self, seed: int) -> DFlash:
        """Random weights: normal with 1/sqrt(fan-in), norms near 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.1 * noise)
            elif p.ndim == 1:
                p.copy_(noise)
            else:
                p.copy_(noise * p.shape[-1] ** -0.5)
        return self.requires_grad_(False)


def _exact(x: Tensor) -> Tensor:
    return x


def default_config() -> dict[str, Any]:
    """The draft of MiMo-V2.5-Pro-FP4-DFlash as published, and the vocabulary of its target."""
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_hidden_layers": 5,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "v_head_dim": 128,
        "partial_rotary_factor": 0.5,
        "block_size": 8,
        "num_target_layers": 70,
        "rope_theta": 10000,
        "sliding_window": 1024,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "max_position_embeddings": 262144,
        "vocab_size": 152064,
        "target_vocab_size": 152576,
        "dflash_config": {
            "target_layer_ids": [0, 15, 31, 47, 69],
            "mask_token_id": 151669,
            "num_anchors": 4096,
            "block_size": 8,
            "loss_decay_gamma": 7.0,
            "use_swa": True,
            "swa_window_size": 1024,
            "backbone_rotary_base": 5000000,
            "attention_value_scale": 0.612,
            "attention_sink_bias": True,
        },
    }


def decode_step(config: dict[str, Any] | None = None) -> DFlash:
    """The draft step of an official draft configuration; None means that of MiMo-V2.5-Pro.

    Weights are uninitialised: call ``initialize``, or trace under ``torch.device("meta")``. Raises
    TileccError TC0107 for a configuration that is not usable.
    """
    return DFlash(parse_dflash_config(default_config() if config is None else config))
