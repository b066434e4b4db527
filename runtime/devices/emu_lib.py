"""ctypes binding of an emulated kernel library (``templates/emulator/abi.h``).

>>> library = EmulatorLibrary(path)
>>> result = library.launch(params_bytes, [Buffer("image", image, READ_ONLY), ...], options)
>>> result.ok, result.stats.total["mma"], result.findings

Arrays are numpy arrays and stay owned by the caller; parameters are the raw bytes of the kernel's parameter
struct, with the arrays' addresses inside (``Buffer.address``).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ABI_VERSION = 4
ROUND_ROBIN, RANDOM, PCT = 0, 1, 2
LAND_AT_ONCE, LAND_RANDOM, LAND_LAST = 0, 1, 2
READ_ONLY, UNINITIALISED, INITIALISED = 0, 1, 2
_PEER = 16
DETECT_RACES, DETECT_UNINIT, DETECT_PARITY, DETECT_BANKS = 1, 2, 4, 8
DETECT_ALL = DETECT_RACES | DETECT_UNINIT | DETECT_PARITY | DETECT_BANKS
DETECTORS = {
    "races": DETECT_RACES,
    "uninit": DETECT_UNINIT,
    "parity": DETECT_PARITY,
    "banks": DETECT_BANKS,
}
SCHEDULES = {"round_robin": ROUND_ROBIN, "random": RANDOM, "pct": PCT}
LANDINGS = {"at_once": LAND_AT_ONCE, "random": LAND_RANDOM, "last": LAND_LAST}

_COUNTS, _ROLES = 48, 16
_REPORT_BYTES = 1 << 18


class _Options(ctypes.Structure):
    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("grid", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("smem_bytes", ctypes.c_uint32),
        ("schedule", ctypes.c_uint32),
        ("landing", ctypes.c_uint32),
        ("detect", ctypes.c_uint32),
        ("preempt", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("max_switches", ctypes.c_uint64),
        ("ranks", ctypes.c_uint32),
        ("max_findings", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("ptr", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("mode", ctypes.c_int32),
        ("rank", ctypes.c_int32),
    )


class _RoleStats(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 24), ("counts", ctypes.c_uint64 * _COUNTS))


class _Stats(ctypes.Structure):
    _fields_ = (
        ("switches", ctypes.c_uint64),
        ("preemptions", ctypes.c_uint64),
        ("landings", ctypes.c_uint64),
        ("findings", ctypes.c_uint64),
        ("shadow_bytes", ctypes.c_uint64),
        ("n_roles", ctypes.c_uint32),
        ("n_counts", ctypes.c_uint32),
        ("counts", ctypes.c_uint64 * _COUNTS),
        ("roles", _RoleStats * _ROLES),
    )


@dataclass(frozen=True)
class LaunchOptions:
    """One run. ``grid`` counts CTAs per rank; ``preempt`` is the chance in percent that a primitive gives the
    processor to another warp; ``max_switches`` bounds the thread switches (0: no bound);
    ``cluster`` CTAs form a cluster and must divide ``grid``."""

    grid: int
    threads: int
    smem_bytes: int
    schedule: int = ROUND_ROBIN
    landing: int = LAND_AT_ONCE
    detect: int = 0
    preempt: int = 0
    seed: int = 0
    max_switches: int = 0
    ranks: int = 1
    max_findings: int = 20
    cluster: int = 1


@dataclass(frozen=True)
class Buffer:
    """Global memory the kernel may touch. ``rank`` -1 belongs to the host and every rank may touch it; that
    of a rank is the rank's own unless it is shared with its peers (``peer``)."""

    name: str
    array: NDArray[Any]
    mode: int = INITIALISED
    rank: int = 0
    peer: bool = False

    def __post_init__(self) -> None:
        if not self.array.flags.c_contiguous:
            raise ValueError(f"buffer {self.name} is not contiguous")

    @property
    def address(self) -> int:
        """Address of the first byte, for the parameter struct."""
        return int(self.array.ctypes.data)


@dataclass(frozen=True)
class Place:
    """A place in the kernel's text. ``file`` is relative to the package (``kernels/NAME.cu``,
    ``include/op_gemv.cuh``); ``text`` says what happens there."""

    file: str
    line: int
    column: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Finding:
    """One ``error[TC....]`` of a report.

    ``place`` is the first place as ``file:line:col`` ("" if the finding has none), ``where`` the same in
    parts; ``others`` are the further places (the other access of a race, every waiter of a deadlock);
    ``notes`` are the lines that follow the message, the ones with places included.
    """

    code: str
    message: str
    place: str
    notes: tuple[str, ...]
    others: tuple[Place, ...] = ()

    @property
    def where(self) -> Place | None:
        return place_of(self.place, self.message) if self.place else None


@dataclass(frozen=True)
class BankSite:
    """A source position ``file:line:col``, the primitive that accesses shared memory there, and the role."""

    place: str
    primitive: str
    role: str


@dataclass(frozen=True)
class BankCounts:
    """``accesses`` of whole warps, the ``wavefronts`` they take, and ``ideal`` ones without conflicts."""

    accesses: int = 0
    wavefronts: int = 0
    ideal: int = 0

    @property
    def extra(self) -> int:
        """Wavefronts that bank conflicts add."""
        return self.wavefronts - self.ideal

    def __add__(self, other: BankCounts) -> BankCounts:
        return BankCounts(
            self.accesses + other.accesses, self.wavefronts + other.wavefronts, self.ideal + other.ideal
        )


@dataclass(frozen=True)
class Stats:
    """Counts of one or more launches: totals and per role, by name of the primitive or of the traffic kind
    (bytes). Launches add up with ``+``."""

    switches: int
    preemptions: int
    landings: int
    total: dict[str, int]
    roles: dict[str, dict[str, int]] = field(default_factory=dict)
    banks: dict[BankSite, BankCounts] = field(default_factory=dict)
    """Shared-memory accesses by source position, counted with DETECT_BANKS alone."""
    shadow_bytes: int = 0
    """Shadow memory of the largest launch: none of read-only buffers, nor of pages never touched."""

    @classmethod
    def zero(cls) -> Stats:
        return cls(0, 0, 0, {})

    def __add__(self, other: Stats) -> Stats:
        roles = {
            name: _sum(self.roles.get(name, {}), other.roles.get(name, {}))
            for name in self.roles | other.roles
        }
        return Stats(
            self.switches + other.switches,
            self.preemptions + other.preemptions,
            self.landings + other.landings,
            _sum(self.total, other.total),
            roles,
            {
                site: self.banks.get(site, BankCounts()) + other.banks.get(site, BankCounts())
                for site in self.banks | other.banks
            },
            max(self.shadow_bytes, other.shadow_bytes),
        )


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in a | b}


@dataclass(frozen=True)
class LaunchResult:
    """``status``: 0 clean, 1 findings, 2 deadlock, 3 bad arguments."""

    status: int
    report: str
    stats: Stats

    @property
    def ok(self) -> bool:
        return self.status == 0

    @cached_property
    def findings(self) -> list[Finding]:
        return parse_report(self.report)


class EmulatorLibrary:
    """A kernel built by ``tilecc.build.emulator``; one launch at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lib = ctypes.CDLL(str(path))
        self._lib.tk_emu_count_name.restype = ctypes.c_char_p
        self._lib.tk_emu_bank_sites.restype = ctypes.c_char_p
        self._lib.tk_emu_launch.argtypes = [
            ctypes.POINTER(_Options),
            ctypes.c_char_p,
            ctypes.c_uint64,
            ctypes.POINTER(_Buffer),
            ctypes.c_int,
            ctypes.POINTER(_Stats),
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        names = [self._lib.tk_emu_count_name(i).decode() for i in range(_COUNTS)]
        self._count_names = [(i, n) for i, n in enumerate(names) if n]

    def encode_map(self, tensor: ctypes.Structure) -> bytes:
        """Return the 128 bytes of a tensor map for the kernel's parameters. ``tensor``: a ``struct
        tilecc_tensor`` (``templates/include/tilecc_tensor.h``). Raises ValueError with what is wrong."""
        encoded, message = ctypes.create_string_buffer(128), ctypes.create_string_buffer(256)
        if self._lib.tk_emu_encode_map(ctypes.byref(tensor), encoded, message, len(message)):
            raise ValueError(message.value.decode())
        return encoded.raw

    def launch(self, params: bytes, buffers: Sequence[Buffer], options: LaunchOptions) -> LaunchResult:
        """Run the kernel once. ``params``: the bytes of the parameter struct, one after another per rank."""
        values = {f: getattr(options, f) for f in LaunchOptions.__dataclass_fields__}
        c_options = _Options(abi_version=ABI_VERSION, **values)
        c_buffers = (_Buffer * max(len(buffers), 1))()
        for slot, b in zip(c_buffers, buffers, strict=False):
            slot.ptr, slot.bytes, slot.name = b.address, b.array.nbytes, b.name.encode()
            slot.mode, slot.rank = b.mode | (_PEER if b.peer else 0), b.rank
        stats = _Stats()
        report = ctypes.create_string_buffer(_REPORT_BYTES)
        status = self._lib.tk_emu_launch(
            ctypes.byref(c_options),
            params,
            len(params) // options.ranks,
            c_buffers,
            len(buffers),
            ctypes.byref(stats),
            report,
            _REPORT_BYTES,
        )
        return LaunchResult(status, report.value.decode(errors="replace"), self._stats(stats, options.detect))

    def _stats(self, s: _Stats, detect: int) -> Stats:
        def named(counts: Sequence[int]) -> dict[str, int]:
            return {name: int(counts[i]) for i, name in self._count_names}

        roles = {s.roles[r].name.decode(): named(s.roles[r].counts) for r in range(s.n_roles)}
        banks = parse_banks(self._lib.tk_emu_bank_sites().decode()) if detect & DETECT_BANKS else {}
        return Stats(s.switches, s.preemptions, s.landings, named(s.counts), roles, banks, s.shadow_bytes)


def parse_banks(listing: str) -> dict[BankSite, BankCounts]:
    """Read what ``tk_emu_bank_sites`` returns."""
    rows = [line.split("\t") for line in listing.splitlines()]
    return {BankSite(*row[:3]): BankCounts(*map(int, row[3:])) for row in rows}


_HEAD = re.compile(r"^error\[(TC\d{4})\]: (.*)$")
_PLACE = re.compile(r"^(?:(?P<text>.*?),? at )?(?P<file>\S+\.(?:cu|cuh|h)):(?P<line>\d+):(?P<column>\d+)$")


def place_of(text: str, label: str = "") -> Place | None:
    """Parse ``[words at ]file:line:col``; None if the text does not end in a place."""
    found = _PLACE.match(text)
    if found is None:
        return None
    words = label or found["text"] or ""
    return Place(found["file"], int(found["line"]), int(found["column"]), words)


def parse_report(report: str) -> list[Finding]:
    """Split the text of a report into findings."""
    found: list[Finding] = []
    code = message = place = ""
    notes: list[str] = []

    def close() -> None:
        if code:
            places = (place_of(n.removeprefix("note: ").removeprefix("waits: ")) for n in notes)
            found.append(Finding(code, message, place, tuple(notes), tuple(p for p in places if p)))

    for line in report.splitlines():
        head = _HEAD.match(line)
        if head:
            close()
            code, message, place, notes = head.group(1), head.group(2), "", []
        elif line.startswith("  --> ") and not place:
            place = line[6:]
        elif line.startswith("  "):
            notes.append(line.strip())
    close()
    return found


def aligned(nbytes: int, alignment: int = 256) -> NDArray[np.uint8]:
    """Return ``nbytes`` zero bytes at an address that is a multiple of ``alignment``, as device memory is."""
    raw = np.zeros(nbytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]
