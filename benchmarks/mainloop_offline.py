"""What is known of the main loops without a GPU: the emulator on small shapes, machine code at full size."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mainloop_cases import CASES, SMALL, Case, fill, modelled

from tilecc.build.sass_stats import sass_stats
from tilecc.cli.console import table
from tilecc.diag import TileccError
from tilecc.emit.single import one_op_package
from tilecc.runtime.bare import BareKernel, BareResult
from tilecc.runtime.devices.emu_lib import DETECT_ALL
from tilecc.runtime.devices.emulator import EmulatorDevice
from tilecc.runtime.fragments import from_activations
from tilecc.weights.synthetic import BF16

GRID = 3


def report(target: str, names: list[str], out: Path | None, rows: Sequence[int] = (8,)) -> int:
    """Print both tables; write them as mainloop.json too if `out` is given. 4 if a result was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        counted = [emulate(case, Path(folder) / f"small-{case.name}") for case in SMALL]
        print("emulator: modelled device, all detectors; counts of one step of 8 rows")
        head = (
            "case",
            "shape",
            "result",
            "bank conflicts",
            "bulk / weight B",
            "shared / weight B",
            "L2 reads B",
        )
        print(table([head, *(row(c) for c in counted)]))
        try:
            machine = [
                count(case, Path(folder) / f"{case.name}-{n}", target, n)
                for case in CASES
                if not names or case.name in names
                for n in rows
            ]
        except TileccError as missing:
            print(f"\nno machine code: {missing.diagnostics[0].message}")
            machine = []
        else:
            lines = [(
                "case", "rows", "op", "instr/weight", "integer and logic", "modelled share", "bound",
                "with stalls", "registers", "stack and spills B",
            )]  # fmt: skip
            for m in machine:
                spilled = f"{m['stack_bytes']} + {m['spill_bytes']}"
                kernel = (str(m["registers"]), spilled)
                lines += [(m["name"], str(m["rows"]), *shown(loop), *kernel) for loop in m["loops"]]
            print(f"\nmachine code for {target}, full shapes (columns: `tilecc inspect --sass-stats`)")
            print(table(lines))
            if max(rows) > 8:
                print(
                    "With more than 8 rows a loop may cover 64 columns of a warp's tiles: what a block adds"
                    " (waits, scales) is not counted there."
                )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "mainloop.json").write_text(json.dumps({"emulator": counted, "machine": machine}, indent=1))
    return 0 if all(c["passed"] for c in counted) else 4


def emulate(case: Case, folder: Path) -> dict[str, Any]:
    """Run one small case on the emulator and count its traffic."""
    filled = fill(case, folder)
    package = filled.package
    device = EmulatorDevice(package.directory, package.manifest, GRID, detect=DETECT_ALL)
    result = BareKernel.open(package.directory, device, filled.image()).run(
        filled.regions, logits=case.op.kind == "head"
    )
    got = values(case, result, package)
    each = filled.want.shape[2]
    tiles = np.arange(got.shape[1] // each) % filled.want.shape[1]
    error = np.abs(got - filled.want[:, tiles].reshape(8, -1)) / filled.bound[:, tiles].reshape(8, -1)
    assert device.last_result is not None
    stats = device.last_result.stats
    weights = sum(e.nbytes for e in package.manifest.image if e.kind == "matrix")
    consumer = next(counts for name, counts in stats.roles.items() if name == "consumer")
    return {
        "name": case.name, "shape": f"{case.op.format} {case.op.rows} x {case.op.cols}",
        "passed": bool(error.max() <= 1),
        "weight_bytes": weights, "bank_conflicts": stats.total["bank_conflicts"],
        "consumer_bank_conflicts": consumer["bank_conflicts"], "bulk_bytes": stats.total["bulk_load_bytes"],
        "consumer_shared_bytes": consumer["lds_bytes"] + consumer["sts_bytes"],
        "global_read_bytes": stats.total["ldg_bytes"], "mma": consumer["mma"],
    }  # fmt: skip


def values(case: Case, result: BareResult, package: Any) -> np.ndarray:
    """The op's result, float [8, columns]."""
    op = case.op
    if op.kind == "project":
        constants = package.program.classes[0].constants
        return result.partials(int(constants["tile_splits"]), op.rows)
    if op.kind == "gate_up":
        return from_activations(result.regions["hidden"].view(BF16), op.rows // 2).astype(np.float32)
    return result.regions["router_logits"].view(np.float32).reshape(8, -1)[:, : op.rows]


def row(c: dict[str, Any]) -> tuple[str, ...]:
    ratio = [c[name] / c["weight_bytes"] for name in ("bulk_bytes", "consumer_shared_bytes")]
    conflicts = f"{c['bank_conflicts']} ({c['consumer_bank_conflicts']} in the loop's role)"
    return (
        c["name"], c["shape"], "ok" if c["passed"] else "WRONG", conflicts, *(f"{r:.2f}" for r in ratio),
        f"{c['global_read_bytes']:,}",
    )  # fmt: skip


def count(case: Case, folder: Path, target: str, rows: int = 8) -> dict[str, Any]:
    """The SASS figures of one case at its full shape, for steps of up to `rows` rows."""
    package = one_op_package(folder, dataclasses.replace(case.op, max_rows=rows))
    found = sass_stats(package.directory, target)[0]
    k = found.kernel
    return {
        "name": case.name, "rows": rows, "registers": k.registers, "stack_bytes": k.stack_bytes,
        "spill_bytes": k.spill_store_bytes + k.spill_load_bytes,
        "loops": [modelled(loop) for loop in found.loops if loop.weights],
    }  # fmt: skip


def shown(m: dict[str, Any]) -> tuple[str, ...]:
    return (
        m["op"], f"{m['instructions_per_weight']:.2f}", f"{m['integer_per_weight']:.2f}",
        f"{100 * m['share']:.0f} %", m["bound"], f"{100 * m['share_with_stalls']:.0f} %",
    )  # fmt: skip
