"""What a simulated step says: time, HBM idle by cause, the chain of a layer, bytes. Every figure is
modelled."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from tilecc.sim.costs import SOURCES, Costs
from tilecc.sim.lower import Scenario, SimOp
from tilecc.sim.machine import Machine, Parts, Result


@dataclass(frozen=True)
class ChainItem:
    """One op of a layer: seconds from the layer's start to its inputs being ready and to its end; the
    hand-off before it, and where its own time went on the CTA that finished it last."""

    label: str
    ready: float
    done: float
    hand_off: float
    parts: Parts


def chain(ops: list[SimOp], result: Result, layer: int) -> list[ChainItem]:
    """The ops of a layer in order, in seconds from when the first one's inputs were ready."""
    mine = [i for i, op in enumerate(ops) if op.layer == layer]
    if not mine:
        return []
    start = result.ready[mine[0]]
    items = []
    for i in mine:
        sources = [result.done[w.op] for w in ops[i].waits if not w.previous_step]
        hand_off = result.ready[i] - max(sources, default=result.ready[i])
        items.append(
            ChainItem(
                ops[i].label, result.ready[i] - start, result.done[i] - start, hand_off, result.parts[i]
            )
        )
    return items


def time_per_label(ops: list[SimOp], result: Result) -> dict[str, float]:
    """Seconds from inputs ready to done, summed over the layers, by label of the op."""
    found: dict[str, float] = defaultdict(float)
    for op, ready, done in zip(ops, result.ready, result.done, strict=True):
        found[op.label] += done - ready
    return dict(found)


def typical_layer(ops: list[SimOp]) -> int:
    """The layer in the middle among those whose ops are the most common ones; -1 without layers."""
    kinds: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for op in ops:
        if op.layer >= 0:
            kinds[op.layer].append((op.label, round(op.tasks)))
    groups: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for layer, shape in kinds.items():
        groups[tuple(shape)].append(layer)
    if not groups:
        return -1
    layers = max(groups.values(), key=len)
    return layers[len(layers) // 2]


def figures(
    name: str, ops: list[SimOp], machine: Machine, costs: Costs, scenario: Scenario, result: Result
) -> dict[str, Any]:
    """Everything as plain values, for JSON."""
    layer = typical_layer(ops)
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
        "starved_seconds": result.starved,
        "seconds_by_op": time_per_label(ops, result),
        "chain_layer": layer,
        "chain": [asdict(item) for item in chain(ops, result, layer)],
    }


def text(data: dict[str, Any]) -> str:
    """The figures as a page for a terminal."""
    step = data["step_seconds"]
    out = [
        f"{data['program']}: modelled step {step * 1e3:.3f} ms (not a measurement)",
        f"  HBM       {data['hbm_bytes'] / 1e9:.3f} GB, busy {data['hbm_busy_seconds'] * 1e3:.3f} ms"
        f" ({100 * data['hbm_share']:.1f} %)",
    ]
    out += [f"  {'HBM idle for':34s}     ms    share of the step"]
    for cause, seconds in data["idle_seconds_by_cause"].items():
        out.append(f"    {cause:32s} {seconds * 1e3:7.3f}   {100 * seconds / step:5.1f} %")
    if data["starved_seconds"]:
        out.append("  less than 64 KiB requested and not landed, per SM")
        for cause, seconds in data["starved_seconds"].items():
            note = "the list is unknown, ring and L2 have all else" if cause == "expert list" else "otherwise"
            out.append(f"    {note:48s} {100 * seconds / step:5.1f} % of the step")
    out.append(f"  chain of layer {data['chain_layer']}, us: the CTA that finishes each op last")
    columns = ("hand-off", "earlier op", "activations", "weights", "multiply", "epilogue", "done at")
    out.append("    " + " " * 16 + "".join(f"{c:>12s}" for c in columns))
    for item in data["chain"]:
        p = item["parts"]
        cells = [item["hand_off"], p["earlier"], p["activations"], p["weights"], p["compute"], p["epilogue"]]
        out.append(f"    {item['label']:16s}" + "".join(f"{1e6 * c:12.2f}" for c in (*cells, item["done"])))
    out.append("  op                 us per step    MB from HBM")
    for label, seconds in sorted(data["seconds_by_op"].items(), key=lambda item: -item[1]):
        moved = data["hbm_bytes_by_op"].get(label, 0.0)
        out.append(f"    {label:16s} {seconds * 1e6:11.1f}   {moved / 1e6:12.1f}")
    return "\n".join(out)
