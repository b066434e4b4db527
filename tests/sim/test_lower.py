"""What the simulator is told about an op, against counts made by hand from the templates."""

from __future__ import annotations

import pytest

from tests.passes.helpers import Net, context, tiles_until
from tilecc.passes.pipeline import TILE_PASSES
from tilecc.sim.costs import costs_of
from tilecc.sim.lower import Path, Scenario, SimOp, lower
from tilecc.sim.machine import machine_of, simulate
from tilecc.target import find_target


def ops_of(net: Net, scenario: Scenario, kv: str = "bf16", max_context: int = 4096) -> dict[str, SimOp]:
    graph = tiles_until(net.graph(), TILE_PASSES[-1], context(max_context=max_context))
    for op in graph.ops:
        if "kv" in op.attrs:
            op.attrs["kv"] = kv
    return {op.name: op for op in lower(graph, scenario)}


NET = Net(layers=((0, "moe"), (128, "moe")), heads=16, kv_heads=1, dim=32, v_dim=16)


def test_a_warp_of_a_global_layer_goes_through_all_blocks_of_its_split() -> None:
    # 4096 positions are 64 chunks of 4 blocks; 64 splits own one each. Rows come in groups of 4 (warps).
    op = ops_of(NET, Scenario(rows=8, context=4096))["layers.0.attention"]
    assert (op.tasks, op.warp_blocks) == (2 * 64, 4)
    # Three chunks: three splits have work.
    op = ops_of(NET, Scenario(rows=8, context=130))["layers.0.attention"]
    assert (op.tasks, op.warp_blocks) == (2 * 3, 4)
    # Twice as many chunks as splits.
    op = ops_of(NET, Scenario(rows=2, context=8192), max_context=8192)["layers.0.attention"]
    assert (op.tasks, op.warp_blocks) == (64, 8)


def test_a_sliding_layer_deals_its_blocks_over_the_warps() -> None:
    op = ops_of(NET, Scenario(rows=3, context=4096))["layers.1.attention"]
    assert (op.tasks, op.warp_blocks) == (3, 3)  # 128 positions touch 9 blocks
    op = ops_of(NET, Scenario(rows=3, context=20))["layers.1.attention"]
    assert (op.tasks, op.warp_blocks) == (3, 1)


@pytest.mark.parametrize(("kv", "element"), [("bf16", 2), ("fp8", 1)])
def test_kv_bytes_follow_the_format_of_the_cache(kv: str, element: int) -> None:
    found = ops_of(NET, Scenario(rows=8, context=4096), kv)
    each = (32 + 16) * 16 * element
    assert found["layers.0.attention"].kv_bytes == 256 * each
    assert found["layers.1.attention"].kv_bytes == 9 * each


def test_the_merge_has_tasks_for_the_rows_of_the_step_and_terms_for_the_splits_reached() -> None:
    for rows, context_, terms in ((8, 4096, 64), (3, 4096, 64), (3, 130, 3)):
        op = ops_of(NET, Scenario(rows=rows, context=context_))["layers.0.attention_merge"]
        assert (op.tasks, op.terms) == (rows * 2, terms)


def test_a_longer_context_takes_longer() -> None:
    graph = tiles_until(NET.graph(), TILE_PASSES[-1], context(max_context=1 << 17))
    costs = costs_of(find_target("sm_90a"))
    steps = []
    for positions in (64, 4096, 1 << 15, 1 << 17):
        scenario = Scenario(rows=8, active=4, context=positions)
        steps.append(simulate(lower(graph, scenario), machine_of(graph), costs, scenario).step)
    assert steps == sorted(steps) and steps[-1] > steps[0] + 31e-6  # 128 blocks of 0.25 us instead of 4


def test_paths_of_the_activations() -> None:
    net = Net(layers=((8, "moe"), (8, "dense")), expert_width=128, width=128)
    net.formats = {"e_down": "mxfp4", "down": "bf16"}
    found = ops_of(net, Scenario(rows=8, active=4))
    assert found["layers.0.qkv"].path is found["layers.0.experts_up"].path is Path.RESIDENT
    assert found["layers.0.experts_down"].path is Path.COPY
    assert found["layers.1.down"].path is found["layers.0.o_proj"].path is Path.RESIDENT
    assert found["layers.0.attention"].path is Path.NONE
