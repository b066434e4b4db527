"""Small programs as packages on the emulator, for mutations of their text and of their op table."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.mutations.inject import ROW_WORDS
from tests.passes.helpers import Net, context, tiles_until
from tilecc.check.lower import lower
from tilecc.check.sync import SyncProgram
from tilecc.emit.single import tiles_package
from tilecc.ir.program import Program
from tilecc.ir.tile import TileGraph
from tilecc.package import Manifest
from tilecc.passes.pipeline import TILE_PASSES
from tilecc.runtime.campaign import DEADLOCK
from tilecc.runtime.devices import emu_lib
from tilecc.runtime.devices.emulator import EmulatorDevice, KernelFault
from tilecc.runtime.session import Session
from tilecc.weights.image import build_image
from tilecc.weights.synthetic import BF16, Synthetic

NETS: dict[str, Net] = {
    "chain": Net(layers=((0, "dense"),), hidden=288, width=160),
    "window": Net(layers=((8, "dense"), (40, "dense"))),
    "experts": Net(layers=((0, "moe"),), hidden=160, experts=10),
    "diamond": Net(),
    "chunks": Net(layers=((0, "dense"),), hidden=1088, heads=2, kv_heads=1, width=32, vocab=32),
    "mixed": Net(layers=((8, "moe"), (0, "dense"), (8, "moe")), hidden=48, kv_heads=1),
}
"""A dense global layer with split projections; sliding layers; a mixture of experts; one layer of each;
several chunks of K; classes that several layers share."""

Step = list[tuple[int, int, int]]


def steps_of(seed: int, vocab: int, max_seqs: int) -> list[Step]:
    """Three or four steps of 1 to 8 rows: a prompt in two parts, then single tokens; every second seed starts
    far enough for old keys, some have two sequences."""
    rng = np.random.default_rng(seed)
    at, found = int(rng.integers(0, 36)) * (seed % 2), []
    for rows in (int(rng.integers(1, 9)), int(rng.integers(1, 6)), 1, 8)[: 3 + seed % 2]:
        seqs = 2 if max_seqs > 1 and rows > 2 and rng.integers(2) else 1
        step = [(int(rng.integers(vocab)), at + i // seqs, i % seqs) for i in range(rows)]
        at += -(-rows // seqs)
        found.append(step)
    return found


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the emulator said in one run: codes of its findings; `tokens` if it finished."""

    codes: tuple[str, ...]
    tokens: tuple[int, ...] | None

    @property
    def clean(self) -> bool:
        return not self.codes and self.tokens is not None

    @property
    def deadlock(self) -> bool:
        return DEADLOCK in self.codes


@dataclasses.dataclass(frozen=True)
class Site:
    """`text` occurs exactly `count` times in `file` of the package, each before the text `before`.
    `expression`: it is one, otherwise whole statements; `member`: of the context of the warp; `plain`:
    outside of the ops."""

    file: str
    text: str
    count: int = 1
    before: str = ""
    expression: bool = False
    member: bool = False
    plain: bool = False

    def choice(self, alternatives: dict[int, str]) -> str:
        """The text with all alternatives by number of the mutation."""
        c = "" if self.member else "c."
        at = "true" if self.plain else f"::tk_at({c}watch.role, {c}watch.op, {c}watch.layer, {c}cta)"
        text = self.text
        for number, new in alternatives.items():
            chosen = f"::tk_inject == {number} && {at}"
            if self.expression:
                text = f"({chosen} ? {new} : {text})"
            else:
                text = f"if ({chosen}) {{ {new} }} else {{ {text} }}"
        return text if self.expression else f"{{ {text} }}"


def mutated_package(package: Path, out: Path, mutations: Sequence[dict[Site, str]]) -> Path:
    """Copy a package with all mutations in its text; number i + 1 is `mutations[i]`.

    Sites in a file KERNEL are in the kernel itself. Raises ValueError for a site that does not occur as often
    as it says.
    """
    shutil.copytree(package, out)
    source = _manifest(package).source
    sites: dict[Site, dict[int, str]] = {}
    for number, mutation in enumerate(mutations, 1):
        for site, text in mutation.items():
            sites.setdefault(site, {})[number] = text
    for file in sorted({site.file for site in sites} | {"KERNEL"}):
        path = out / (source if file == "KERNEL" else file)
        text = path.read_text()
        spans: list[tuple[int, Site]] = []
        for site in sites:
            if site.file != file:
                continue
            whole = site.text + site.before
            if text.count(whole) != site.count:
                raise ValueError(f"{file}: {text.count(whole)} times, not {site.count}: {whole}")
            spans += [(m.start(), site) for m in re.finditer(re.escape(whole), text)]
        for at, site in sorted(spans, key=lambda span: -span[0]):
            text = text[:at] + site.choice(sites[site]) + text[at + len(site.text) :]
        path.write_text(FILTER + text if file == "KERNEL" else text)
    return out


def table_rows(program: Program) -> list[int]:
    """Row of the op table of every row of the program."""
    body = {name: i for i, name in enumerate(program.body)}
    found, outside = [], 0
    for row in program.rows:
        if row.layer >= 0:
            found.append(len(program.prologue) + row.layer * len(program.body) + body[row.op])
        else:
            late = outside - len(program.prologue)
            behind = len(program.prologue) + program.layers * len(program.body) + late
            found.append(outside if late < 0 else behind)
            outside += 1
    return found


class Bench:
    """A package with `mutations` in its text, one of which (or none) runs.

    A mutation of the text acts where `tk_at(role, op, layer, cta)` of the kernel is true: in the op, layer,
    CTA and role that were chosen, each 255 for all.
    """

    def __init__(
        self,
        package: Path,
        image: NDArray[np.uint8],
        program: Program,
        mutations: Sequence[dict[Site, str]],
        grid: int,
    ):
        self.package, self.program = package, program
        self.sync: SyncProgram = lower(program)
        self.mutations = list(mutations)
        self.ids = {op.name: i for i, op in enumerate(program.classes)}
        self.device = EmulatorDevice(package, _manifest(package), grid, lint=False)
        self.grid = self.device.grid
        upload = self.device.upload("image", image)
        stage = self.device.host_array((package / "tables.bin").stat().st_size)
        stage[:] = np.fromfile(package / "tables.bin", np.uint8)
        self.session = Session(_manifest(package), self.device, upload, self.device.upload("tables", stage))
        library = ctypes.CDLL(str(self.device.library_path))
        names = ("tk_inject", "tk_role", "tk_op", "tk_layer", "tk_cta")
        self.switches = [ctypes.c_int.in_dll(library, name) for name in names]
        self.table: NDArray[np.uint32] = self.session.tables.handle.view(np.uint32).reshape(-1, ROW_WORDS)

    @contextmanager
    def mutated(
        self,
        number: int = 0,
        role: int = 255,
        op: int = 255,
        layer: int = 255,
        cta: int = 255,
        table: Callable[[NDArray[np.uint32]], None] | None = None,
    ) -> Iterator[None]:
        """Runs inside have mutation `number` of the text (0: none) and the op table as `table` leaves it."""
        before = self.table.copy()
        if table is not None:
            table(self.table)
        for switch, value in zip(self.switches, (number, role, op, layer, cta), strict=True):
            switch.value = value
        try:
            yield
        finally:
            self.switches[0].value = 0
            self.table[:] = before

    def run(self, seed: int) -> Outcome:
        """One launch from an empty session under an adversarial schedule, with all detectors but banks."""
        stop = (self.program.vocab + 1,) if seed % 3 == 2 else ()
        return self.launch(seed, steps_of(seed, self.program.vocab, self.program.max_seqs), stop)

    def launch(self, seed: int, steps: list[Step], stop_ids: tuple[int, ...] = ()) -> Outcome:
        """The same for these steps."""
        self.device.configure(
            seed=seed,
            schedule=("random", "pct")[seed % 2],
            landing=("last", "random")[seed // 2 % 2],
            detect=emu_lib.DETECT_ALL & ~emu_lib.DETECT_BANKS,
            max_switches=20_000_000,
            max_findings=1,
        )
        self.session.reset()
        try:
            tokens = self.session.run(steps, stop_ids=stop_ids)
        except KernelFault as fault:
            return Outcome(tuple(f.code for f in fault.result.findings), None)
        return Outcome((), tuple(tokens.ravel().tolist()))


def _manifest(package: Path) -> Manifest:
    return Manifest.load(package)


FILTER = """
extern "C" {
#define TK_SWITCH __attribute__((visibility("default")))
extern TK_SWITCH int tk_inject, tk_role, tk_op, tk_layer, tk_cta;
int tk_inject = 0, tk_role = 255, tk_op = 255, tk_layer = 255, tk_cta = 255;
}
static inline bool tk_at(int role, int op, int layer, int cta) {
  return (tk_role == 255 || tk_role == role) && (tk_op == 255 || tk_op == op) &&
         (tk_layer == 255 || tk_layer == layer) && (tk_cta == 255 || tk_cta == cta);
}
"""


def tiles_of(net: Net) -> TileGraph:
    return tiles_until(net.graph(), TILE_PASSES[-1], context(max_context=64, max_seqs=2))


def build(
    out: Path,
    net: Net,
    mutations: Sequence[dict[Site, str]],
    change: Callable[[TileGraph], TileGraph] | None = None,
    grid: int = 3,
) -> Bench:
    """Compile a net with random weights and all mutations in its text; `change` edits its TileGraph."""
    tiles = tiles_of(net)
    package = tiles_package(
        out / "emitted", change(tiles) if change else tiles, context(max_context=64, max_seqs=2)
    )
    rng = np.random.default_rng(0)
    source = Synthetic(rng)
    for entry in package.manifest.image:
        for name in entry.sources:
            for e in range(max(entry.experts, 1)):
                rows = entry.rows // (len(entry.sources) if entry.kind == "matrix" else 1)
                shape = (entry.cols,) if entry.kind in ("norm", "f32") else (rows, entry.cols)
                values = rng.uniform(-0.2, 0.2, shape)
                source.tensors[name.replace("{e}", str(e))] = values.astype(
                    np.float32 if entry.kind == "f32" else BF16
                )
    image = np.zeros(package.manifest.image_bytes, np.uint8)
    build_image(package.manifest, source, image)
    both = mutated_package(package.directory, out / "mutants", mutations)
    return Bench(both, image, package.program, mutations, grid)
