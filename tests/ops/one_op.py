"""Weights, inputs and float64 references for packages of one op, and their emulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ops.device import ON_GPU, open_kernel, packaged
from tilecc.emit.single import SingleOp, SinglePackage, one_op_package
from tilecc.runtime.bare import BareKernel
from tilecc.runtime.devices.emulator import EmulatorDevice
from tilecc.runtime.fragments import to_activations
from tilecc.weights.image import TensorSource, build_image
from tilecc.weights.synthetic import BF16, F64, Synthetic

SCHEDULES = [
    ("random", "random", 1, 3), ("random", "last", 2, 5), ("pct", "last", 3, 2), ("pct", "random", 4, 7),
    ("round_robin", "last", 5, 1), ("pct", "last", 6, 40),
]  # fmt: skip
"""Adversarial launches: schedule, landing of copies, seed, CTAs."""


@dataclass
class Built:
    """A package of one op with random weights: `weights` by source name and the `norm` before it, float64."""

    package: SinglePackage
    image: NDArray[np.uint8]
    weights: dict[str, F64]
    norm: F64
    rng: np.random.Generator

    def emulator(self, grid: int = 3, **options: Any) -> BareKernel:
        """The package on the emulator; on the GPU in a run for that one."""
        return open_kernel(self.package, self.image, grid, **options)

    def constant(self, op_class: str, name: str) -> int:
        return int(self.package.program.op_class(op_class).constants[name])


def build(out: Path, op: SingleOp, seed: int = 0, like: SingleOp | None = None) -> Built:
    """Compile the op and fill its image with random weights. `like`: see `one_op_package`."""
    package = packaged(out, (op, like), lambda: one_op_package(out, op, like=like))
    rng = np.random.default_rng(seed)
    source, weights = Synthetic(rng), {}
    norm = rng.uniform(0.5, 1.5, op.cols).astype(BF16).astype(np.float64)
    for entry in package.manifest.image:
        if entry.kind == "f32":
            source.tensors[entry.sources[0]] = rng.uniform(0.0, 0.1, entry.cols).astype(np.float32)
        else:
            rows = entry.rows // len(entry.sources)
            for name in entry.sources:
                for e in range(max(entry.experts, 1)):
                    full = name.replace("{e}", str(e))
                    weights[full] = source.matrix(full, entry.format, rows, entry.cols)
    return Built(package, packed(package, source), weights, norm, rng)


def assert_clean(kernel: BareKernel) -> None:
    """The last launch, with all detectors: no findings, and no bank conflicts.

    The list of active experts is the exception: where its entries go depends on which experts were chosen,
    and one warp scatters up to 64 of them once per layer.
    """
    device = kernel.device
    if ON_GPU:
        return
    assert isinstance(device, EmulatorDevice) and device.last_result is not None
    assert device.last_report == ""
    banks = device.last_result.stats.banks
    assert sum(c.accesses for c in banks.values()) > 0
    for site, c in banks.items():
        # Eight entries of a row, or as many experts of one lane, are the most that meet in a bank.
        most = 8 * c.accesses if site.place.startswith("include/op_route.cuh") else c.ideal
        assert c.wavefronts <= most, (site, c)


def packed(package: SinglePackage, source: TensorSource) -> NDArray[np.uint8]:
    """The image of the package with the tensors of `source`."""
    image = np.zeros(package.manifest.image_bytes, np.uint8)
    build_image(package.manifest, source, image)
    return image


def with_matrices(out: Path, op: SingleOp, tensors: Mapping[str, NDArray[Any]]) -> Built:
    """Compile the op with the given source tensors; its norm is 1."""
    package = packaged(out, (op, None), lambda: one_op_package(out, op))
    source = Synthetic(np.random.default_rng(0))
    source.tensors = dict(tensors)
    return Built(package, packed(package, source), {}, np.ones(op.cols), source.rng)


def norm_inputs(x: NDArray[Any], hidden: int, norm: F64, max_rows: int = 8) -> dict[str, NDArray[Any]]:
    """What an op behind a norm reads, for x bf16 [up to max_rows, hidden]: round(x * norm), and the sums of
    squares of x per 64 columns."""
    padded = np.zeros((max_rows, -(-hidden // 64) * 64))
    padded[: len(x), :hidden] = x.astype(np.float64)
    sums = (padded.reshape(max_rows, -1, 64) ** 2).sum(axis=2).astype(np.float32)
    y = (x.astype(np.float64) * norm).astype(np.float32).astype(BF16)
    return {"y": to_activations(y, max_rows), "sum_sq": np.ascontiguousarray(sums.T)}


def normalised(x: NDArray[Any], norm: F64, eps: float = 1e-5) -> F64:
    """round_bf16(x * norm) / rms(x): rms_norm as a projection has it, which divides its sums by rms."""
    wide = x.astype(np.float64)
    y = (wide * norm).astype(np.float32).astype(BF16).astype(np.float64)
    return y / np.sqrt((wide**2).mean(axis=1, keepdims=True) + eps)
