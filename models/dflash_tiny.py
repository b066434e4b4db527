"""The draft of MiMo tiny (models/mimo_tiny.py): every feature of the draft of MiMo-V2.5-Pro, small. There
is no trained checkpoint of it; tests give it random weights."""

from __future__ import annotations

from typing import Any

from tilecc.models.dflash import DFlash
from tilecc.models.dflash import decode_step as _decode_step
from tilecc.models.mimo_tiny import default_config as target_config


def default_config() -> dict[str, Any]:
    """Two sliding layers of 8 query heads on 2 KV heads, taps after the first, a middle, the last layer."""
    target = target_config()
    layers = int(target["num_hidden_layers"])
    return {
        "architectures": ["DFlashDraftModel"],
        "hidden_size": target["hidden_size"],
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "v_head_dim": 32,
        "partial_rotary_factor": 0.5,
        "num_target_layers": layers,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-5,
        "vocab_size": target["vocab_size"],
        "dflash_config": {
            "target_layer_ids": [0, layers // 2, layers - 1],
            "mask_token_id": target["vocab_size"] - 1,
            "block_size": 8,
            "use_swa": True,
            "swa_window_size": 24,
            "attention_value_scale": 0.612,
            "attention_sink_bias": True,
        },
    }


def decode_step(config: dict[str, Any] | None = None) -> DFlash:
    """The draft step; ``config`` None means the one above."""
    return _decode_step(default_config() if config is None else config)
