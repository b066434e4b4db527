"""The watchdog's record in names: alone, and against the emulator's deadlock report of an edited kernel."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tilecc.diag import TileccError
from tilecc.package import Manifest
from tilecc.runtime.devices.emulator import EmulatorDevice
from tilecc.runtime.devices.status import STATUS_CLAIMED, STATUS_MAGIC, describe_status
from tilecc.runtime.engine import Engine

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "mimo_tiny"
WORKSPACE = 0x7F1200000400


@pytest.fixture(scope="module")
def manifest(tiny_package: Path) -> Manifest:
    return Manifest.load(tiny_package)


def test_names_of_a_package(manifest: Manifest, tiny_package: Path) -> None:
    text = (tiny_package / manifest.source).read_text()
    named = dict(re.findall(r'name_op\((\d+), "([^"]+)"\)', text))
    assert {str(i): name for i, name in enumerate(manifest.names.ops)} == named
    enum = re.search(r"enum class Role \{([^}]*)\}", (tiny_package / "include" / "op_common.cuh").read_text())
    assert enum is not None
    assert [f"k{r.capitalize()}" for r in manifest.names.roles] == enum[1].replace(" ", "").split(",")
    assert len(manifest.names.counters) == len(set(manifest.names.counters)) > 3
    assert set(manifest.names.counters) <= set(manifest.names.ops)


def test_counter(manifest: Manifest) -> None:
    region = next(r for r in manifest.workspace if r.name == "counters")
    address = (WORKSPACE + region.offset + 2 * 128) & 0xFFFFFFFF
    words = [STATUS_MAGIC, 3, 1, 0, 5, 6, address, 0x2, 0xFFFFFFFE, 2, 7] + [0] * 53
    op, signaller = manifest.names.ops[0], manifest.names.counters[2]
    assert describe_status(words, manifest, WORKSPACE) == [
        f"CTA 3, warp 7, role store, op {op}, layer 5, item 6",
        f"waited for counter of op {signaller} (workspace.counters + 256) at address ...{address:08x}: "
        "expected 2, seen 4294967294, 4 short",
    ]


def test_word_and_unknown_numbers(manifest: Manifest) -> None:
    words = [STATUS_MAGIC, 0, 77, 999, 0, 0, 0x10, 0x7FA57FA5, 0x7FA57FA5, 3, 0] + [0] * 53
    assert describe_status(words, manifest, WORKSPACE) == [
        "CTA 0, warp 0, role 77, op 999, layer 0, item 0",
        "waited for word at address ...00000010: still the poison 0x7fa57fa5",
    ]
    assert describe_status([STATUS_CLAIMED] + [0] * 63, manifest)[0].endswith("its record is incomplete")
    assert describe_status([0] * 64, manifest) == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("op_common.cuh", "    tk::red_release(counter(counter_id), 1);\n", ""),
        ("op_gemv.cuh", "        tk::mbar_arrive(c.w_empty(c.w.slot));\n", ""),
    ],
)
def test_record_agrees_with_the_emulator(
    tiny_package: Path, tmp_path: Path, file: str, old: str, new: str
) -> None:
    package = tmp_path / "edited"
    shutil.copytree(tiny_package, package)
    text = (package / "include" / file).read_text()
    assert text.count(old) == 1
    (package / "include" / file).write_text(text.replace(old, new))
    with Engine.open(package, CHECKPOINT, grid=2, lint=False) as engine:
        with pytest.raises(TileccError):
            engine.run_steps([[(5, 0, 0)]])
        device = engine.device
        assert isinstance(device, EmulatorDevice)
    where, what = device.last_status
    found = re.fullmatch(r"CTA (\d+), warp (\d+), role (\w+), op (\w+), layer (\d+), item (\d+)", where)
    assert found is not None, where
    cta, warp, role, op, layer, item = found.groups()
    lines = [
        line
        for line in device.last_report.splitlines()
        if f"cta {cta} warp {warp} ({role}) " in line and f"; op {op}, layer {layer}, item {item}," in line
    ]
    assert lines, (where, device.last_report)
    name = re.match(r"waited for (mbarrier|counter) (.*?) (?:\(|at shared)", what)
    assert name is not None, what
    if name[1] == "mbarrier":
        assert f"mbar_wait on {name[2]} (" in lines[0], (what, lines)
    else:
        place = re.search(r"\((workspace\.counters \+ \d+)\)", what)
        assert place is not None and f"wait_ge on {place[1]} " in lines[0], (what, lines)
