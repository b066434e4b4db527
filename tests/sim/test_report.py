"""`tilecc simulate`: its page, its JSON with the source of every cost, its timeline, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny.py"
CHECK = ("step_seconds", "idle_seconds_by_cause", "chain", "costs", "hbm_bytes_by_op")


def test_json_and_page_of_a_package(cli: Any, tiny_package: Path) -> None:
    data = json.loads(cli("simulate", tiny_package, "--json", "--rows", 4).out)
    assert data["note"] == "modelled"
    assert set(CHECK) <= set(data)
    assert all(cost["source"] for cost in data["costs"].values())
    assert data["hbm_bytes"] == sum(data["hbm_bytes_by_op"].values())
    assert data["chain"][0]["label"] == "qkv"
    page = cli("simulate", tiny_package).out
    assert "modelled step" in page and "not a measurement" in page


def test_a_timeline_has_a_thread_per_role_and_slices_that_nest(
    cli: Any, tiny_package: Path, tmp_path: Path
) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

    path = tmp_path / "step.perfetto"
    assert cli("simulate", tiny_package, "--timeline", path).code == 0
    trace = Trace.FromString(path.read_bytes())
    threads = {p.track_descriptor.thread.thread_name for p in trace.packet if p.HasField("track_descriptor")}
    assert {"loader", "consumer"} <= threads
    open_slices: dict[int, int] = {}
    waits = 0
    for packet in trace.packet:
        event = packet.track_event
        if not packet.HasField("track_event") or event.type == TrackEvent.TYPE_COUNTER:
            continue
        step = 1 if event.type == TrackEvent.TYPE_SLICE_BEGIN else -1
        open_slices[event.track_uuid] = open_slices.get(event.track_uuid, 0) + step
        assert 0 <= open_slices[event.track_uuid] <= 1
        waits += event.name.startswith("wait: ")
    assert open_slices and set(open_slices.values()) == {0} and waits
    assert [p.name for p in tmp_path.iterdir()] == ["step.perfetto"]


def test_a_model_file_of_several_ranks(cli: Any) -> None:
    data = json.loads(cli("simulate", MODEL, "--tp", 4, "--json").out)
    assert "attn_reduce" in data["seconds_by_op"]


def test_values_out_of_range_are_refused(cli: Any) -> None:
    for option, value in (("--rows", 9), ("--context", 0), ("--loops", "fast")):
        shown = cli("simulate", MODEL, option, value)
        assert shown.code == 2 and "TC0703" in shown.err and str(value) in shown.err
