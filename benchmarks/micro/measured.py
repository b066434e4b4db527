"""From the results of a run to the measured costs of the target table (``tilecc/target/measured``)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.micro.report import file_stem
from tilecc.target.costs import COST_FIELDS, MEASURED, SCHEMA

Results = dict[str, dict[str, Any]]
ARCHITECTURES = {"H100": "sm_90a", "H200": "sm_90a", "B200": "sm_100a"}


def best(prefix: str, suffix: str, lowest: bool) -> Callable[[Results], str | None]:
    def find(costs: Results) -> str | None:
        keys = [k for k in costs if k.startswith(prefix) and k.endswith(suffix)]
        return (min if lowest else max)(keys, key=lambda k: costs[k]["value"], default=None)

    return find


def row(key: str) -> Callable[[Results], str | None]:
    return lambda costs: key if key in costs else None


TAKEN: dict[str, Callable[[Results], str | None]] = {
    "hbm_rate": row("copy_rate"),
    "hbm_latency": row("bulk_hbm_16384_loaded_64k"),
    "in_flight": row("in_flight_stream_16k"),
    "l2_latency": row("load_l2_loaded"),
    "l2_rate_per_sm": best("l2_stream_", "", lowest=False),
    # All SMs need their activations before the op can end, and the schedule may choose how they are loaded.
    "activation_load": best("activations_96k_", "_slowest", lowest=True),
    "mbarrier_hand_off": row("mbarrier_hand_off"),
    # What every CTA has stored is published; the load of it is another cost.
    "counter_hand_off": row("grid_counter_stored"),
    "flag_hand_off": row("flag_hand_off"),
    "launch": row("cooperative_launch_200k"),
}
"""Which row of the results each cost of the table takes. A cost that is missing here stays a planning
figure."""

assert set(TAKEN) <= {f.name for f in COST_FIELDS}


def measured_costs(result: dict[str, Any]) -> dict[str, Any]:
    """The file of measured costs of one run. Raises ValueError for a GPU that no target describes."""
    name = result["device"]["name"]
    target = next((t for gpu, t in ARCHITECTURES.items() if gpu in name), None)
    if target is None:
        raise ValueError(f"no target describes `{name}`; known: {', '.join(ARCHITECTURES)}")
    costs: Results = result["costs"]
    units = {f.name: f.unit for f in COST_FIELDS}
    made = {}
    for field, find in TAKEN.items():
        key = find(costs)
        if key is None:
            continue
        scale = 1 / result["device"]["sms"] if field == "l2_rate_per_sm" else 1.0
        numbers = {k: float(f"{costs[key][k] * scale:.6g}") for k in ("value", "low", "high")}
        made[field] = numbers | {
            "unit": units[field],
            "samples": costs[key]["samples"],
            "key": key,
            "what": costs[key]["what"],
        }
    return {
        "schema": SCHEMA,
        "target": target,
        "device": name,
        "driver": result["device"]["driver"],
        "date": result["date"],
        "costs": made,
    }


def import_result(path: Path, directory: Path = MEASURED) -> Path:
    """Write the measured costs of a run's JSON; returns the file, named after the GPU."""
    result = json.loads(path.read_text())
    directory.mkdir(exist_ok=True)
    out = directory / f"{file_stem(result['device']['name'])}.json"
    made = directory / f".{out.name}"
    made.write_text(json.dumps(measured_costs(result), indent=1) + "\n")
    os.replace(made, out)
    return out
