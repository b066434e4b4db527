"""Cases of ``kernels/wgmma.cu``: products of a warpgroup by every way its operands can lie."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conformance.case import Array, Case, Launch, TensorMap, Verdict, both, raw, rng, within

PROBLEMS = 2
MODES = {"plain": 0, "swizzled": 1, "registers": 2, "tma": 3, "fp8_swizzled": 4, "fp8_plain": 5}
SMEM = 1024 + 2 * 64 * 128


def reference(a: Array, b: Array, c: Array, steps: int, per_step: int) -> tuple[Array, Array]:
    """(float64 C + A B^T over the first steps, largest magnitude of a term or of a sum after a step)."""
    total, largest = c.copy(), np.abs(c)
    for k in range(0, steps * per_step, per_step):
        terms = a[:, :, None, k : k + per_step] * b[:, None, :, k : k + per_step]
        total = total + terms.sum(axis=3)
        largest = np.maximum(largest, np.maximum(np.abs(terms).max(axis=3), np.abs(total)))
    return total, largest


def wgmma_launch(mode: str, columns: int, exact_sums: bool) -> Launch:
    fp8 = mode.startswith("fp8")
    dtype: Any = ml_dtypes.float8_e4m3fn if fp8 else ml_dtypes.bfloat16
    k, per_step, bits = (128, 32, 13) if fp8 else (64, 16, 23)
    g = rng(600 + 10 * MODES[mode] + columns)
    if exact_sums:
        a, b = g.integers(-4, 5, (PROBLEMS, 64, k)), g.integers(-4, 5, (PROBLEMS, columns, k))
        c = g.integers(-50, 51, (PROBLEMS, 64, columns))
    else:
        a, b = g.standard_normal((PROBLEMS, 64, k)), g.standard_normal((PROBLEMS, columns, k))
        c = g.standard_normal((PROBLEMS, 64, columns))
    a, b, c = a.astype(np.float32).astype(dtype), b.astype(np.float32).astype(dtype), c.astype(np.float32)
    inp = np.concatenate([raw(v).reshape(PROBLEMS, -1) for v in (a, b, c)], axis=1)
    a64, b64, c64 = (v.astype(np.float64) for v in (a, b, c))
    d, d_largest = reference(a64, b64, c64, 4, per_step)
    e, e_largest = reference(a64, b64, np.zeros_like(c64), 2, per_step)
    want, largest = np.stack([d, e], 1), np.stack([d_largest, e_largest], 1)
    allowed = largest * (0.0 if exact_sums else (k + 8) * 2.0**-bits)
    truncated = f"(K + 8) terms truncated to {bits} bits below the largest"
    rule = "equal: sums of small integers" if exact_sums else truncated

    def check(out: NDArray[np.uint8], _: NDArray[np.uint8]) -> Verdict:
        got = out.view(np.float32).reshape(want.shape)
        parts = ((0, "four steps"), (1, "two steps"))
        return both(*(within(want[:, i], got[:, i], allowed[:, i], rule, name) for i, name in parts))

    rows = inp.size // 128
    maps = tuple(TensorMap("in", "u8", (128, rows), (128,), (128, n), 128) for n in (64, columns))
    return Launch(
        raw(inp), want.size * 4, check, MODES[mode], PROBLEMS, (columns,), smem=SMEM,
        maps=maps if mode == "tma" else (),
    )  # fmt: skip


def product(mode: str) -> str:
    return {"registers": "wgmma_bf16_rs"}.get(mode, "wgmma_e4m3" if mode.startswith("fp8") else "wgmma_bf16")


def case(mode: str, columns: int, exact_sums: bool) -> Case:
    make: Callable[[], Launch] = partial(wgmma_launch, mode, columns, exact_sums)
    descriptor = "wgmma_desc" if mode.endswith("plain") else "wgmma_desc_128b"
    names = (product(mode), descriptor, "wgmma_fence", "wgmma_commit", "wgmma_wait", "wgmma_hold")
    kind = "integers" if exact_sums else "random"
    return Case(f"wgmma.{mode}_n{columns}_{kind}", "wgmma", names, make, ("90a",))


CASES = [case(mode, n, sums) for mode in MODES for n in (8, 16, 32, 64) for sums in (True, False)]
