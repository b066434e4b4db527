"""What a simulated step says: time, HBM idle by cause, the chain of a layer, bytes. Every figure is
modelled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from tilecc.sim.costs import SOURCES, Costs
from tilecc.sim.lower import Scenario, SimOp
from tilecc.sim.machine import Machine, Result


@dataclass(frozen=True)
class ChainItem:
    """One op of a layer: seconds from the layer's start to its inputs being ready and to its end."""

    label: str
    ready: float
    done: float


def chain(ops: list[SimOp], result: Result, layer: int) -> list[ChainItem]:
    """The ops of a layer in order, in seconds from when the first one's inputs were ready."""
    mine = [i for i, op in enumerate(ops) if op.layer == layer]
    if not mine:
        return []
    start = result.ready[mine[0]]
    return [ChainItem(ops[i].label, result.ready[i] - start, result.done[i] - start) for i in mine]


def time_per_label(ops: list[SimOp], result: Result) -> dict[str, float]:
    """Seconds from inputs ready to done, summed over the layers, by label of the op."""
    found: dict[str, float] = defaultdict(float)
    for op, ready, done in zip(ops, result.ready, result.done, strict=True):
        found[op.label] += done - ready
    return dict(found)


def figures(
    name: str, ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario, result: Result
) -> dict[str, Any]:
    """Everything as plain values, for JSON."""
    layers = sorted({op.layer for op in ops if op.layer >= 0})
    middle = layers[len(layers) // 2] if layers else -1
    moved = sum(result.hbm_bytes.values())
    return {
        "note": "modelled",
        "program": name,
        "scenario": asdict(scenario),
        "machine": asdict(machine),
        "costs": {k: {"value": v, "source": SOURCES[k]} for k, v in asdict(costs).items()},
        "step_seconds": result.step,
        "hbm_bytes": moved,
        "hbm_bytes_by_op": dict(sorted(result.hbm_bytes.items())),
        "hbm_busy_seconds": result.hbm_busy,
        "hbm_share": result.hbm_busy / result.step if result.step else 0.0,
        "idle_seconds_by_cause": dict(sorted(result.idle.items(), key=lambda item: -item[1])),
        "seconds_by_op": time_per_label(ops, result),
        "chain_layer": middle,
        "chain": [asdict(item) for item in chain(ops, result, middle)],
    }


def text(data: dict[str, Any]) -> str:
    """The figures as a page for a terminal."""
    step = data["step_seconds"]
    out = [
        f"{data['program']}: modelled step {step * 1e3:.3f} ms (not a measurement)",
        f"  HBM       {data['hbm_bytes'] / 1e9:.3f} GB, busy {data['hbm_busy_seconds'] * 1e3:.3f} ms"
        f" ({100 * data['hbm_share']:.1f} %)",
    ]
    for cause, seconds in data["idle_seconds_by_cause"].items():
        out.append(f"  idle      {seconds * 1e3:7.3f} ms  waiting for {cause}")
    out.append(f"  chain of layer {data['chain_layer']}, us after its first inputs")
    for item in data["chain"]:
        out.append(
            f"    {item['label']:16s} ready {item['ready'] * 1e6:7.2f}  done {item['done'] * 1e6:7.2f}"
        )
    out.append("  op                 us per step    MB from HBM")
    for label, seconds in sorted(data["seconds_by_op"].items(), key=lambda item: -item[1]):
        moved = data["hbm_bytes_by_op"].get(label, 0.0)
        out.append(f"    {label:16s} {seconds * 1e6:11.1f}   {moved / 1e6:12.1f}")
    return "\n".join(out)
