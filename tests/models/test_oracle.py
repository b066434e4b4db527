"""The MiMo-V2 definition against transformers' MiMoV2Flash, an implementation by other people.

The checkpoint is read through the safetensors library and dequantised here element by element from the
format's definition, so that neither our reader, nor our formats, nor our row order take part on the other
side.
transformers has only the V2-Flash head layout (sliding layers hold twice the global KV heads, split q, k, v):
for the Pro layout ``k_proj`` and ``v_proj`` of the sliding layers are replaced (design page "mimo", section
5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tilecc.models.mimo_v2 import decode_step
from tilecc.models.reference import reference_logits
from tilecc.weights.checkpoint import random_checkpoint

from .helpers import TINY

flash = pytest.importorskip(
    "transformers.models.mimo_v2_flash.modeling_mimo_v2_flash",
    reason="transformers >= 5.12 is not installed (optional group `oracle`)",
)

LENGTH = 80
"""Positions compared: two and a half windows of 32 keys."""

# Float32 on both sides, other orders of summation; measured 1e-6 to 5e-6 of the largest logit. A wrong window
# edge, head or sink shows as more than 1e-2.
TOLERANCE = 1e-4


def fp8(weights: Any, name: str, chunk_rows: int) -> torch.Tensor:
    """W[n, k] = e4m3 * scale[.., k div 128], row blocks counted from the start of each chunk."""
    codes = weights.get_tensor(name).float()
    scales = weights.get_tensor(name + "_scale_inv")
    blocks = -(-chunk_rows // 128)
    out = torch.empty_like(codes)
    for n in range(codes.shape[0]):
        row = n // chunk_rows * blocks + n % chunk_rows // 128
        for k in range(0, codes.shape[1], 128):
            out[n, k : k + 128] = codes[n, k : k + 128] * scales[row, k // 128]
    return out


def mxfp4(weights: Any, name: str) -> torch.Tensor:
    """Low nibble = even column; sign, then {0, .5, 1, 1.5, 2, 3, 4, 6}; times 2^(scale - 127) per 32
    columns."""
    packed, scale = weights.get_tensor(name).int(), weights.get_tensor(name + "_scale").int()
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[(codes & 7).long()] * (1 - 2 * (codes >> 3))
    return values * torch.exp2((scale - 127).float()).repeat_interleave(32, 1)


def oracle(config: dict[str, Any], folder: Path) -> Any:
    """transformers' model with the checkpoint's weights."""
    theta = {"full_attention": config["rope_theta"], "sliding_attention": config["swa_rope_theta"]}
    pattern = [("full_attention", "sliding_attention")[p] for p in config["hybrid_layer_pattern"]]
    hf = flash.MiMoV2FlashConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        max_position_embeddings=4096,
        rms_norm_eps=config["layernorm_epsilon"],
        moe_intermediate_size=config["moe_intermediate_size"],
        n_routed_experts=config["n_routed_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        routed_scaling_factor=config["routed_scaling_factor"],
        norm_topk_prob=config["norm_topk_prob"],
        head_dim=config["head_dim"],
        v_head_dim=config["v_head_dim"],
        sliding_window=config["sliding_window"],  # counts the query itself; 128 in the official HF code
        layer_types=pattern,
        mlp_layer_types=[("dense", "sparse")[m] for m in config["moe_layer_freq"]],
        attention_value_scale=config["attention_value_scale"],
        rope_parameters={
            kind: {
                "rope_type": "default",
                "rope_theta": float(theta[kind]),
                "partial_rotary_factor": config["partial_rotary_factor"],
            }
            for kind in theta
        },
        attn_implementation="eager",
        experts_implementation="eager",
    )
    net = flash.MiMoV2FlashForCausalLM(hf).float().eval()
    heads, d, dv = config["num_attention_heads"], config["head_dim"], config["v_head_dim"]
    chunks, hidden = config["num_key_value_heads"], config["hidden_size"]
    state: dict[str, torch.Tensor] = {}
    with safe_open(folder / "model.safetensors", "pt") as weights:
        for name in weights.keys():
            if name.endswith(("norm.weight", "embed_tokens.weight", "lm_head.weight", "o_proj.weight")):
                state[name] = weights.get_tensor(name).float()
            elif name.endswith("attention_sink_bias"):
                state[name.replace("attention_sink_bias", "sinks")] = weights.get_tensor(name).float()
            elif name.endswith(("mlp.gate.weight", "e_score_correction_bias")):
                state[name] = weights.get_tensor(name)
        for i, kind in enumerate(pattern):
            base = f"model.layers.{i}."
            local = kind == "sliding_attention"
            kv_heads = config["swa_num_key_value_heads"] if local else config["num_key_value_heads"]
            attn = net.model.layers[i].self_attn
            if attn.k_proj.weight.shape[0] != kv_heads * d:
                attn.k_proj = torch.nn.Linear(hidden, kv_heads * d, bias=False)
                attn.v_proj = torch.nn.Linear(hidden, kv_heads * dv, bias=False)
                attn.num_key_value_groups = heads // kv_heads
            # Un-interleave: chunk = [heads/chunks Q | kv_heads/chunks K | kv_heads/chunks V] rows.
            sizes = [heads // chunks * d, kv_heads // chunks * d, kv_heads // chunks * dv]
            fused = fp8(weights, base + "self_attn.qkv_proj.weight", sum(sizes))
            parts: list[list[torch.Tensor]] = [[], [], []]
            for chunk in fused.split(sum(sizes)):
                for part, rows in zip(parts, chunk.split(sizes), strict=True):
                    part.append(rows)
            for letter, part in zip("qkv", parts, strict=True):
                state[f"{base}self_attn.{letter}_proj.weight"] = torch.cat(part)
            if not config["moe_layer_freq"][i]:
                for which in ("gate", "up", "down"):
                    name = f"{base}mlp.{which}_proj.weight"
                    state[name] = fp8(weights, name, config["intermediate_size"] + config["hidden_size"])
                continue
            experts = [
                [mxfp4(weights, f"{base}mlp.experts.{e}.{w}_proj.weight") for w in ("gate", "up", "down")]
                for e in range(config["n_routed_experts"])
            ]
            state[base + "mlp.experts.gate_up_proj"] = torch.stack([torch.cat(e[:2]) for e in experts])
            state[base + "mlp.experts.down_proj"] = torch.stack([e[2] for e in experts])
    net.load_state_dict(state, strict=True)
    return net


CASES = {
    # Pro layout: as many KV heads in sliding layers as in global ones.
    "tiny": TINY,
    # Flash layout: twice the KV heads in sliding layers, fused in `num_key_value_heads` chunks; other
    # options.
    "flash heads": {
        **TINY,
        "num_hidden_layers": 5,
        "hybrid_layer_pattern": [0, 1, 1, 0, 1],
        "moe_layer_freq": [0, 1, 0, 1, 1],
        "num_key_value_heads": 2,
        "swa_num_key_value_heads": 4,
        "sliding_window": 9,
        "attention_value_scale": 0.707,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
    },
}


@pytest.mark.parametrize("name", list(CASES))
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    """Teacher-forced logits of 80 random tokens, cached decode in steps of 8 rows, all in float32."""
    config = CASES[name]
    folder = random_checkpoint(tmp_path, config, seed=3)
    ids = np.random.default_rng(4).integers(0, config["vocab_size"], LENGTH).tolist()
    with torch.no_grad():
        want = oracle(config, folder)(torch.tensor([ids])).logits[0].numpy()
    got = reference_logits(decode_step(config).load(folder), None, ids, "f32")
    assert np.abs(want).max() > 1
    error = np.abs(got - want).max() / np.abs(want).max()
    print(f"{name}: max |difference| / max |logit| = {error:.2e}")
    assert error <= TOLERANCE


Run = tuple[Path, list[int], Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Checkpoint, tokens and our logits of the tiny configuration."""
    folder = random_checkpoint(tmp_path_factory.mktemp("tiny"), TINY, seed=3)
    ids = np.random.default_rng(4).integers(0, TINY["vocab_size"], LENGTH).tolist()
    return folder, ids, reference_logits(decode_step(TINY).load(folder), None, ids, "f32")


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 33},
        {"attention_value_scale": 0.707},
        {"swa_rope_theta": 20000},
        {"num_experts_per_tok": 3},
        {"add_swa_attention_sink_bias": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_a_wrong_definition(tiny: Run, change: dict[str, Any]) -> None:
    """One wrong key on our side must show well above the tolerance, so the test above can fail."""
    folder, ids, right = tiny
    wrong = reference_logits(decode_step({**TINY, **change}).load(folder), None, ids, "f32")
    assert np.abs(right - wrong).max() / np.abs(right).max() > 100 * TOLERANCE
