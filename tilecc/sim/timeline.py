"""A Perfetto trace of a simulated step: one process per sampled SM, one thread per role, waits as slices
of their own, flows along hand-offs, and a counter track of HBM bytes per second.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from tilecc.sim.lower import SimOp
from tilecc.sim.machine import Result

_ROLES = ("loader", "consumer")
SEQUENCE = 1


def write_timeline(path: Path, name: str, ops: list[SimOp], result: Result) -> None:
    """Write the trace of the sampled CTAs; the file appears whole or not at all. Open it at
    ui.perfetto.dev."""
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    builder = TraceProtoBuilder()
    _build(builder, name, ops, result)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".timeline-")
    with os.fdopen(handle, "wb") as file:
        file.write(builder.serialize())
    os.replace(temporary, path)


def _build(builder: Any, name: str, ops: list[SimOp], result: Result) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    ctas = sorted({span.cta for span in result.spans})
    tracks: dict[tuple[int, str], int] = {}
    for cta in ctas:
        process = builder.add_packet()
        process.track_descriptor.uuid = 1000 + cta
        process.track_descriptor.process.pid = cta + 1
        process.track_descriptor.process.process_name = f"SM {cta} of {name}, modelled"
        for number, role in enumerate(_ROLES):
            thread = builder.add_packet().track_descriptor
            tracks[cta, role] = thread.uuid = 1_000_000 + cta * 16 + number
            thread.parent_uuid = 1000 + cta
            thread.thread.pid, thread.thread.tid = cta + 1, number + 1
            thread.thread.thread_name = role
    first_use: set[tuple[int, int]] = set()
    last_end = dict.fromkeys(tracks.values(), -1)
    for span in sorted(result.spans, key=lambda s: (s.start, s.end)):
        track = tracks[span.cta, span.role]
        # Loads of one ring overlap; a track holds one slice at a time, so each starts where the last one
        # ended.
        begin, end = max(_ns(span.start), last_end[track]), _ns(span.end)
        if end <= begin:
            continue
        last_end[track] = end
        op = ops[span.op]
        label = op.name if span.what != "wait" else f"wait: {op.label}"
        start = _event(builder, TrackEvent.TYPE_SLICE_BEGIN, begin, track, label)
        if span.what == "compute" and (span.cta, span.op) not in first_use:
            first_use.add((span.cta, span.op))
            start.terminating_flow_ids.extend(1 + w.op for w in op.waits if not w.previous_step)
            start.flow_ids.append(1 + span.op)
        _event(builder, TrackEvent.TYPE_SLICE_END, end, track, "")
    counter = builder.add_packet().track_descriptor
    counter.uuid, counter.name = 1, "HBM GB/s, modelled"
    counter.counter.unit_name = "GB/s"
    for begin_s, end_s, nbytes in result.traffic:
        if end_s > begin_s:
            for time, rate in ((begin_s, nbytes / (end_s - begin_s) / 1e9), (end_s, 0.0)):
                _event(builder, TrackEvent.TYPE_COUNTER, _ns(time), 1, "").double_counter_value = rate


def _event(builder: Any, kind: int, time: int, track: int, name: str) -> Any:
    packet = builder.add_packet()
    packet.timestamp = time
    packet.trusted_packet_sequence_id = SEQUENCE
    event = packet.track_event
    event.type, event.track_uuid = kind, track
    if name:
        event.name = name
    return event


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
