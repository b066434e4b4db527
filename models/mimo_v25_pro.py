"""MiMo-V2.5-Pro (1.02 T parameters): the published configuration of the FP4 checkpoint.

Sizes: the model's ``config.json`` as the design page "mimo", section 1.1, gives it. A checkpoint's own file
(``--config DIR/config.json``) takes precedence.
"""

from __future__ import annotations

from typing import Any

from tilecc.models.mimo_v2 import MiMoV2
from tilecc.models.mimo_v2 import decode_step as _decode_step

GLOBAL_LAYERS = (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)
"""The pattern is irregular (gaps of 6 and 7 sliding layers): it must not be replaced by a modulus rule."""

LAYERS = 70


def default_config() -> dict[str, Any]:
    """The official-format configuration, without keys that only other runtimes read."""
    return {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "torch_dtype": "bfloat16",
        "vocab_size": 152576,
        "hidden_size": 6144,
        "num_hidden_layers": LAYERS,
        "hybrid_layer_pattern": [0 if i in GLOBAL_LAYERS else 1 for i in range(LAYERS)],
        "moe_layer_freq": [0] + [1] * (LAYERS - 1),
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 192,
        "v_head_dim": 128,
        "swa_num_attention_heads": 128,
        "swa_num_key_value_heads": 8,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "sliding_window": 128,
        "sliding_window_size": 128,
        "attention_chunk_size": 128,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "attention_projection_layout": "fused_qkv",
        "attention_bias": False,
        "attention_value_scale": 0.612,
        "partial_rotary_factor": 0.334,
        "rope_theta": 10000000,
        "swa_rope_theta": 10000,
        "max_position_embeddings": 1048576,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "intermediate_size": 16384,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 384,
        "n_shared_experts": None,
        "num_experts_per_tok": 8,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "tie_word_embeddings": False,
        "eos_token_id": [151643, 151645, 151672],
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "store_dtype": "mxfp4",
            "mxfp4_block_size": 32,
            "ignored_layers": [f"model.layers.{i}.self_attn.o_proj" for i in range(LAYERS)],
        },
    }


def decode_step(config: dict[str, Any] | None = None) -> MiMoV2:
    """The decode step; ``config`` None means the published one."""
    return _decode_step(default_config() if config is None else config)
