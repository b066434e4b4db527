"""The simulator against times worked out by hand, and against bounds that no schedule can beat."""

from __future__ import annotations

import dataclasses

import pytest

from tests.passes.helpers import Net, context, tiles_until
from tests.passes.test_shard import NET, chunked, sharded
from tilecc.ir.tile import HandOffKind
from tilecc.passes.pipeline import TILE_PASSES
from tilecc.sim.costs import Costs, costs_of
from tilecc.sim.loops import CODE
from tilecc.sim.lower import Path, Scenario, SimOp, Wait, distinct_experts, lower
from tilecc.sim.machine import Machine, machine_of, simulate
from tilecc.target import find_target

COSTS = costs_of(
    find_target("sm_90a"), hbm_rate=1e9, hbm_latency=1e-6, l2_latency=0.0, l2_rate_per_sm=1e18,
    l2_stream=1e18, counter=5e-6, mbarrier=0.0, mbarrier_passed=0.0, copy=0.0,
    epilogue=0.0,
)  # fmt: skip
"""1 byte per ns; consumers, loaders and activations cost nothing unless a test says so."""

IDEAL = Scenario(grid=4, loops="ideal")


def stream(name: str, tasks: int, stages: int, nbytes: int, *waits: int, **changes: object) -> SimOp:
    links = tuple(Wait(w, HandOffKind.COUNTER, False) for w in waits)
    op = SimOp(name, "project", name, 0, links, tasks, 0, stages, nbytes)
    return dataclasses.replace(op, **changes)  # type: ignore[arg-type]


def run(ops: list[SimOp], slots: int = 8, costs: Costs = COSTS, grid: int = 4, **machine: object) -> float:
    return simulate(ops, Machine(slots, **machine), costs, dataclasses.replace(IDEAL, grid=grid)).step  # type: ignore[arg-type]


def test_one_stream_takes_its_bytes_and_one_latency() -> None:
    assert run([stream("a", 4, 8, 1000)]) == pytest.approx(4 * 8 * 1000e-9 + 1e-6)


def test_a_short_ring_pays_the_latency_per_round() -> None:
    # Alone on the machine: 2 slots of 100 B, 1 us of latency: each pair of stages waits for its landing.
    ops = [stream("a", 1, 8, 100)]
    assert run(ops, slots=2, grid=1) == pytest.approx(4 * (1e-6 + 0.1e-6) + 0.1e-6, rel=0.05)
    assert run(ops, slots=8, grid=1) == pytest.approx(1e-6 + 0.8e-6)


def test_the_ring_hides_weights_behind_a_hand_off() -> None:
    ops = [stream("a", 4, 2, 100), stream("b", 4, 2, 100, 0)]
    alone = 4 * 2 * 100e-9 + 1e-6
    # b's weights land while a's counter travels: after the hand-off nothing is left to wait for.
    assert run(ops) == pytest.approx(alone + 5e-6)
    assert run(ops, across_ops=False) == pytest.approx(2 * alone + 5e-6, rel=0.05)


def test_an_uneven_deal_costs_a_round() -> None:
    # One lane per clock of 1 ns: a stage takes the instructions of its weights.
    clock = dataclasses.replace(COSTS, issue=1, integer=1e9, scoreboard=0.0, clock=1e9)
    scenario = dataclasses.replace(IDEAL, loops="sass")
    stage = 4000 * CODE["bf16"].issue * 1e-9
    for tasks, rounds in ((8, 2), (9, 3)):
        ops = [stream("a", tasks, 1, 0, weights=4000.0, format="bf16")]
        assert simulate(ops, Machine(8), clock, scenario).step == pytest.approx(rounds * stage + 1e-6)


def test_more_consumer_warps_shorten_a_stage_until_they_share_a_bound() -> None:
    scenario = dataclasses.replace(IDEAL, loops="exposed")
    ops = [stream("a", 4, 8, 0, weights=65536.0, format="mxfp4")]
    costs = costs_of(find_target("sm_90a"), hbm_latency=0.0)
    steps = [simulate(ops, Machine(8, consumers=n), costs, scenario).step for n in (4, 8, 16, 32)]
    assert steps[0] > steps[1] > steps[2] == steps[3]


def test_expert_weights_wait_for_their_addresses_and_dense_ones_do_not() -> None:
    route = SimOp("route", "route", "route", 0, (), 0, 0)
    slow = dataclasses.replace(COSTS, route=50e-6)
    up = stream("up", 4, 8, 1000, route=0)
    next_layer = stream("qkv", 4, 8, 1000, 1)
    ops = [route, dataclasses.replace(up, waits=(Wait(0, HandOffKind.MBARRIER, False),)), next_layer]
    stream_time = 4 * 8 * 1000e-9
    assert run(ops, costs=slow) == pytest.approx(
        50e-6 + 1e-6 + stream_time + max(5e-6, stream_time), rel=0.02
    )
    # With L2 prefetch the next layer's weights come while the expert list is unknown.
    head = dataclasses.replace(stream("head", 4, 1, 1000), prefetch=((3, 8),))
    later = dataclasses.replace(next_layer, waits=(Wait(2, HandOffKind.COUNTER, False),))
    up = dataclasses.replace(up, waits=(Wait(1, HandOffKind.MBARRIER, False),), route=1)
    ops = [head, route, up, later]
    assert run(ops, costs=slow) == pytest.approx(50e-6 + stream_time + 6e-6, rel=0.02)
    without = 50e-6 + 1e-6 + stream_time + max(5e-6, stream_time)
    assert run(ops, costs=slow, l2_prefetch=False) == pytest.approx(without, rel=0.02)


def test_activations_limit_an_op_that_moves_more_of_them_than_of_weights() -> None:
    costs = dataclasses.replace(COSTS, l2_rate_per_sm=1e8)
    ops = [stream("a", 4, 10, 10, act_bytes=100.0, path=Path.COPY)]
    assert run(ops, costs=costs) == pytest.approx(10e-6, rel=0.02)


def test_resident_activations_are_loaded_for_the_first_task_alone() -> None:
    costs = dataclasses.replace(COSTS, l2_rate_per_sm=1e8, hbm_latency=0.0)
    ops = [stream("a", 12, 10, 0, act_bytes=100.0, path=Path.RESIDENT)]
    again = [stream("a", 12, 10, 0, act_bytes=100.0, path=Path.COPY)]
    assert run(ops, costs=costs) == pytest.approx(run(again, costs=costs) / 3)


def test_a_loader_pays_for_each_copy() -> None:
    costs = dataclasses.replace(COSTS, copy=1e-6, mbarrier_passed=0.5e-6)
    assert run([stream("a", 4, 10, 0, copies=4)], costs=costs) == pytest.approx(10 * 4.5e-6, rel=0.1)


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_whole_net_moves_its_bytes_and_beats_no_bound(ranks: int) -> None:
    graph = tiles_until(sharded(chunked(NET), ranks), TILE_PASSES[-1], context())
    scenario = Scenario(rows=4, active=4, context=64, grid=8)
    ops = lower(graph, scenario)
    costs = costs_of(find_target("sm_90a"))
    result = simulate(ops, machine_of(graph), costs, scenario, (0, 7), spans=True)
    floor = sum(result.hbm_bytes.values()) / costs.hbm_rate
    assert result.hbm_busy == pytest.approx(floor)
    assert result.step > floor
    longest = 0.0  # hand-offs alone, along the longest path
    depth = [0.0] * len(ops)
    price = {
        HandOffKind.COUNTER: costs.counter,
        HandOffKind.MBARRIER: costs.mbarrier,
        HandOffKind.PEER_FLAG: costs.peer,
        HandOffKind.FLAG: costs.flag,
    }
    for i, op in enumerate(ops):
        depth[i] = max((depth[w.op] + price[w.kind] for w in op.waits if not w.previous_step), default=0.0)
        longest = max(longest, depth[i])
    assert result.step > longest
    assert all(done >= ready for ready, done in zip(result.ready, result.done, strict=True))
    assert sum(result.idle.values()) <= result.step
    assert sum(result.starved.values()) <= result.step
    for parts, ready, done in zip(result.parts, result.ready, result.done, strict=True):
        assert parts.total() == pytest.approx(done - ready)
    spans = [s for s in result.spans if s.role == "consumer"]
    assert spans and all(s.end >= s.start >= 0 for s in spans)


def test_more_ring_never_hurts_one_stream_and_the_run_is_deterministic() -> None:
    ops = [stream("a", 7, 3, 500), stream("b", 5, 4, 300, 0), stream("c", 9, 2, 700, 1)]
    times = [run(ops, slots=n) for n in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert run(ops, slots=4) == times[2]


def test_distinct_experts_of_independent_rows() -> None:
    graph = tiles_until(Net(experts=384, k=8).graph(), TILE_PASSES[-1])
    assert distinct_experts(graph, 8) == pytest.approx(59.5, abs=0.05)  # the design's figure
    assert distinct_experts(graph, 1) == pytest.approx(8.0)
