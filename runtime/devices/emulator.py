"""The CPU emulator: the emitted kernel text, compiled by g++, one fiber per CUDA thread.

Device memory is numpy memory on 256-byte boundaries. Every buffer, and every region of the workspace, is
registered with the emulator under its name, so that an access outside of them is reported with names.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecc.build.emulator import build_emulator_kernel
from tilecc.build.lint import check_edited
from tilecc.diag import Diagnostic, Span, TileccError, error
from tilecc.diag.model import nearest
from tilecc.package import Manifest, Region
from tilecc.runtime.abi import STATUS_WORDS, Params, step_type
from tilecc.runtime.devices import emu_lib
from tilecc.runtime.devices.base import Access, Buffer, Bytes, Launch, Stats
from tilecc.runtime.devices.status import describe_status

DEFAULT_GRID = 4
"""CTAs when the caller names no number. Fewer are faster here; results do not depend on it."""

MAX_GRID = 1024

_MODES = {"read": emu_lib.READ_ONLY, "state": emu_lib.INITIALISED, "scratch": emu_lib.UNINITIALISED}
_SHOWN_LINES = 40


class KernelFault(TileccError):
    """TC0404 of the emulator: ``result`` is the launch with its findings as values.

    ``findings`` are the same as diagnostics that point into the package's own files.
    """

    def __init__(self, diagnostic: Diagnostic, result: emu_lib.LaunchResult, package: Path) -> None:
        super().__init__(diagnostic)
        self.result = result
        self.package = package

    @property
    def findings(self) -> list[Diagnostic]:
        return [diagnostic_of(f, self.package) for f in self.result.findings]

    def __reduce__(self) -> tuple[Any, ...]:
        return (KernelFault, (self.diagnostics[0], self.result, self.package))


class EmulatorDevice:
    """One emulated GPU. ``last_result`` is the last launch: status, findings, counts; ``last_report`` the
    text of its findings; ``stats`` the counts of all launches since the device was configured."""

    name = "emulator"
    note = "emulator: modelled device, not a GPU timing"

    def __init__(
        self,
        package: Path,
        manifest: Manifest,
        grid: int | None = None,
        *,
        seed: int = 0,
        schedule: str = "round_robin",
        landing: str = "at_once",
        detect: int = 0,
        preempt: int | None = None,
        lint: bool = True,
    ) -> None:
        """Build the package's kernel for the CPU, or take it from the cache.

        ``schedule``: round_robin, random or pct; ``landing`` of bulk copies: at_once, random or last;
        ``preempt``: percent of primitives after which another warp may run (default 0, with a random
        schedule 10); ``detect``: flags of emu_lib. Raises TC0407 for values outside these, TC0503, TC0504
        from the C++ compiler, TC0602 for a package with another version's primitives, and TC092x if its text
        was edited and breaks a rule (not with ``lint`` False: then the detectors alone decide).
        """
        self.grid = grid if grid is not None else min(manifest.default_grid, DEFAULT_GRID)
        if not 1 <= self.grid <= MAX_GRID:
            raise error("TC0407", f"a grid of {self.grid} CTAs", note=f"the emulator runs 1 to {MAX_GRID}")
        if lint:
            check_edited(package, manifest)
        library = build_emulator_kernel(package / manifest.source, package / "include", manifest.name)
        self._library = emu_lib.EmulatorLibrary(library)
        self._options = emu_lib.LaunchOptions(
            grid=self.grid,
            threads=manifest.threads,
            smem_bytes=manifest.smem_bytes,
        )
        self._package = package
        self._vocab = manifest.vocab
        self._status = emu_lib.aligned(STATUS_WORDS * 4)
        self._manifest = manifest
        self.last_status: list[str] = []
        self.last_report = ""
        self.last_result: emu_lib.LaunchResult | None = None
        self.configure(seed=seed, schedule=schedule, landing=landing, detect=detect, preempt=preempt)

    def configure(
        self,
        *,
        seed: int,
        schedule: str = "round_robin",
        landing: str = "at_once",
        detect: int = 0,
        preempt: int | None = None,
        max_switches: int = 0,
        max_findings: int = 20,
    ) -> None:
        """Set how the launches from now on are scheduled and watched, and start ``stats`` at zero.

        Arguments as of the constructor; a launch that passes ``max_switches`` thread switches is stopped
        with TC0902 (0: no bound), one that has ``max_findings`` findings with these.
        """
        for value, known, what in (
            (schedule, emu_lib.SCHEDULES, "schedule"),
            (landing, emu_lib.LANDINGS, "landing"),
        ):
            if value not in known:
                raise error(
                    "TC0407",
                    f"the emulator has no {what} `{value}`",
                    note=", ".join(known),
                    help=nearest(value, known),
                )
        if preempt is not None and not 0 <= preempt <= 100:
            raise error("TC0407", f"a preemption of {preempt} %", note="0 to 100 percent of the primitives")
        self._options = dataclasses.replace(
            self._options,
            schedule=emu_lib.SCHEDULES[schedule],
            landing=emu_lib.LANDINGS[landing],
            detect=detect,
            preempt=preempt if preempt is not None else (0 if schedule == "round_robin" else 10),
            seed=seed,
            max_switches=max_switches,
            max_findings=max_findings,
        )
        self.stats = emu_lib.Stats.zero()

    @property
    def library_path(self) -> Path:
        """The shared library that the kernel was built into."""
        return self._library.path

    def host_array(self, nbytes: int) -> Bytes:
        return emu_lib.aligned(nbytes)

    def upload(self, name: str, data: Bytes) -> Buffer:
        # Host memory is device memory: aligned data (host_array) is used in place.
        if data.ctypes.data % 256:
            copy = emu_lib.aligned(data.size)
            copy[:] = data
            data = copy
        return Buffer(name, data.size, "read", data)

    def alloc_zeroed(
        self, name: str, nbytes: int, access: Access = "state", regions: tuple[Region, ...] = ()
    ) -> Buffer:
        return Buffer(name, nbytes, access, emu_lib.aligned(nbytes), regions)

    def write(self, buffer: Buffer, data: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        buffer.handle[: raw.size] = raw

    def zero(self, buffer: Buffer) -> None:
        buffer.handle[:] = 0

    def download(self, buffer: Buffer, dtype: Any, count: int) -> NDArray[Any]:
        out: NDArray[Any] = buffer.handle[: count * np.dtype(dtype).itemsize].view(dtype).copy()
        return out

    def launch(self, launch: Launch) -> Stats:
        n, max_rows = launch.n_steps, self._manifest.max_rows
        # Only what this launch may touch is registered, so an overrun into the rest of a buffer shows.
        parts: list[emu_lib.Buffer] = []
        for buffer in (launch.image, launch.tables, launch.kv):
            parts += _register(buffer, buffer.nbytes)
        parts += _register(launch.workspace, launch.workspace.nbytes)
        parts += _register(launch.steps, n * step_type(max_rows).itemsize)
        parts += _register(launch.tokens_out, n * max_rows * 4)
        if launch.logits is not None:
            parts += _register(launch.logits, n * max_rows * self._vocab * 4)
        parts += _register(launch.stop_ids, launch.n_stop * 4)
        self._status[:] = 0
        parts.append(emu_lib.Buffer("status", self._status))
        params = Params(
            image=_address(launch.image),
            tables=_address(launch.tables),
            kv=_address(launch.kv),
            workspace=_address(launch.workspace),
            steps=_address(launch.steps),
            tokens_out=_address(launch.tokens_out),
            logits=_address(launch.logits) if launch.logits is not None else None,
            stop_ids=_address(launch.stop_ids),
            status=self._status.ctypes.data,
            n_steps=n,
            n_stop=launch.n_stop,
            flags=launch.flags,
        )
        result = self._library.launch(bytes(params), parts, self._options)
        self.last_result = result
        self.last_report = result.report
        self.stats = self.stats + result.stats
        self.last_status = describe_status(
            self._status.view(np.uint32).tolist(), self._manifest, _address(launch.workspace)
        )
        if not result.ok:
            raise _stopped(result, self._package)
        stats = result.stats
        own: Stats = {
            "switches": stats.switches,
            "preemptions": stats.preemptions,
            "landings": stats.landings,
        }
        return own | stats.total

    def close(self) -> None:
        self._status = emu_lib.aligned(STATUS_WORDS * 4)


def _register(buffer: Buffer, nbytes: int) -> list[emu_lib.Buffer]:
    """The buffer, or each of its regions. Nothing is registered for an empty one."""
    if buffer.regions:
        return [
            emu_lib.Buffer(
                f"{buffer.name}.{r.name}",
                buffer.handle[r.offset : r.offset + r.nbytes],
                _MODES[buffer.access],
            )
            for r in buffer.regions
            if r.nbytes > 0
        ]
    return [emu_lib.Buffer(buffer.name, buffer.handle[:nbytes], _MODES[buffer.access])] if nbytes > 0 else []


def _address(buffer: Buffer) -> int:
    return int(buffer.handle.ctypes.data)


def diagnostic_of(finding: emu_lib.Finding, package: Path) -> Diagnostic:
    """A finding as a diagnostic: places become spans in the package's files, so that their lines are shown.

    Of several waiters at one line the first is shown, with the number of the others.
    """

    def span(place: emu_lib.Place, label: str) -> Span:
        own = package / place.file
        return Span(str(own) if own.is_file() else place.file, place.line, place.column, label)

    by_line: dict[tuple[str, int, int], list[emu_lib.Place]] = {}
    for place in finding.others:
        by_line.setdefault((place.file, place.line, place.column), []).append(place)
    secondary = []
    for places in by_line.values():
        more = f" (and {len(places) - 1} more here)" if len(places) > 1 else ""
        secondary.append(span(places[0], places[0].text + more))
    notes = [n for n in finding.notes if emu_lib.place_of(n) is None]
    where = finding.where
    return Diagnostic(
        finding.code,
        finding.message,
        span(where, "") if where else None,
        tuple(n.removeprefix("note: ") for n in notes),
        secondary=tuple(secondary),
    )


def _stopped(result: emu_lib.LaunchResult, package: Path) -> KernelFault:
    what = {
        1: "the emulator found a fault in the kernel",
        2: "deadlock: the kernel stopped without finishing",
        3: "the emulator refused the launch",
    }.get(result.status, f"the emulator returned {result.status}")
    lines = result.report.strip().splitlines()
    shown = lines[:_SHOWN_LINES]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} more lines")
    fix = "report this with the package; the prompt is not at fault"
    stopped = Diagnostic("TC0404", what, notes=("\n".join(shown),), help=(fix,))
    return KernelFault(stopped, result, package)
