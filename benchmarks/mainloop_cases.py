"""The cases of benchmarks/mainloop.py, their packages, weights and expected results.

Shapes are those of MiMo-V2.5-Pro on one of eight ranks: hidden 6144, 16 query heads (o_proj 6144 x 2048, qkv
3392 x 6144), experts 256 wide, vocabulary 19072. A "loop" case is one tall matrix of the true columns, so
that the loop alone is timed; an "op" case has the true rows in many layers, each with weights of its own, and
so includes the hand-off between layers. Either streams several times the L2 cache per step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tilecc.build.nvcc import build_cuda
from tilecc.build.sass_stats import sass_stats
from tilecc.emit.compiler import image_entry
from tilecc.emit.single import SingleOp, SinglePackage, one_op_package
from tilecc.ir.tile import Weight
from tilecc.package import ImageEntry
from tilecc.runtime.abi import pack_steps
from tilecc.runtime.fragments import to_activations
from tilecc.weights.image import pack_entry
from tilecc.weights.synthetic import BF16, F64, Synthetic

PATTERN_TILES = 7
"""m16 tiles of random weights that a case repeats: a prime, so that neither the groups of a task nor the CTAs
get the same tiles in turn."""
EPS = 1e-5
STEP_BYTES = 6e9
"""Weight bytes that one timed launch streams, about."""


@dataclass(frozen=True)
class Case:
    """One package to time. `what` says which part of the model the columns are from."""

    name: str
    op: SingleOp
    what: str


def _case(name: str, what: str, kind: str, format: str, rows: int, cols: int, **more: int) -> Case:
    return Case(name, SingleOp(kind, format, rows, cols, name=name, eps=EPS, **more), what)  # type: ignore[arg-type]


CASES = (
    _case("mxfp4_up", "loop: experts' gate and up", "gate_up", "mxfp4", 122880, 6144),
    _case("mxfp4_wide", "loop: MXFP4, plain epilogue", "router", "mxfp4", 122880, 6144),
    _case("fp8_qkv", "loop: qkv", "router", "fp8_block", 65536, 6144),
    _case("bf16_o_proj", "loop: o_proj", "project", "bf16", 98304, 2048),
    _case("bf16_head", "loop: lm_head", "head", "bf16", 19072, 6144, layers=2),
    _case("f32_router", "loop: router", "router", "f32", 16384, 6144),
    _case(
        "op_experts",
        "op: route, 64 experts up and down",
        "experts",
        "mxfp4",
        512,
        6144,
        layers=3,
        experts=64,
        k=8,
    ),
    _case("op_qkv", "op: qkv rows, 16 layers", "router", "fp8_block", 3392, 6144, layers=16),
    _case("op_o_proj", "op: o_proj, 16 layers", "project", "bf16", 6144, 2048, layers=16),
)

SMALL = (
    _case("mxfp4_up", "gate_up", "gate_up", "mxfp4", 64, 1024),
    _case("mxfp4_down", "project", "project", "mxfp4", 64, 256),
    _case("fp8", "router", "router", "fp8_block", 64, 1024),
    _case("bf16", "project", "project", "bf16", 64, 1024),
    _case("f32", "router", "router", "f32", 64, 1024),
)
"""Shapes for the emulator: the same loops, a few tiles."""


@dataclass(frozen=True)
class Filled:
    """A package with what its image and inputs hold, and what must come out of its last layer.

    `patterns`: per matrix entry the packed tiles that repeat through it, starting with tile `shift`.
    `vectors`: the other entries, whole. `regions`: workspace contents before the launch. `want`, `bound`:
    float64 [8, pattern tiles, rows of one tile's result], or [8, columns] for experts; |result - want| must
    not exceed `bound`.
    """

    package: SinglePackage
    patterns: dict[str, tuple[NDArray[np.uint8], int]]
    vectors: dict[str, NDArray[np.uint8]]
    regions: dict[str, NDArray[Any]]
    want: F64
    bound: F64

    def image(self) -> NDArray[np.uint8]:
        """The whole image, for small packages."""
        out = np.zeros(self.package.manifest.image_bytes, np.uint8)
        for entry in self.package.manifest.image:
            if entry.name in self.vectors:
                data = self.vectors[entry.name]
            else:
                pattern, shift = self.patterns[entry.name]
                data = pattern[(np.arange(_tiles(entry)) + shift) % PATTERN_TILES].reshape(-1)
            out[entry.offset : entry.offset + entry.nbytes] = data
        return out


def _tiles(entry: ImageEntry) -> int:
    return max(entry.experts, 1) * entry.tiles


def fill(case: Case, out: Path, grid: int | None = None, seed: int = 1) -> Filled:
    """Compile a case and make its weights, inputs and expected results."""
    op = case.op
    package = one_op_package(out, op, grid)
    made = Synthetic(np.random.default_rng(seed))
    exact: dict[str, F64] = {}
    packed: dict[str, NDArray[np.uint8]] = {}
    patterns: dict[str, tuple[NDArray[np.uint8], int]] = {}
    vectors: dict[str, NDArray[np.uint8]] = {}
    for entry in package.manifest.image:
        if entry.kind != "matrix":
            made.tensors[entry.sources[0]] = np.zeros(entry.cols, np.float32)
            vectors[entry.name] = np.zeros(entry.nbytes, np.uint8)
            pack_entry(entry, made, vectors[entry.name])
            continue
        layer, which = entry.name.split(".")[1:]
        if which not in packed:
            sources = tuple(f"{which}.{n}.weight" for n in range(len(entry.sources)))
            for source in sources:
                rows = 16 * PATTERN_TILES // len(sources)
                exact[source] = made.matrix(source, entry.format, rows, entry.cols)
            weight = Weight(
                which, "matrix", entry.format, entry.rule, sources, 16 * PATTERN_TILES, entry.cols
            )
            small = image_entry(weight)
            packed[which] = np.zeros(small.nbytes, np.uint8)
            pack_entry(small, made, packed[which])
            packed[which] = packed[which].reshape(PATTERN_TILES, -1)
            if packed[which].shape[1] * _tiles(entry) != entry.nbytes:
                raise SystemExit(f"{case.name}: the weight image is no longer a sequence of m16 tiles")
        patterns[entry.name] = (packed[which], 3 * int(layer) % PATTERN_TILES)
    x = made.rng.standard_normal((8, op.cols)).astype(BF16)
    regions, y = _inputs(op, x)
    shift = 3 * (op.layers - 1) % PATTERN_TILES
    if op.kind == "experts":
        logits = np.full((8, -(-op.experts // 32) * 32), -8.0, np.float32)
        for row in range(8):
            logits[row, (row * op.k + np.arange(op.k)) % op.experts] = np.linspace(1.0, -1.0, op.k)
        regions["router_logits"] = logits
        want, bound = _experts(op, exact, y, logits, shift)
    else:
        want, bound = _one_matrix(op, [exact[n] for n in sorted(exact)], y)
    return Filled(package, patterns, vectors, regions, want, bound)


def _inputs(op: SingleOp, x: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], F64]:
    """Regions that hold x bf16 [8, cols], and the activations that reach the products, float64."""
    if op.kind == "project":
        return {"hidden": to_activations(x)}, x.astype(np.float64)
    wide = x.astype(np.float64)
    sums = (wide.reshape(8, -1, 64) ** 2).sum(axis=2).astype(np.float32)
    regions = {"y": to_activations(x), "sum_sq": np.ascontiguousarray(sums.T)}
    return regions, wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS)


def _one_matrix(op: SingleOp, w: list[F64], y: F64) -> tuple[F64, F64]:
    """Products in float32, summed in any order: cols * 2^-24 of the sum of magnitudes, and 4 ulp for 1 / rms
    behind a norm; gate * up is rounded to bf16 once more."""
    products = [y @ m.T for m in w]
    sums = [op.cols * 2.0**-24 * (np.abs(y) @ np.abs(m).T) for m in w]
    if op.kind == "gate_up":
        want = _silu(products[0]) * products[1]
        bound = np.full_like(want, 2.0**-7 * np.abs(want).max())
        return want.reshape(8, PATTERN_TILES, 8), bound.reshape(8, PATTERN_TILES, 8)
    return products[0].reshape(8, PATTERN_TILES, 16), (sums[0] + 2.0**-22 * np.abs(products[0])).reshape(
        8, PATTERN_TILES, 16
    )


def _silu(v: F64) -> F64:
    return v / (1 + np.exp(-np.clip(v, -700, None)))


def _experts(op: SingleOp, w: dict[str, F64], y: F64, logits: NDArray[Any], shift: int) -> tuple[F64, F64]:
    gate, up = (y @ w[f"up.{n}.weight"].T for n in (0, 1))
    hidden = (
        (_silu(gate) * up).astype(np.float32).astype(BF16).astype(np.float64).reshape(8, PATTERN_TILES, 8)
    )
    down = w["down.0.weight"]
    up_tiles, down_tiles = op.rows // 16, op.cols // 16
    want = np.zeros((8, op.cols))
    for row in range(8):
        chosen = np.argsort(-logits[row], kind="stable")[: op.k]
        sigma = 1 / (1 + np.exp(-logits[row, chosen].astype(np.float64)))
        for e, weight in zip(chosen, sigma / sigma.sum(), strict=True):
            mine = hidden[row, (e * up_tiles + np.arange(up_tiles) + shift) % PATTERN_TILES].reshape(-1)
            made = (down @ mine).reshape(PATTERN_TILES, 16)
            want[row] += weight * made[
                (e * down_tiles + np.arange(down_tiles) + shift) % PATTERN_TILES
            ].reshape(-1)
    # As gate * up: the hidden vector is rounded to bf16 and may flip by one ulp.
    return want, np.full_like(want, 2.0**-7 * np.abs(want).max())


def describe(case: Case, filled: Filled, out: Path) -> dict[str, Any]:
    """Write weights, inputs and expected results into `out`; return what mainloop_run.py must know."""
    package, op = filled.package, case.op
    m = package.manifest
    shutil.copy(package.directory / m.tables, out / "tables.bin")
    # Layers share their patterns: each is stored once.
    patterns = {id(pattern): pattern for pattern, _ in filled.patterns.values()}
    files = {key: f"pattern{n}.npy" for n, key in enumerate(patterns)}
    for key, pattern in patterns.items():
        np.save(out / files[key], pattern)
    image: list[dict[str, Any]] = []
    for entry in m.image:
        place: dict[str, Any] = {"offset": entry.offset, "nbytes": entry.nbytes}
        if entry.name in filled.vectors:
            np.save(out / f"{entry.name}.npy", filled.vectors[entry.name])
            image.append({**place, "file": f"{entry.name}.npy"})
        else:
            pattern, shift = filled.patterns[entry.name]
            image.append({**place, "file": files[id(pattern)], "shift": shift, "tiles": _tiles(entry)})
    places = {r.name: r for r in m.workspace}
    regions = []
    for name, values in filled.regions.items():
        np.save(out / f"in_{name}.npy", np.ascontiguousarray(values).view(np.uint8).reshape(-1))
        regions.append({"offset": places[name].offset, "file": f"in_{name}.npy"})
    np.save(out / "want.npy", filled.want)
    np.save(out / "bound.npy", filled.bound)
    weight_bytes = sum(e.nbytes for e in m.image if e.kind == "matrix")
    steps = max(2, round(STEP_BYTES / weight_bytes))
    np.save(
        out / "steps.npy", pack_steps([[(0, s % m.max_context, i) for i in range(8)] for s in range(steps)])
    )
    classes = {c.kind: c.constants for c in package.program.classes}
    splits = classes.get("experts_down", classes.get(op.kind, {})).get("tile_splits", 1)
    shape = {f: getattr(op, f) for f in ("kind", "format", "rows", "cols", "layers", "experts", "k")}
    sizes = {
        f: getattr(m, f) for f in ("image_bytes", "workspace_bytes", "kv_bytes", "vocab", "default_grid")
    }
    return {
        "name": case.name, "what": case.what, "symbol": m.name, **shape, **sizes, "splits": int(splits),
        "shift": 3 * (op.layers - 1) % PATTERN_TILES, "weight_bytes": weight_bytes, "steps": steps,
        "image": image, "regions": regions, "places": {n: [r.offset, r.nbytes] for n, r in places.items()},
    }  # fmt: skip


def prepare(case: Case, out: Path, target: str) -> dict[str, Any]:
    """Compile, build and count one case into the folder `out`; return its description for mainloop_run.py."""
    filled = fill(case, out / "package")
    directory = filled.package.directory
    built = build_cuda(directory, [target])
    shutil.copy(built.library, out / "kernel.so")
    described = describe(case, filled, out)
    report, _ = sass_stats(directory, target)
    shutil.rmtree(directory)
    return described | {
        "target": target, "compiler": report.compiler, "registers": report.kernel.registers,
        "ring_bytes": report.ring_bytes["weights"], "loops": [msgspec.to_builtins(x) for x in report.loops],
        "modelled": [modelled(x) for x in report.loops if x.weights],
    }  # fmt: skip


def modelled(loop: Any) -> dict[str, Any]:
    """The SASS figures of one loop (LoopStats) that belong beside a measured speed."""
    bound, waiting = loop.bound(), loop.bound(stalls=True)
    return {
        "op": loop.op,
        "instructions_per_weight": loop.all_per_weight,
        "integer_per_weight": loop.integer_per_weight,
        "share": min(1.0, bound.share),
        "bound": bound.resource,
        "share_with_stalls": min(1.0, waiting.share),
    }


def prepare_all(folder: Path, target: str, names: list[str]) -> None:
    """Prepare the cases into `folder`, which then runs elsewhere with numpy and torch alone."""
    here = Path(__file__).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    for file in (
        here / "mainloop_run.py",
        here.parent / "runtime" / "abi.py",
        here.parent / "runtime" / "fragments.py",
    ):
        shutil.copy(file, folder / file.name)
    described = []
    for case in CASES:
        if names and case.name not in names:
            continue
        out = folder / case.name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        print(f"preparing {case.name} ...", flush=True)
        described.append(prepare(case, out, target))
    (folder / "cases.json").write_text(json.dumps(described, indent=1))
