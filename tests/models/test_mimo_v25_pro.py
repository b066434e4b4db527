"""MiMo-V2.5-Pro whole, on meta tensors: its published sizes, and what one of eight ranks streams per step."""

from __future__ import annotations

import collections
import time
from functools import cache
from pathlib import Path

import pytest

from tilecc.ir.graph import Graph, Param
from tilecc.ir.graph_rules import GRAPH_RULES
from tilecc.ir.tile_rules import TILE_RULES
from tilecc.ir.verify import verify
from tilecc.models.mimo_v25_pro import GLOBAL_LAYERS, default_config
from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import FUSE, TILE_PASSES
from tilecc.passes.shard import shard
from tilecc.sim.lower import Scenario, distinct_experts, lower
from tilecc.target import find_target
from tilecc.trace.capture import trace_model
from tilecc.weights.mimo_config import parse_config, tensor_specs
from tilecc.weights.spec import scale_name, stored_tensors

MODEL = Path(__file__).resolve().parents[2] / "models" / "mimo_v25_pro.py"
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


@cache
def graph() -> Graph:
    return trace_model(MODEL)


def stored_bytes(param: Param) -> float:
    """Bytes of a param's codes and scales as a rank holds them."""
    count = 1
    for n in param.shape:
        count *= int(n)
    per_weight = {"bf16": 2, "f32": 4, "fp8_block": 1 + 4 / 128**2, "mxfp4": 0.5 + 1 / 32}
    return count * per_weight[param.format]


def category(name: str) -> str:
    for part in ("qkv_proj", "o_proj", "experts", "lm_head", "embed_tokens", "norm"):
        if part in name:
            return part
    if ".mlp.gate." in name:
        return "router"
    return "dense" if ".mlp." in name else "small"


def totals(g: Graph) -> dict[str, float]:
    found: dict[str, float] = collections.Counter()
    for p in g.params:
        found[category(p.name)] += stored_bytes(p)
    return found


def test_it_traces_in_seconds_and_is_sound() -> None:
    start = time.process_time()
    g = graph()
    assert time.process_time() - start < 60  # about 7 s on one core; generous for a loaded machine
    assert verify(g, GRAPH_RULES) == []
    assert sum(n.op == "attend" for n in g.nodes) == 70
    windows = [n.attrs["window_keys"] for n in g.nodes if n.op == "attend"]
    assert tuple(i for i, w in enumerate(windows) if w == 0) == GLOBAL_LAYERS
    assert {w for w in windows if w} == {128}
    assert sum(len(n.inputs) > 7 for n in g.nodes if n.op == "attend") == 60  # sinks on sliding layers only


def test_the_parameters_are_those_of_the_published_checkpoint() -> None:
    """In the FP4 format: experts of 531.35 GB (mimo.md 3.4), qkv scales of 216 rows, not 212 (3.3)."""
    config = default_config()
    specs = tensor_specs(parse_config(config))
    sizes: dict[str, int] = collections.Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in specs.values():
        for name in spec.names()[:1]:
            for stored in stored_tensors(name, spec):
                count = 1
                for n in stored.shape:
                    count *= n
                sizes[category(stored.name)] += count * BYTES[stored.dtypes[0]] * max(spec.experts, 1)
                shapes[stored.name] = stored.shape
    assert sizes["experts"] == 531_351_207_936
    qkv = "model.layers.5.self_attn.qkv_proj.weight"
    assert shapes[qkv] == (27136, 6144)
    assert shapes[scale_name(qkv, "fp8_block")] == (216, 48)
    assert shapes["model.layers.5.self_attn.o_proj.weight"] == (6144, 16384)
    assert shapes["model.layers.1.mlp.gate.weight"] == (384, 6144)


def test_bytes_of_a_step_are_those_of_the_design() -> None:
    """The design's own count (architecture.md section 9): experts are 82.4 GB at 59.5 of 384 distinct."""
    found = totals(graph())
    giga = {"qkv_proj": 11.67, "o_proj": 14.09, "router": 0.65, "dense": 0.30, "lm_head": 1.89}
    for name, expected in giga.items():
        assert found[name] == pytest.approx(expected * 1e9, rel=0.02), name
    assert found["experts"] * 59.5 / 384 == pytest.approx(82.4e9, rel=0.02)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_holds_its_part(ranks: int) -> None:
    whole = totals(graph())
    part = shard(graph(), PassContext(find_target("sm_90a"), 1024, 1, ranks))
    assert verify(part, GRAPH_RULES) == []
    found = totals(part)
    for name in ("qkv_proj", "o_proj", "dense", "lm_head", "experts"):
        assert found[name] == pytest.approx(whole[name] / ranks, rel=1e-12), name
    for name in ("router", "embed_tokens", "norm"):  # replicated, see the pass
        assert found[name] == whole[name], name
    assert {s.heads for s in part.states} == {8 // ranks}
    assert collections.Counter(n.op for n in part.nodes)["all_reduce"] == 2 * 70


def test_sixteen_ranks_are_refused_where_the_model_says_so() -> None:
    from tests.passes.helpers import refusal

    found = refusal(lambda: shard(graph(), PassContext(find_target("sm_90a"), 1024, 1, 16)), "TC0224")
    assert "8 chunks" in found.message
    assert found.span is not None and found.span.file.endswith("mimo_v2.py")


def test_a_rank_lowers_to_sound_tiles() -> None:
    ctx = PassContext(find_target("sm_90a"), 1 << 17, 1, 8)
    tiles = FUSE(shard(graph(), ctx), ctx)
    for tile_pass in TILE_PASSES:
        tiles = tile_pass(tiles, ctx)
    assert verify(tiles, TILE_RULES) == []
    assert sum(op.kind == "reduce" for op in tiles.ops) == 2 * 70


def test_the_simulated_step_moves_the_bytes_of_the_design() -> None:
    """Per category against the independent count of design section 9, of one of eight ranks, within 2 %.

    Counted apart: the router, which every rank streams whole, because a router of parts would cost one more
    exchange; FP8 scales, which the image repeats for each of the 128 rows that share one, so that they lie
    beside the codes of any m16 tile (64 of the 2112 bytes of a block); the KV cache, which the design leaves
    out.
    """
    ranks, rows = 8, 8
    ctx = PassContext(find_target("sm_90a"), 4096, 1, ranks)
    tiles = FUSE(shard(graph(), ctx), ctx)
    for tile_pass in TILE_PASSES:
        tiles = tile_pass(tiles, ctx)
    found: dict[str, float] = collections.Counter()
    for op in lower(tiles, Scenario(rows, distinct_experts(tiles, rows), 4096)):
        moved = round(op.tasks) * op.stages * op.stage_bytes
        scales = moved * 64 / 2112 if op.format == "fp8_block" else 0.0
        found[MOVED.get(op.label, op.label)] += moved - scales
        found["fp8 scales"] += scales
        found["kv"] += op.kv_bytes
    found = {name: nbytes for name, nbytes in found.items() if nbytes}
    assert found.keys() == DESIGN_GB.keys() | {"router", "kv", "fp8 scales"}
    for name, gigabytes in DESIGN_GB.items():
        assert found[name] * ranks / 1e9 == pytest.approx(gigabytes, rel=0.02), name
    assert found["router"] / 1e9 == pytest.approx(0.65, rel=0.02)
    assert found["fp8 scales"] == pytest.approx((found["qkv"] + found["dense"]) / 32)
    # 10 global layers of 256 blocks, 60 sliding ones of 9; 16 positions of 192 keys and 128 values in bf16
    assert found["kv"] == (10 * 256 + 60 * 9) * 16 * (192 + 128) * 2


MOVED = {
    "o_proj": "o_proj", "qkv": "qkv", "gate_up": "dense", "down": "dense", "head": "lm_head",
    "experts_up": "experts", "experts_down": "experts",
}  # fmt: skip
DESIGN_GB = {"qkv": 11.67, "o_proj": 14.09, "dense": 0.30, "lm_head": 1.89, "experts": 82.4}
