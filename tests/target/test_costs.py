"""Costs of the target table: planning figures, measurements that replace them, and how a run gets there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.micro.measured import TAKEN, import_result, measured_costs
from tests.passes.helpers import tiles_until, tiny_graph
from tilecc.diag import InternalError
from tilecc.passes.context import PassContext
from tilecc.passes.pipeline import TILE_PASSES
from tilecc.target import COST_FIELDS, find_target
from tilecc.target.costs import load_measured
from tilecc.target.table import PLANNED, with_measured

ROWS = {
    "copy_rate": (3.0e12, "B/s"),
    "bulk_hbm_16384_loaded_64k": (1.1e-6, "s"),
    "in_flight_stream_16k": (48 * 1024, "B"),
    "load_l2_loaded": (3.3e-7, "s"),
    "l2_stream_16k_x4": (5.0e12, "B/s"),
    "l2_stream_16k_x8": (5.6e12, "B/s"),
    "activations_96k_8k_slowest": (2.4e-6, "s"),
    "activations_96k_4k_turned_slowest": (2.1e-6, "s"),
    "activations_96k_4k_turned": (1.1e-6, "s"),
    "mbarrier_hand_off": (4.4e-8, "s"),
    "grid_counter_stored": (1.7e-6, "s"),
    "cooperative_launch_200k": (3.1e-6, "s"),
}


def result(name: str, factor: float = 1.0) -> dict[str, Any]:
    """What a run writes, with made-up numbers."""
    costs = {
        key: {
            "value": v * factor,
            "low": v * factor * 0.9,
            "high": v * factor * 1.2,
            "unit": unit,
            "samples": 72,
        }
        | {"what": key, "checked": "", "clocks": None, "samples": 72}
        for key, (v, unit) in ROWS.items()
    }
    return {"device": {"name": name, "driver": "580.1", "sms": 132}, "date": "2026-11-25", "costs": costs}


def imported(tmp_path: Path, *results: dict[str, Any]) -> Path:
    out = tmp_path / "measured"
    for n, r in enumerate(results):
        path = tmp_path / f"{n}.json"
        path.write_text(json.dumps(r))
        import_result(path, out)
    return out


def test_without_measurements_all_costs_are_planned() -> None:
    for planned in PLANNED.values():
        target = with_measured(planned, ())
        assert [c.name for c in target.costs] == [f.name for f in COST_FIELDS]
        assert all(not c.measured and c.source.startswith("planned: ") for c in target.costs)
        assert dataclasses.replace(target, costs=()) == planned


def test_a_run_replaces_the_costs_that_it_measured(tmp_path: Path) -> None:
    files = load_measured(imported(tmp_path, result("NVIDIA H200")))
    target = with_measured(PLANNED["sm_90a"], files)
    by_name = {c.name: c for c in target.costs}
    assert target.counter_hand_off == 1.7e-6 and target.mbarrier_hand_off == 4.4e-8
    assert target.hbm_rate == 3.0e12 and target.in_flight == 48 * 1024
    assert target.l2_rate_per_sm == pytest.approx(5.6e12 / 132, rel=1e-3)  # the best of the streams
    assert target.activation_load == 2.1e-6  # the best way, of the slowest SM
    cost = by_name["counter_hand_off"]
    assert cost.measured and (cost.low, cost.high) == pytest.approx((1.53e-6, 2.04e-6))
    assert cost.source == "measured: NVIDIA H200, 2026-11-25, 72 samples, driver 580.1"
    # Not in this run: stays planned, and says so.
    for name in ("flag_hand_off", "peer_hand_off"):
        assert not by_name[name].measured and by_name[name].value == getattr(PLANNED["sm_90a"], name)
    assert with_measured(PLANNED["sm_100a"], files).counter_hand_off == 1.25e-6


def test_memory_costs_come_from_the_machine_of_the_table(tmp_path: Path) -> None:
    h100, h200 = result("NVIDIA H100 80GB HBM3"), result("NVIDIA H200", 1.5)
    alone = with_measured(PLANNED["sm_90a"], load_measured(imported(tmp_path, h100)))
    assert alone.counter_hand_off == 1.7e-6
    assert alone.hbm_rate == 4.3e12 and not next(c for c in alone.costs if c.name == "hbm_rate").measured
    both = with_measured(PLANNED["sm_90a"], load_measured(imported(tmp_path, h200)))
    assert both.hbm_rate == pytest.approx(4.5e12) and both.counter_hand_off == pytest.approx(2.55e-6)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="no target describes `NVIDIA L4`"):
        measured_costs(result("NVIDIA L4"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"costs": {"speed": {}}}, "not a file of measured costs"),
        ({"extra": 1}, "not a file of measured costs"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "h200.json").write_text(json.dumps(measured_costs(result("NVIDIA H200")) | change))
    with pytest.raises(InternalError, match=words):
        load_measured(tmp_path)


def test_numbers_out_of_order_are_refused(tmp_path: Path) -> None:
    made = measured_costs(result("NVIDIA H200"))
    made["costs"]["launch"]["low"] = 1.0
    (tmp_path / "h200.json").write_text(json.dumps(made))
    with pytest.raises(InternalError, match="`launch` is no cost of the table, or its numbers"):
        load_measured(tmp_path)


def test_the_passes_quote_the_measured_costs(tmp_path: Path) -> None:
    files = load_measured(imported(tmp_path, result("NVIDIA H200")))
    reasons = {}
    for name, target in (
        ("planned", PLANNED["sm_90a"]),
        ("measured", with_measured(PLANNED["sm_90a"], files)),
    ):
        ctx = PassContext(target, 1024, 1)
        tiles_until(tiny_graph(), TILE_PASSES[-1], ctx)
        reasons[name] = " ".join(d.reason for d in ctx.decisions)
    assert "load behind it, 1.75 us" in reasons["planned"] and "needs 64 KiB" in reasons["planned"]
    assert "load behind it, 2.05 us" in reasons["measured"] and "needs 48 KiB" in reasons["measured"]


def test_the_files_of_this_version_are_sound() -> None:
    for file in load_measured():
        assert file.target in PLANNED and set(file.costs) <= set(TAKEN)
        assert find_target(file.target).costs
    assert all(not c.measured for c in find_target("sm_90a", planned=True).costs)


def test_the_command_lists_every_cost_with_its_source(cli: Any) -> None:
    shown = cli("targets", "--costs").out
    for target in PLANNED:
        lines = [line for line in shown.splitlines() if line.startswith(target)]
        assert [line.split()[1] for line in lines] == [f.name for f in COST_FIELDS]
        assert all("planned: " in line or "measured: " in line for line in lines)
