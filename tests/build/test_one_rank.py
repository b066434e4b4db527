"""A kernel with the sizes of one of eight ranks of MiMo-V2.5-Pro fits the register file: no stack, no spills.

Sixteen query heads on one KV head (192 / 128), hidden size 6144, window 128, 384 experts of width 256; four
layers that hold every kind of op. Weights stay on meta tensors: the kernel's text knows sizes, not values.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.models.helpers import TINY
from tilecc.build.nvcc import build_cuda
from tilecc.emit.compiler import CompileResult, compile_model
from tilecc.ir.program import Program

MODEL = Path(__file__).resolve().parents[2] / "models" / "mimo_v2.py"

RANK: dict[str, Any] = {
    **TINY,
    "hidden_size": 6144,
    "num_hidden_layers": 4,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1],
    "sliding_window": 128,
    "sliding_window_size": 128,
    "intermediate_size": 2048,
    "moe_intermediate_size": 256,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "vocab_size": 19072,
    "max_position_embeddings": 1 << 20,
}
for prefix in ("", "swa_"):
    RANK |= {
        f"{prefix}num_attention_heads": 16, f"{prefix}num_key_value_heads": 1,
        f"{prefix}head_dim": 192, f"{prefix}v_head_dim": 128,
    }  # fmt: skip


def compiled(out: Path, kv: str) -> CompileResult:
    return compile_model(MODEL, target="sm_90a", out=out, config=RANK, max_context=1 << 17, kv=kv)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize(
    ("kv", "targets"),
    [
        ("bf16", ["sm_90a"]),
        pytest.param("bf16", ["sm_100a"], marks=pytest.mark.nightly),
        pytest.param("fp8", ["sm_90a", "sm_100a"], marks=pytest.mark.nightly),
    ],
)
def test_no_stack_and_no_spills(tmp_path: Path, kv: str, targets: list[str]) -> None:
    result = compiled(tmp_path / "rank", kv)
    program = Program.from_text(result.texts["20-program.txt"])
    kinds = {op.kind for op in program.classes}
    assert {"qkv", "attention", "attention_merge", "router", "route", "experts_up", "gate_up"} <= kinds
    report = build_cuda(result.package_dir, targets)
    for k in report.kernels:
        print(f"{k.target}, {kv} cache: {k.registers} registers")
        assert (k.stack_bytes, k.spill_store_bytes, k.spill_load_bytes) == (0, 0, 0), k
    assert len(report.kernels) == len(targets) and report.problems() == []


@pytest.mark.parametrize(("kv", "block"), [("bf16", 16 * (192 + 128) * 2), ("fp8", 16 * (192 + 128))])
def test_shared_memory_and_cache(tmp_path: Path, kv: str, block: int) -> None:
    """The weight ring keeps at least 96 KiB beside the activation ring and the exchange."""
    result = compiled(tmp_path / "rank", kv)
    program = Program.from_text(result.texts["20-program.txt"])
    weights = program.ring("weights")
    assert weights.slots * weights.slot_bytes >= 96 * 1024
    # Two global layers of 8,192 blocks, two rings of 10 blocks.
    assert program.kv_bytes == 2 * ((1 << 17) // 16 + 10) * block
    assert result.manifest is not None and result.manifest.kv_format == kv
