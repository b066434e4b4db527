"""Runs a package's kernel with chosen workspace contents: no checkpoint, no session, no tokens.

For tests and benchmarks of single ops. Activations go in and out in fragment order (runtime/fragments.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.package import Manifest
from tilecc.runtime.abi import MAX_ROWS, Row, pack_steps
from tilecc.runtime.devices.base import Buffer, Bytes, Device, Launch, Stats
from tilecc.runtime.fragments import BLOCK_COLS, from_fragments


@dataclass
class BareKernel:
    """A package opened on a device with its weight image; every `run` starts from a zeroed workspace."""

    manifest: Manifest
    device: Device
    image: Buffer
    tables: Buffer

    @classmethod
    def open(cls, package: Path, device: Device, image: Bytes) -> BareKernel:
        """Upload the image (u8[image_bytes]) and the op table of the package directory."""
        manifest = Manifest.load(package)
        tables = np.frombuffer((package / manifest.tables).read_bytes(), np.uint8)
        return cls(manifest, device, device.upload("image", image), device.upload("tables", tables))

    def run(
        self,
        regions: Mapping[str, NDArray[Any]],
        rows: int | None = None,
        steps: int = 1,
        logits: bool = False,
        table: Sequence[Sequence[Row]] | None = None,
        kv: Bytes | None = None,
    ) -> BareResult:
        """Write `regions` (raw contents from each region's start) and the KV cache, run `steps` steps of
        `rows` rows (default: all) in one launch, and return what the workspace holds then.

        `table` gives the rows of every step instead: (token, position, sequence). `kv` is the whole cache,
        u8[kv_bytes].

        Raises KeyError for a region that the package lacks, ValueError for contents larger than the region,
        TC0404 when the kernel does not finish.
        """
        m, device = self.manifest, self.device
        most = m.max_rows
        space = np.zeros(m.workspace_bytes, np.uint8)
        places = {r.name: r for r in m.workspace}
        for name, values in regions.items():
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
            place = places[name]
            if raw.size > place.nbytes:
                raise ValueError(f"{raw.size} bytes do not fit region {name} of {place.nbytes}")
            space[place.offset : place.offset + raw.size] = raw
        workspace = device.alloc_zeroed("workspace", m.workspace_bytes, regions=tuple(m.workspace))
        device.write(workspace, space)
        if table is None:
            table = [
                [(0, s % m.max_context, i % m.max_seqs) for i in range(rows or most)] for s in range(steps)
            ]
        steps, rows = len(table), max(len(step) for step in table)
        packed = pack_steps(table, most)
        step_table = device.alloc_zeroed("steps", packed.nbytes, "read")
        device.write(step_table, packed)
        cache = device.alloc_zeroed("kv", m.kv_bytes)
        if kv is not None:
            device.write(cache, kv)
        out = device.alloc_zeroed("logits", steps * most * m.vocab * 4, "scratch") if logits else None
        tokens = device.alloc_zeroed("tokens_out", steps * most * 4, "scratch")
        stats = device.launch(
            Launch(
                image=self.image, tables=self.tables, kv=cache, workspace=workspace,
                steps=step_table, tokens_out=tokens, logits=out,
                stop_ids=device.alloc_zeroed("stop_ids", 16, "read"), n_steps=steps, n_stop=0,
            )
        )  # fmt: skip
        after = device.download(workspace, np.uint8, m.workspace_bytes)
        parts = {r.name: after[r.offset : r.offset + r.nbytes].copy() for r in m.workspace}
        found: NDArray[np.float32] | None = None
        if out is not None:
            count = steps * most * m.vocab
            found = device.download(out, np.float32, count).reshape(steps, most, m.vocab)[:, :rows]
        chosen = device.download(tokens, np.int32, steps * most).reshape(steps, most)[:, :rows]
        return BareResult(parts, found, stats, device.download(cache, np.uint8, m.kv_bytes), chosen, most)


@dataclass(frozen=True)
class BareResult:
    """Contents of the workspace regions (bytes), the logits f32 [steps, rows, vocab] if asked for, the
    counts of the device, the KV cache (bytes), and the tokens i32 [steps, rows] of a head."""

    regions: dict[str, Bytes]
    logits: NDArray[np.float32] | None
    stats: Stats
    kv: Bytes
    tokens: NDArray[np.int32]
    max_rows: int = MAX_ROWS

    def partials(self, splits: int, cols: int) -> NDArray[np.float32]:
        """Region `partials` as f32 [max_rows, cols]: the splits added in ascending order in float32, as
        `Reduce` does."""
        padded = -(-cols // BLOCK_COLS) * BLOCK_COLS
        flat = (
            self.regions["partials"].view(np.float32)[: splits * padded * self.max_rows].reshape(splits, -1)
        )
        parts = from_fragments(flat, cols, self.max_rows)
        total = np.zeros((self.max_rows, cols), np.float32)
        for part in parts:
            total += part
        return total
