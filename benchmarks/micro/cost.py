"""What a measurement is: one cost with its spread, how much is run, and the check beside each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.device import Run

KIB, MIB = 1024, 1024 * 1024


class WrongData(AssertionError):
    """A kernel moved or computed something else than it should; its time means nothing."""


@dataclass(frozen=True)
class Scale:
    """How much is run. ``launches``: repetitions of a launch; ``samples``: per launch; ``rounds``: per sample
    (a multiple of 8); ``stream``: bytes of one streaming launch, of which ``sweep_launches`` are made;
    ``peers``: pairs of CTAs; ``chain``: dependent loads."""

    name: str
    launches: int
    samples: int
    rounds: int
    stream: int
    sweep_launches: int
    peers: int
    chain: int


FULL = Scale("full", 3, 24, 64, 1 << 30, 20, 8, 8192)
SANITIZE = Scale("sanitize", 1, 2, 8, 8 * MIB, 1, 2, 256)
TINY = Scale("tiny", 1, 2, 8, 64 * KIB, 1, 1, 64)


@dataclass(frozen=True)
class Cost:
    """One number. ``value`` is the median, ``low`` and ``high`` the 5th and 95th percentile of ``samples``;
    ``clocks`` the median in SM clocks, where it was measured so. ``unit``: s, B/s, B, Hz, op/clk/SM or
    clk."""

    key: str
    value: float
    unit: str
    low: float
    high: float
    samples: int
    what: str
    checked: str
    clocks: float | None = None


def require(ok: bool, what: str, detail: object = "") -> None:
    if not ok:
        raise WrongData(f"{what}: {detail}")


def cost(
    key: str,
    values: NDArray[Any] | list[float],
    unit: str,
    what: str,
    checked: str,
    clocks: float | None = None,
) -> Cost:
    v = np.asarray(values, np.float64).reshape(-1)
    low, mid, high = (float(x) for x in np.percentile(v, [5, 50, 95]))
    return Cost(key, mid, unit, low, high, len(v), what, checked, clocks)


def timed(key: str, runs: list[tuple[Run, NDArray[Any]]], each: float, what: str, checked: str) -> Cost:
    """Clocks of samples, ``each`` repetitions in one sample, as seconds at the clock of their own run."""
    clocks = np.concatenate([t.reshape(-1).astype(np.float64) / each for _, t in runs])
    seconds = np.concatenate([t.reshape(-1).astype(np.float64) / each / r.hertz for r, t in runs])
    return cost(key, seconds, "s", what, checked, float(np.median(clocks)))
