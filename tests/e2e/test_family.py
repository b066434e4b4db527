"""Any configuration of the family works: other heads, layers, patterns, windows, experts and widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecc.models.mimo_v2 as mimo_v2
from tests.e2e.conftest import MODELS
from tests.e2e.harness import BF16_BOUND, F32_BOUND, answer, compare, order_noise
from tests.models.helpers import TINY
from tilecc.emit.compiler import compile_model
from tilecc.runtime.engine import Engine
from tilecc.weights.checkpoint import random_checkpoint

BASE = {k: v for k, v in TINY.items() if not k.startswith("swa_")}


def heads(
    count: int, kv: int, dim: int, v_dim: int, swa: tuple[int, int, int, int] | None = None
) -> dict[str, int]:
    """Head counts and sizes of the global layers, and of the sliding ones where they differ."""
    h, k, d, v = swa or (count, kv, dim, v_dim)
    return {
        "num_attention_heads": count, "num_key_value_heads": kv, "head_dim": dim, "v_head_dim": v_dim,
        "swa_num_attention_heads": h, "swa_num_key_value_heads": k, "swa_head_dim": d, "swa_v_head_dim": v,
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    # Sliding layers with more KV heads than global ones, sinks everywhere, no dense layer, hidden size 160.
    "v25_like": {
        **TINY,
        **heads(8, 2, 40, 24, swa=(8, 4, 40, 24)),
        "hidden_size": 160,
        "num_hidden_layers": 5,
        "vocab_size": 500,
        "hybrid_layer_pattern": [0, 1, 1, 0, 1],
        "moe_layer_freq": [1, 1, 1, 1, 1],
        "sliding_window": 20,
        "sliding_window_size": 20,
        "partial_rotary_factor": 0.3,
        "add_full_attention_sink_bias": True,
        "n_routed_experts": 40,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 96,
    },
    # Sixteen query heads on one KV head, rotary over the whole head, several dense layers, few experts.
    "wide_group": {
        **TINY,
        **heads(16, 1, 32, 16),
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "vocab_size": 257,
        "hybrid_layer_pattern": [1, 0, 1, 1],
        "moe_layer_freq": [0, 0, 1, 1],
        "sliding_window": 7,
        "sliding_window_size": 7,
        "partial_rotary_factor": 1.0,
        "intermediate_size": 320,
        "n_routed_experts": 3,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "attention_value_scale": 0.707,
    },
    # Larger heads, a window longer than the text, no sinks, scaled router without normalisation.
    "no_sinks": {
        **TINY,
        **heads(12, 6, 64, 48),
        "hidden_size": 384,
        "num_hidden_layers": 3,
        "vocab_size": 1000,
        "hybrid_layer_pattern": [1, 1, 0],
        "moe_layer_freq": [0, 1, 1],
        "sliding_window": 100,
        "sliding_window_size": 100,
        "add_swa_attention_sink_bias": False,
        "partial_rotary_factor": 0.334,
        "n_routed_experts": 33,
        "num_experts_per_tok": 5,
        "moe_intermediate_size": 160,
        "norm_topk_prob": False,
        "routed_scaling_factor": 2.5,
        "intermediate_size": 448,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_random_checkpoint(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    if name == "no_sinks":  # int(64 * 0.334) = 21 is odd; the official rule needs an even rotary size
        config = {**config, "partial_rotary_factor": 0.375}
    checkpoint = random_checkpoint(tmp_path / "checkpoint", config, seed=11)
    compile_model(
        MODELS / "mimo_v2.py", target="sm_90a", out=tmp_path / "package", config=config, max_context=128
    )
    rng = np.random.default_rng(5)
    ids = [int(t) for t in rng.integers(0, config["vocab_size"], 44)]
    with Engine.open(tmp_path / "package", checkpoint, grid=3) as engine:
        got = answer(engine, ids)
    noise = order_noise(mimo_v2, checkpoint, ids, got)
    print(f"{name}: order of float32 sums alone {noise:.2e}")
    # Two runs that differ in summation order only are each `noise` away from what they round.
    for rounding, bound in (("bf16", max(BF16_BOUND, 2 * noise)), ("f32", F32_BOUND)):
        found = compare(mimo_v2, checkpoint, ids, got, rounding)
        print(f"{name} {found.text(rounding)}")
        assert found.forced.max() <= bound, found.text(rounding)
