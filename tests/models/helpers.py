"""Small MiMo-V2 configurations for the model tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = json.loads((ROOT / "models" / "mimo_tiny" / "config.json").read_text())

# Sliding layers with other head counts and sizes than the global ones (V2.5 style), sinks everywhere, no
# top-k normalisation, a scaled router, another pattern, unquantised.
OTHER: dict[str, Any] = {
    **TINY,
    "vocab_size": 97,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "hybrid_layer_pattern": [1, 0, 1, 0],
    "moe_layer_freq": [1, 0, 1, 1],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "v_head_dim": 20,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 16,
    "swa_v_head_dim": 12,
    "sliding_window": 5,
    "add_full_attention_sink_bias": True,
    "partial_rotary_factor": 0.5,
    "intermediate_size": 40,
    "moe_intermediate_size": 64,
    "n_routed_experts": 5,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.7,
    "quantization_config": None,
}
