"""A session: KV cache, workspace and row tables of one running model on one device.

The kernel's counters and epochs live in the workspace and continue from launch to launch, so kv and workspace
are zeroed once, when the session starts, and again only after a launch that did not finish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.diag import error
from tilecc.package import Manifest
from tilecc.runtime.abi import PREVIOUS_ARGMAX, Row, pack_steps, step_type
from tilecc.runtime.devices.base import Buffer, Device, Launch, Stats

MAX_STOP_IDS = 32
_PEAKS = ("peak_bytes",)

LogitsSink = Callable[[int, NDArray[np.float32]], None]
"""Called with (step, f32[rows, vocab]) for every step that ran."""


@dataclass
class Counters:
    """What the session has done so far."""

    launches: int = 0
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    device: Stats = field(default_factory=dict)

    def add(self, steps: int, rows: int, seconds: float, stats: Stats) -> None:
        self.launches += 1
        self.steps += steps
        self.rows += rows
        self.seconds += seconds
        for key, value in stats.items():
            old = self.device.get(key, 0)
            self.device[key] = max(old, value) if key in _PEAKS else old + value


class Session:
    """State of the decode on ``device``; any number of sequences up to ``manifest.max_seqs``. ``tables`` is
    the op table, ``workspace`` holds what outlives a launch besides the KV cache."""

    def __init__(
        self, manifest: Manifest, device: Device, image: Buffer, tables: Buffer, steps_per_launch: int = 8
    ) -> None:
        self.manifest = manifest
        self.device = device
        self.steps_per_launch = steps_per_launch
        self.counters = Counters()
        self._image, self.tables = image, tables
        self._dirty = False
        n, most = steps_per_launch, manifest.max_rows
        self._kv = device.alloc_zeroed("kv", manifest.kv_bytes)
        self.workspace = device.alloc_zeroed(
            "workspace", manifest.workspace_bytes, regions=tuple(manifest.workspace)
        )
        self._steps = device.alloc_zeroed("steps", n * step_type(most).itemsize, "read")
        self._tokens = device.alloc_zeroed("tokens_out", n * most * 4, "scratch")
        self._stop = device.alloc_zeroed("stop_ids", MAX_STOP_IDS * 4, "read")
        self._logits: Buffer | None = None

    def run(
        self,
        steps: Sequence[Sequence[Row]],
        on_logits: LogitsSink | None = None,
        stop_ids: Sequence[int] = (),
    ) -> NDArray[np.int32]:
        """Run decode steps and return tokens i32[len(steps), max_rows]: the argmax of each row, -1 where
        none ran.

        Each row is (token, position, sequence); token -1 takes the argmax of the last row of the step before.
        A step whose last row's argmax is in ``stop_ids`` is the last one that runs. Steps are cut into
        launches of ``steps_per_launch``. Raises TC0403 and TC0407 for rows outside the package's limits
        before anything runs, TC0404 when the kernel does not finish.
        """
        self._check(steps, stop_ids)
        tokens = np.full((len(steps), self.manifest.max_rows), -1, np.int32)
        for start in range(0, len(steps), self.steps_per_launch):
            part = [list(rows) for rows in steps[start : start + self.steps_per_launch]]
            if start > 0:
                # The device knows the previous step only within one launch.
                last = int(tokens[start - 1][len(steps[start - 1]) - 1])
                if last < 0 or last in stop_ids:
                    break
                part[0] = [(last if t == PREVIOUS_ARGMAX else t, p, s) for t, p, s in part[0]]
            tokens[start : start + len(part)] = self._launch(part, start, on_logits, stop_ids)
        return tokens

    def region(self, name: str, dtype: Any = np.uint32) -> NDArray[Any]:
        """Return a copy of a workspace region as the last launch left it. Raises KeyError."""
        for region in self.manifest.workspace:
            if region.name == name:
                whole = self.device.download(self.workspace, np.uint8, self.manifest.workspace_bytes)
                return whole[region.offset : region.offset + region.nbytes].view(dtype).copy()
        raise KeyError(name)

    def reset(self) -> None:
        """Start again from zeroed KV and workspace."""
        self.device.zero(self._kv)
        self.device.zero(self.workspace)
        self._dirty = False

    def _launch(
        self, part: list[list[Row]], first: int, on_logits: LogitsSink | None, stop_ids: Sequence[int]
    ) -> NDArray[np.int32]:
        if self._dirty:
            self.reset()
        n, most = len(part), self.manifest.max_rows
        self.device.write(self._steps, pack_steps(part, most))
        # A step behind a stop token leaves its tokens as they are.
        self.device.write(self._tokens, np.full(n * most, -1, np.int32))
        if stop_ids:
            self.device.write(self._stop, np.asarray(stop_ids, np.int32))
        logits = self._logits_buffer() if on_logits is not None else None
        launch = Launch(
            image=self._image,
            tables=self.tables,
            kv=self._kv,
            workspace=self.workspace,
            steps=self._steps,
            tokens_out=self._tokens,
            logits=logits,
            stop_ids=self._stop,
            n_steps=n,
            n_stop=len(stop_ids),
        )
        self._dirty = True
        began = time.perf_counter()
        stats = self.device.launch(launch)
        seconds = time.perf_counter() - began
        self._dirty = False
        tokens = self.device.download(self._tokens, np.int32, n * most).reshape(n, most)
        ran = int((tokens[:, 0] >= 0).sum())
        self.counters.add(ran, sum(len(rows) for rows in part[:ran]), seconds, stats)
        if on_logits is not None and logits is not None:
            vocab = self.manifest.vocab
            values = self.device.download(logits, np.float32, n * most * vocab).reshape(n, most, vocab)
            for s in range(ran):
                on_logits(first + s, values[s, : len(part[s])])
        return tokens

    def _logits_buffer(self) -> Buffer:
        if self._logits is None:
            nbytes = self.steps_per_launch * self.manifest.max_rows * self.manifest.vocab * 4
            self._logits = self.device.alloc_zeroed("logits", nbytes, "scratch")
        return self._logits

    def _check(self, steps: Sequence[Sequence[Row]], stop_ids: Sequence[int]) -> None:
        m = self.manifest
        if len(stop_ids) > MAX_STOP_IDS:
            raise error("TC0407", f"{len(stop_ids)} stop ids, at most {MAX_STOP_IDS} fit")
        for s, rows in enumerate(steps):
            if not 1 <= len(rows) <= m.max_rows:
                raise error("TC0407", f"step {s} has {len(rows)} rows, a step takes 1 to {m.max_rows}")
            if len({(p, q) for _, p, q in rows}) != len(rows):
                raise error("TC0407", f"step {s} has two rows at the same position of the same sequence")
            for i, (token, position, seq) in enumerate(rows):
                where = f"row {i} of step {s}"
                previous = token == PREVIOUS_ARGMAX and s > 0
                if not (0 <= token < m.vocab or previous):
                    raise _token_error(token, m.vocab, where)
                if not 0 <= position < m.max_context:
                    raise error(
                        "TC0407",
                        f"{where} is at position {position}, the package has 0 to {m.max_context - 1}",
                    )
                if not 0 <= seq < m.max_seqs:
                    raise error("TC0407", f"{where} names sequence {seq}, the package holds {m.max_seqs}")


def _token_error(token: Any, vocab: int, where: str) -> Exception:
    return error(
        "TC0403",
        f"token id {token} ({where}) is outside the vocabulary of {vocab} tokens",
        help=f"token ids go from 0 to {vocab - 1}; use the tokenizer of the same checkpoint",
    )
