"""Mistakes with tensor maps, wgmma, cp.async, matrices and clusters are reported, with code and place."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from tests.conformance.case import TensorMap, TensorSpec
from tests.emulator.harness import (
    CONFIGS,
    KERNELS,
    READ_ONLY,
    UNINITIALISED,
    Buffer,
    LaunchOptions,
    aligned,
    library,
)
from tilecc.runtime.devices.emu_lib import DETECT_ALL, LaunchResult


def run(
    mode: int, config: tuple[int, int, int] = CONFIGS[0], detect: int = 0, seed: int = 0
) -> tuple[LaunchResult, np.ndarray, np.ndarray]:
    """Returns (result, output words, input bytes)."""
    lib = library("hopper")
    source, out, status = aligned(2048), aligned(4096), aligned(256)
    source[:] = np.random.default_rng(mode).integers(1, 255, 2048)
    out[:] = 0xFF
    right = TensorMap("in", "u8", (128, 16), (128,), (128, 8), 128)
    wrong = TensorMap("in", "u8", (128, 64), (128,), (128, 8), 128)
    maps = b"".join(lib.encode_map(m.spec(int(source.ctypes.data))) for m in (right, wrong))
    pointers = struct.pack("<3QI4x", *(b.ctypes.data for b in (source, out, status)), mode)
    params = (maps + pointers).ljust(320, b"\0")
    buffers = [Buffer("in", source, READ_ONLY), Buffer("out", out, UNINITIALISED), Buffer("status", status)]
    schedule, landing, preempt = config
    options = LaunchOptions(
        2,
        128,
        1024 + 64 * 128 + 16 * 128,
        schedule,
        landing,
        detect,
        preempt,
        seed,
        max_switches=400_000,
        cluster=2,
    )
    return lib.launch(params, buffers, options), out.view(np.uint32), source


# mode -> code, words of the report, text of the line it points to
MISTAKES = {
    1: ("TC0905", "ldmatrix_x1 at a + 8", "mode == 1)"),
    2: ("TC0905", "cp_async16 at a + 8", "mode == 2)"),
    4: ("TC0909", "a cp_async to b + ", "mode == 4)"),
    5: ("TC0940", "through something that is not a tensor map", "mode == 5)"),
    6: ("TC0940", "tma_load_1d through a tensor map of rank 2", "mode == 6)"),
    7: ("TC0905", "tma_load_2d at a + 128 (shared offset 1152) is not aligned to 1024 bytes", "mode == 7)"),
    8: ("TC0942", "no wgmma_fence() precedes", "wgmma_bf16<16>(d, a_desc, b_desc);"),
    9: ("TC0942", "with a wgmma that was not waited for", "wgmma_bf16<16>(d, a_desc, b_desc);"),
    10: ("TC0942", "does not start in the first row", "wgmma_bf16<16>(d, a_desc, b_desc);"),
    11: ("TC0942", "wrote accumulator 3 while a wgmma was in flight", "wgmma_wait<0>()"),
    14: ("TC0941", "to rank 2 in a cluster of 2 CTAs", "mode == 14)"),
    15: ("TC0941", "which has left the kernel", "lds32_cluster(mapa(a, 1))"),
    18: ("TC0903", "the matrix of a wgmma_bf16 crosses from a + ", "wgmma_bf16<16>(d, a_desc, b_desc);"),
    19: ("TC0904", "outside the registered buffers", "mode == 19)"),
    20: ("TC0908", "without having arrived", "mode == 20)"),
    21: ("TC0905", "bulk_reduce_add_f32 of 24 bytes", "mode == 21)"),
    22: ("TC0907", "where no mbarrier was initialised", "mode == 22)"),
    26: ("TC0905", "tma_load_2d at coordinate 8 of dimension 0, byte 8", "mode == 26)"),
    27: ("TC0905", "tma_store_2d at coordinate -8 of dimension 0, byte -8", "mode == 27)"),
    25: ("TC0942", "no wgmma_fence() precedes", "wgmma_bf16<16>(d, a_desc, b_desc);"),
    28: ("TC0905", "tma_store_2d at coordinate -1 of dimension 1", "mode == 28)"),
}


@pytest.mark.parametrize("mode", MISTAKES)
def test_mistake(mode: int) -> None:
    code, words, line = MISTAKES[mode]
    result, _, _ = run(mode, CONFIGS[mode % 4], seed=mode)
    first = result.findings[0]
    assert first.code == code and words in first.message, result.report
    at = re.fullmatch(r".*hopper\.cu:(\d+):\d+", first.place)
    assert at, result.report
    assert line in (KERNELS / "hopper.cu").read_text().splitlines()[int(at.group(1)) - 1], first.place


# With the detectors: mode -> code, words
ORDER = {
    3: ("TC0913", "lds32 reads a + "),
    12: ("TC0914", "wgmma_bf16 reads"),
    13: ("TC0912", "sts32 writes a + "),
    16: ("TC0912", "a + 0"),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("mode", ORDER)
def test_missing_order(mode: int, config: tuple[int, int, int]) -> None:
    code, words = ORDER[mode]
    result, _, _ = run(mode, config, DETECT_ALL, seed=mode)
    assert any(f.code == code and words in f.message for f in result.findings), result.report


def test_different_sequences_in_a_warpgroup() -> None:
    result, _, _ = run(17)
    assert any(f.code == "TC0942" and "different sequences of wgmma" in f.message for f in result.findings)


@pytest.mark.parametrize("config", CONFIGS)
def test_right_kernel(config: tuple[int, int, int]) -> None:
    result, out, _ = run(0, config, DETECT_ALL)
    assert result.ok, result.report
    assert (out.view(np.float32) == 17.0).all()  # 1 + 16 products of ones


@pytest.mark.parametrize("config", CONFIGS)
def test_accumulators_are_nan_until_the_wait(config: tuple[int, int, int]) -> None:
    _, out, _ = run(24, config)
    assert np.isnan(out.view(np.float32)[:128]).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_outside_of_a_tensor_is_zero(config: tuple[int, int, int]) -> None:
    result, out, source = run(23, config, DETECT_ALL)
    assert result.ok, result.report
    box = np.zeros((8, 128), np.uint8)
    box[:4] = source.reshape(16, 128)[12:]
    pieces = box.reshape(8, 8, 16)
    swizzled = np.stack([pieces[r][np.arange(8) ^ r] for r in range(8)])
    assert (out.view(np.uint8)[:1024] == swizzled.reshape(-1)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"address": 8}, "multiple of 16"),
        ({"rank": 4}, "rank"),
        ({"type": 9}, "element type"),
        ({"swizzle": 64}, "swizzle must be 0 or 128"),
        ({"box": (64, 8, 1)}, "inner box of 128 bytes"),
        ({"box": (128, 257, 1)}, "1 to 256"),
        ({"strides": (120, 0)}, "stride"),
        ({"dims": (0, 4, 1)}, "1 to 2^32"),
    ],
)
def test_bad_tensor_map(change: dict[str, object], words: str) -> None:
    spec: TensorSpec = TensorMap("in", "u8", (128, 16), (128,), (128, 8), 128).spec(4096)
    for name, value in change.items():
        if isinstance(value, tuple):
            getattr(spec, name)[:] = value
        else:
            setattr(spec, name, value)
    with pytest.raises(ValueError, match=re.escape(words)):
        library("hopper").encode_map(spec)
