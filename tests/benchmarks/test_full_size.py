"""The launches of a full run, without a GPU: they stay inside the machine and the buffers, and what they
measure is what the target table asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from benchmarks.micro import cases, cases_copy, cases_latency, cases_rates, cases_sync
from benchmarks.micro.device import COUNTER_BYTES, MODES, THREADS, Gpu, Run
from benchmarks.micro.measured import TAKEN
from benchmarks.micro.report import table
from tilecc.target import COST_FIELDS

GIB = 1 << 30


class Dry(Gpu):
    """The shape of an H100 that checks arguments and computes nothing."""

    def __init__(self) -> None:
        self.name, self.sms, self.smem = "NVIDIA H100 80GB HBM3", 132, 232448
        self.data_bytes, self.work_bytes = 4 * GIB, 1 * GIB
        self.launched = 0

    def launch(self, kernel: str, mode: str, **given: Any) -> Run:  # type: ignore[override]
        self.launched += 1
        grid, samples = given["grid"], given.get("samples", 1)
        rows = given.get("rows") or grid
        size, stages, nbytes = given.get("size", 0), given.get("stages", 0), given.get("nbytes", 0)
        a, b, c = (given.get(k, 0) for k in "abc")
        assert mode in MODES[kernel] and given["smem"] <= self.smem
        assert rows * samples * 4 <= 16 << 20
        assert all(0 <= given.get(k, 0) < 2**32 for k in "rounds samples size stages a b c".split())
        if given.get("upload") is not None:
            assert given["upload"].nbytes <= self.work_bytes
        if given.get("cooperative"):
            assert grid <= self.sms
        if mode == "stream":
            assert nbytes % size == 0 and given["offset"] + nbytes <= self.data_bytes
            assert nbytes // size >= grid and size % 512 == 0  # a walk wraps at most once per step
            assert given["smem"] >= 1024 + stages * size and stages <= 48
        if mode in ("latency", "chase") and stages:
            assert given["smem"] >= 1024 + stages * c and nbytes // c >= grid
        if mode == "latency":
            assert size % 16 == a % 16 == b % 16 == given["offset"] % 16 == 0 and b > 0
            assert given["offset"] + nbytes + min((samples - 1) * a, b) + size <= self.data_bytes
        if mode == "prefetch":
            assert given["offset"] + samples * grid * size <= self.data_bytes and size % (16 * b) == 0
        if mode in ("activations", "staged"):
            assert nbytes % size == 0 and 1024 + nbytes <= self.smem and nbytes < 1 << 20
        if mode.startswith("flag"):
            assert given["upload"].nbytes == samples * given["rounds"] * 1024
        if mode.startswith("grid") and mode != "grid_flags":
            assert (2 + 2 * grid) * 128 <= COUNTER_BYTES and 0 < c <= THREADS["sync"] // 32
        work = np.zeros(given.get("read", 0) // 4, np.uint32)
        clocks = np.full((rows, samples), 1000, np.uint32)
        return Run(clocks, np.zeros((grid, 8), np.uint32), 1e-3, 1.7e9, 1e-3, work)

    def copy_rate(self, nbytes: int, n: int) -> float:
        assert nbytes * n <= self.work_bytes
        return 2.8e12

    def launches(self, kind: int, smem: int, n: int) -> tuple[float, float]:
        return 2e-6, 1e-5


def test_a_full_run_fits_the_machine_and_measures_what_the_table_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (cases_copy, cases_latency, cases_rates, cases_sync):
        monkeypatch.setattr(module, "require", lambda *_: None)
    monkeypatch.setattr(cases_rates, "check", lambda *_: None)
    machine = Dry()
    found = [c for group in cases.GROUPS.values() for case in group for c in case(machine, cases.FULL)]
    costs = {c.key: {k: v for k, v in dataclasses.asdict(c).items() if k != "key"} for c in found}
    assert len(costs) == len(found)
    assert all(find(costs) is not None for name, find in TAKEN.items()), [
        n for n, f in TAKEN.items() if not f(costs)
    ]
    units = {f.name: f.unit for f in COST_FIELDS}
    assert all(costs[str(find(costs))]["unit"] == units[name] for name, find in TAKEN.items())
    assert min(c.samples for c in found if not c.key.startswith("in_flight")) >= 20
    device = {"name": machine.name, "sms": 132, "l2_bytes": 50 << 20, "driver": "", "cuda_driver": "13.0"}
    device |= {"cuda_runtime": "13.0", "clock_limit_hz": 1.98e9}
    text = table({"device": device, "date": "2026-11-25", "failed": {"x": "y"}, "costs": costs})
    assert text.count("\n| `") == len(found) and "**x was not measured: y**" in text
    assert machine.launched > 1000
