"""The result of a run as a table for people."""

from __future__ import annotations

import re
from typing import Any


def file_stem(name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> "h100"."""
    found = re.search(r"\b(?:H|B|GB|GH|A|L)\d{2,3}\w*", name)
    return (found.group(0) if found else re.sub(r"\W+", "-", name)).lower()


def show(value: float, unit: str) -> str:
    """With the prefix that leaves one to three digits before the point."""
    if unit == "s":
        return f"{value * 1e9:.1f} ns" if value < 1e-6 else f"{value * 1e6:.2f} us"
    if unit == "B/s":
        return f"{value / 1e9:.0f} GB/s"
    if unit == "B":
        return f"{value / 1024:.0f} KiB"
    if unit == "Hz":
        return f"{value / 1e6:.0f} MHz"
    return f"{value:.1f} {unit}"


def table(result: dict[str, Any]) -> str:
    """Markdown of one run."""
    d = result["device"]
    head = [
        f"# Micro-costs of {d['name']}",
        "",
        f"{result['date']}; {d['sms']} SMs, {d['l2_bytes'] >> 20} MiB of L2; "
        f"driver {d['driver'] or 'unknown'}, CUDA {d['cuda_driver']} (runtime {d['cuda_runtime']}); "
        f"clock limit {d['clock_limit_hz'] / 1e6:.0f} MHz.",
        "Median, and the 5th and 95th percentile of all samples. Made by `benchmarks/costs.py --run`.",
    ]
    for group, why in result["failed"].items():
        head += ["", f"**{group} was not measured: {why}**"]
    rows = [
        "",
        "| cost | median | 5 % | 95 % | clocks | samples | what | checked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, c in result["costs"].items():
        low, mid, high = (show(c[k], c["unit"]) for k in ("low", "value", "high"))
        clocks = f"{c['clocks']:.0f}" if c["clocks"] is not None else ""
        rows.append(
            f"| `{key}` | {mid} | {low} | {high} | {clocks} | {c['samples']} | {c['what']} | {c['checked']} |"
        )
    return "\n".join([*head, *rows]) + "\n"
