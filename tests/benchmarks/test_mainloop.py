"""The main loop benchmark without a GPU: what it prepares is right, and its check can fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tilecc.emit.single import SingleOp
from tilecc.runtime.bare import BareKernel
from tilecc.runtime.devices.emulator import EmulatorDevice

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("mainloop_cases", "mainloop_run", "mainloop_offline", "abi", "fragments")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, found as a script finds them; mainloop_run as in a prepared folder."""
    monkeypatch.syspath_prepend(str(ROOT / "runtime"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


OPS = {
    "project": SingleOp("project", "mxfp4", 144, 256, layers=3, name="bench"),
    "gate_up": SingleOp("gate_up", "fp8_block", 160, 256, layers=2, name="bench"),
    "experts": SingleOp("experts", "mxfp4", 64, 256, layers=2, experts=9, k=3, name="bench"),
}


@pytest.mark.parametrize("kind", OPS)
def test_what_is_prepared_gives_the_expected_result(
    kind: str, tmp_path: Path, modules: dict[str, ModuleType]
) -> None:
    """The run's own reading of a prepared folder, with the emulator in the place of the GPU."""
    cases, run = modules["mainloop_cases"], modules["mainloop_run"]
    filled = cases.fill(cases.Case("bench", OPS[kind], "test"), tmp_path / "package")
    described: dict[str, Any] = cases.describe(cases.Case("bench", OPS[kind], "test"), filled, tmp_path)
    image = torch.zeros(described["image_bytes"], dtype=torch.uint8)
    run.fill_image(image, tmp_path, described)
    assert (image.numpy() == filled.image()).all()
    space = run.first_workspace(tmp_path, described)
    manifest = filled.package.manifest
    device = EmulatorDevice(tmp_path / "package", manifest, 3)
    kernel = BareKernel.open(tmp_path / "package", device, image.numpy())
    inputs = {r.name: space[r.offset : r.offset + r.nbytes] for r in manifest.workspace}
    result = kernel.run(inputs, steps=2)
    after = np.zeros(manifest.workspace_bytes, np.uint8)
    for region in manifest.workspace:
        after[region.offset : region.offset + region.nbytes] = result.regions[region.name]
    got = run.read_result(described, after)
    passed, worst = run.check(tmp_path, described, got)
    assert passed and worst <= 1.0
    # One wrong value, a neighbour's tile, another layer's shift: each is refused.
    wrong = got.copy()
    wrong[7, -1] += 2.1 * np.load(tmp_path / "bound.npy").max()
    assert not run.check(tmp_path, described, wrong)[0]
    wrong = got.copy()
    wrong[:, :16] = got[:, 16:32]
    assert not run.check(tmp_path, described, wrong)[0]
    assert not run.check(tmp_path, described, np.where(np.arange(got.shape[1]) == 3, np.nan, got))[0]
    if kind != "experts":
        assert not run.check(tmp_path, described | {"shift": described["shift"] + 1}, got)[0]


def test_a_wrong_result_has_no_speed(modules: dict[str, ModuleType]) -> None:
    line = modules["mainloop_run"].line({"name": "x", "passed": False, "error_of_bound": 3.0}, 4.8e12)
    assert "WRONG" in line and "GB/s" not in line


def test_the_emulator_counts_no_bank_conflicts(tmp_path: Path, modules: dict[str, ModuleType]) -> None:
    cases, offline = modules["mainloop_cases"], modules["mainloop_offline"]
    for case in cases.SMALL:
        counted = offline.emulate(case, tmp_path / case.name)
        assert counted["passed"], case.name
        assert counted["bank_conflicts"] == 0, case.name
        # Every weight byte is copied once, the activations once by every CTA that has a task.
        activations = case.op.cols * 8 * 2
        assert 0 < counted["bulk_bytes"] - counted["weight_bytes"] <= offline.GRID * activations, case.name


def test_cases_stream_several_times_the_l2_cache(modules: dict[str, ModuleType]) -> None:
    from tilecc.target import TARGETS
    from tilecc.weights.layout import BLOCK_BYTES, BLOCK_COLS, TILE_ROWS

    for case in modules["mainloop_cases"].CASES:
        op = case.op
        weights = op.rows * op.cols * (op.experts or 1) * (1.5 if op.kind == "experts" else 1) * op.layers
        nbytes = weights * BLOCK_BYTES[op.format] / (BLOCK_COLS * TILE_ROWS)
        assert nbytes > 5 * TARGETS["sm_90a"].l2_bytes, case.name
