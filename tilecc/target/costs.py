"""Costs of a target: what each one means, and the measurements that replace planning figures.

A file of ``measured/`` holds what ``benchmarks/costs.py --import`` took from one run on one GPU. A cost that
depends on the memory system is taken from the machine alone that the table describes; the others from any
machine of the architecture, that machine first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from tilecc.diag import InternalError

MEASURED = Path(__file__).resolve().parent / "measured"
SCHEMA = 1


@dataclass(frozen=True)
class CostField:
    """A cost of the table: the field of `Target`, its unit (s, B/s, B), what it is, where the planning figure
    is from. ``memory``: it depends on the memory system."""

    name: str
    unit: str
    what: str
    planned: str
    memory: bool = False


COST_FIELDS = (
    CostField("hbm_rate", "B/s", "device-to-device copy, read plus write", "design, section 8", memory=True),
    CostField(
        "hbm_latency", "s", "a copy of 16 KiB from HBM under load", "design: 0.7 to 1.0 us", memory=True
    ),
    CostField(
        "in_flight", "B", "in flight per SM for 90 % of the stream rate", "design: 64, 96 KiB", memory=True
    ),
    CostField(
        "l2_latency", "s", "a dependent load from L2 under load", "design: 500 ns on the critical path"
    ),
    CostField("l2_rate_per_sm", "B/s", "what one SM gets from L2, all SMs reading", "design: 64 B per clock"),
    CostField("activation_load", "s", "96 KiB just written, into every SM", "design: 1.0 to 2.0 us"),
    CostField("mbarrier_hand_off", "s", "128 bytes from warp to warp of a CTA", "design: 60 ns"),
    CostField(
        "counter_hand_off", "s", "all CTAs store, arrive and wait on a counter", "design: 1.0 to 1.5 us"
    ),
    CostField("flag_hand_off", "s", "data as flag between two CTAs", "peers 4.2: 0.8 to 0.9 us"),
    CostField("peer_hand_off", "s", "peer flag over NVLink", "peers 4.2: 2 us and more"),
    CostField("launch", "s", "cooperative launch, back to back", "peers 3.3: an empty kernel, 2.1 us"),
)


class MeasuredCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured cost: the median with the 5th and 95th percentile of ``samples``. ``key``: its row in the
    results of the run."""

    value: float
    low: float
    high: float
    unit: str
    samples: int
    key: str
    what: str


class MeasuredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run on one GPU. ``date`` as YYYY-MM-DD."""

    schema: int
    target: str
    device: str
    driver: str
    date: str
    costs: dict[str, MeasuredCost]


@dataclass(frozen=True)
class Cost:
    """A cost as the passes use it, with its source. ``low`` and ``high``: spread of a measurement."""

    name: str
    value: float
    unit: str
    what: str
    source: str
    measured: bool
    low: float | None = None
    high: float | None = None

    def text(self, value: float | None = None) -> str:
        """The value for people, or another one in the same unit."""
        return show(self.value if value is None else value, self.unit)


def show(value: float, unit: str) -> str:
    """With the prefix that leaves one to three digits before the point."""
    if unit == "s":
        return f"{value * 1e9:.0f} ns" if value < 1e-6 else f"{value * 1e6:.2f} us"
    if unit == "B/s":
        return f"{value / 1e12:.2f} TB/s" if value >= 1e12 else f"{value / 1e9:.0f} GB/s"
    return f"{value / 1024:.0f} KiB"


def load_measured(directory: Path = MEASURED) -> tuple[MeasuredFile, ...]:
    """All measurement files, in the order of their names. Raises InternalError for one that is not of this
    form."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            file = msgspec.json.decode(path.read_bytes(), type=MeasuredFile)
        except msgspec.DecodeError as reason:
            raise InternalError(f"{path}: not a file of measured costs: {reason}") from None
        if file.schema != SCHEMA:
            raise InternalError(f"{path}: schema {file.schema}, this version reads {SCHEMA}")
        units = {f.name: f.unit for f in COST_FIELDS}
        for name, cost in file.costs.items():
            if units.get(name) != cost.unit or not 0 < cost.low <= cost.value <= cost.high:
                raise InternalError(
                    f"{path}: `{name}` is no cost of the table, or its numbers are out of order"
                )
        found.append(file)
    return tuple(found)


@cache
def known_measurements() -> tuple[MeasuredFile, ...]:
    """The files that are part of this version."""
    return load_measured()


def resolve(
    target: str, machine: str, planned: dict[str, float], files: tuple[MeasuredFile, ...]
) -> tuple[Cost, ...]:
    """The costs of a target that describes ``machine`` ("H200"), measured where a file has them."""
    mine = sorted((f for f in files if f.target == target), key=lambda f: (machine not in f.device, f.device))
    made = []
    for field in COST_FIELDS:
        source = next(
            (f for f in mine if field.name in f.costs and (not field.memory or machine in f.device)), None
        )
        if source is None:
            made.append(
                Cost(
                    field.name,
                    planned[field.name],
                    field.unit,
                    field.what,
                    f"planned: {field.planned}",
                    False,
                )
            )
            continue
        m = source.costs[field.name]
        text = f"measured: {source.device}, {source.date}, {m.samples} samples, driver {source.driver}"
        made.append(Cost(field.name, m.value, m.unit, m.what, text, True, m.low, m.high))
    return tuple(made)
