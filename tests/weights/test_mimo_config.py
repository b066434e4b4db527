"""The official configuration: what is refused, and the tensors that MiMo-V2.5-Pro's own sizes imply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tilecc.diag import CATALOGUE, TileccError
from tilecc.weights.mimo_config import parse_config, tensor_specs

TINY = json.loads((Path(__file__).resolve().parents[2] / "models/mimo_tiny/config.json").read_text())

_GLOBAL = (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)
PRO: dict[str, Any] = {
    **TINY,
    "vocab_size": 152576,
    "hidden_size": 6144,
    "num_hidden_layers": 70,
    "hybrid_layer_pattern": [0 if i in _GLOBAL else 1 for i in range(70)],
    "moe_layer_freq": [0] + [1] * 69,
    "num_attention_heads": 128,
    "swa_num_attention_heads": 128,
    "num_key_value_heads": 8,
    "swa_num_key_value_heads": 8,
    "head_dim": 192,
    "swa_head_dim": 192,
    "v_head_dim": 128,
    "swa_v_head_dim": 128,
    "sliding_window": 128,
    "intermediate_size": 16384,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
}


def codes(change: dict[str, Any], drop: str = "") -> list[str]:
    config = {**TINY, **change}
    config.pop(drop, None)
    with pytest.raises(TileccError) as caught:
        parse_config(config)
    for d in caught.value.diagnostics:
        assert d.code in CATALOGUE
        assert any(key in d.message for key in [*change, drop] if key), d.message
    return [d.code for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 3},  # 8 heads: neither a multiple of the KV heads nor of the chunks
        {"num_attention_heads": 10},
        {"swa_num_key_value_heads": 6},  # not a multiple of the 4 chunks
        {"swa_num_attention_heads": 6},
        {"head_dim": 44, "partial_rotary_factor": 0.35},  # 15 rotary dimensions
        {"partial_rotary_factor": 0.01},
        {"partial_rotary_factor": 1.5},
        {"n_shared_experts": 1},
        {"n_group": 2},
        {"topk_group": 2},
        {"hidden_act": "gelu"},
        {"scoring_func": "softmax"},
        {"topk_method": "greedy"},
        {"attention_bias": True},
        {"tie_word_embeddings": True},
        {"attention_projection_layout": "split"},
        {"model_type": "mimo_v2_flash"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {"num_experts_per_tok": 17},
        {"hybrid_layer_pattern": [0, 1, 1]},
        {"moe_layer_freq": [0, 2] + [1] * 6},
        {"hidden_size": "256"},
        {"hidden_size": 0},
        {"layernorm_epsilon": -1},
        {"rope_theta": float("nan")},
        {"norm_topk_prob": "yes"},
        {"moe_router_dtype": "float16"},
    ],
)
def test_illegal_value(change: dict[str, Any]) -> None:
    assert set(codes(change)) == {"TC0107"}


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "hybrid_layer_pattern",
        "moe_layer_freq",
        "num_attention_heads",
        "num_key_value_heads",
        "rope_theta",
        "swa_rope_theta",
        "layernorm_epsilon",
        "intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
    ],
)
def test_missing_key(key: str) -> None:
    assert "TC0107" in codes({}, drop=key)


@pytest.mark.parametrize("change", [{"hidden_size": 272}, {"moe_intermediate_size": 48}])
def test_expert_columns_must_fill_mxfp4_groups(change: dict[str, Any]) -> None:
    assert codes(change) == ["TC0202"]


def test_all_problems_are_reported_at_once() -> None:
    change = {"n_group": 2, "hidden_act": "gelu", "moe_intermediate_size": 48}
    assert sorted(codes(change)) == ["TC0107", "TC0107", "TC0202"]


def test_optional_keys_have_the_family_defaults() -> None:
    """null scaling is 1, absent swa_* sizes are the global ones, a longer pattern is cut."""
    config = {k: v for k, v in TINY.items() if not k.startswith("swa_") or k == "swa_rope_theta"}
    config |= {"num_hidden_layers": 3, "attention_value_scale": None}
    parsed = parse_config(config)
    assert parsed.routed_scaling == 1.0 and parsed.value_scale == 1.0
    assert [layer.window for layer in parsed.layers] == [0, 32, 32]
    assert {(layer.heads, layer.kv_heads, layer.head_dim, layer.v_head_dim) for layer in parsed.layers} == {
        (8, 4, 48, 32)
    }


def test_pro_sizes() -> None:
    """Element counts of the published FP8 + MXFP4 checkpoint without its MTP layers (design page "mimo"
    3.4)."""
    specs = tensor_specs(parse_config(PRO))
    totals: dict[str, int] = {}
    shapes = {}
    for spec in specs.values():
        for t in spec.stored():
            count = 1
            for n in t.shape:
                count *= n
            totals[t.dtypes[0]] = totals.get(t.dtypes[0], 0) + count
            shapes[t.name] = t.shape
    assert totals["U8"] == 531_351_207_936
    assert totals["F8_E4M3"] == 70 * 27136 * 6144 + 3 * 16384 * 6144
    assert totals["F32"] == 70 * 216 * 48 + 3 * 128 * 48 + 69 * 384 * (6144 + 1)
    assert shapes["model.layers.5.self_attn.qkv_proj.weight"] == (27136, 6144)
    assert shapes["model.layers.5.self_attn.qkv_proj.weight_scale_inv"] == (216, 48)
    assert shapes["model.layers.0.mlp.down_proj.weight_scale_inv"] == (48, 128)
    assert shapes["model.layers.9.mlp.experts.383.up_proj.weight"] == (2048, 3072)
    assert shapes["model.layers.9.mlp.experts.383.down_proj.weight_scale"] == (6144, 64)
    sinks = [name for name in shapes if name.endswith("attention_sink_bias")]
    assert len(sinks) == 60 and not any(f".{i}." in name for i in _GLOBAL for name in sinks)


def test_v25_style_sliding_layers_have_more_kv_heads_than_chunks() -> None:
    """V2.5: 4 chunks everywhere; a sliding chunk is 3072 Q + 384 K + 256 V rows = 29 blocks."""
    config = {**PRO, "num_attention_heads": 64, "swa_num_attention_heads": 64}
    config |= {"num_key_value_heads": 4, "swa_num_key_value_heads": 8}
    spec = tensor_specs(parse_config(config))["model.layers.1.self_attn.qkv_proj.weight"]
    codes_tensor, scales = spec.stored()
    assert codes_tensor.shape[0] == 4 * 3712 and scales.shape == (4 * 29, 48)


def test_formats_follow_quantization_config() -> None:
    name, expert = "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.experts.gate_proj"
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    for quant, dense, moe in (
        (None, "bf16", "bf16"),
        (fp8, "fp8_block", "fp8_block"),
        ({**fp8, "store_dtype": "mxfp4"}, "fp8_block", "mxfp4"),
        ({**fp8, "ignored_layers": ["model.layers.0.mlp.gate_proj"]}, "bf16", "fp8_block"),
    ):
        specs = tensor_specs(parse_config({**TINY, "quantization_config": quant}))
        assert (specs[name].format, specs[expert].format) == (dense, moe)
        assert specs["model.layers.3.self_attn.o_proj.weight"].format == "bf16"
    specs = tensor_specs(parse_config({**TINY, "moe_router_dtype": "bfloat16"}))
    assert specs["model.layers.1.mlp.gate.weight"].format == "bf16"
