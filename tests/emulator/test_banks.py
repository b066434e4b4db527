"""Bank conflicts against the same model written in numpy, and cases whose count is known by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.harness import CONFIGS, EmulatorLibrary, LaunchOptions, aligned, build_text
from tilecc.runtime.devices.emu_lib import (
    DETECT_ALL,
    DETECT_BANKS,
    BankCounts,
    BankSite,
    Buffer,
    Stats,
    parse_banks,
)

TEXT = """
#include "tk_prim.cuh"
using namespace tk;
struct BankParams { const uint8_t* offsets; uint32_t rounds; uint32_t mode; };
TK_KERNEL(banks, 64)(TK_GRID_CONST BankParams p) {
  const smem_t sb = smem_base();
  smem_region("all", sb, 32768);
  name_role(5, "reader");
  for (u32 i = lane(); i < 8192; i += 32) sts32(sb + i * 4, i);  // line 9
  cta_sync();
  u32 sum = 0;
  for (u32 r = 0; r < p.rounds; r++) {
    const u32 o = ldg32(p.offsets + (r * 32 + lane()) * 4);
    if (p.mode == 4) sum += lds32(sb + o);  // line 14
    if (p.mode == 8) sum += lds64(sb + o).x;  // line 15
    if (p.mode == 16) sum += lds128(sb + o).x;  // line 16
    if (p.mode == 1) sum += lds_u8(sb + o);  // line 17
    if (p.mode == 2 && (lane() & 1)) sum += lds32(sb + o);  // line 18
    if (p.mode == 3) sts32(sb + o, r);  // line 19
    u32 m[4];
    if (p.mode == 5) ldmatrix_x4(m, sb + o);  // line 21
    if (sum == 0xffffffffu) break;
  }
}
TK_EMU_ENTRY(banks, BankParams)
"""
Pair = tuple[int, int]
Config = tuple[int, int, int]
LINES = {4: 14, 8: 15, 16: 16, 1: 17, 2: 18, 3: 19, 5: 21}
SIZES = {4: 4, 8: 8, 16: 16, 1: 1, 2: 4, 3: 4, 5: 16}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> EmulatorLibrary:
    return build_text(TEXT, "banks", tmp_path_factory.mktemp("banks"))


def count(
    library: EmulatorLibrary,
    offsets: NDArray[np.uint32],
    mode: int,
    config: tuple[int, int, int] = CONFIGS[0],
) -> BankCounts:
    """Run two warps over ``offsets`` [rounds, 32] and return the counts of the mode's line."""
    buffer = aligned(offsets.nbytes)
    buffer[:] = np.ascontiguousarray(offsets).view(np.uint8).reshape(-1)
    params = struct.pack("QII", buffer.ctypes.data, len(offsets), mode)
    schedule, landing, preempt = config
    options = LaunchOptions(1, 64, 32768, schedule, landing, DETECT_BANKS, preempt)
    result = library.launch(params, [Buffer("offsets", buffer)], options)
    assert result.ok, result.report
    by_line = {int(site.place.split(":")[1]): (site, c) for site, c in result.stats.banks.items()}
    site, counts = by_line[LINES[mode]]
    assert site.place.split(":")[0].endswith("banks.cu")
    # Everything else is the conflict-free filling: 256 stores of each of two warps.
    total = result.stats.total
    assert total["bank_conflicts"] == counts.extra
    assert total["smem_wavefronts"] == counts.wavefronts + 2 * 256
    return counts


def model(
    offsets: NDArray[np.uint32], nbytes: int, active: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """(wavefronts, ideal) of one warp access: the largest number of different words in one bank, by phase."""
    lanes = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8}[nbytes]
    on = np.ones(32, bool) if active is None else active
    wavefronts = ideal = 0
    for phase in range(0, 32, lanes):
        chosen = offsets[phase : phase + lanes][on[phase : phase + lanes]]
        words = {int(o) // 4 + i for o in chosen for i in range(max(nbytes // 4, 1))}
        if words:
            wavefronts += max(np.bincount([w % 32 for w in words]))
            ideal += 1
    return wavefronts, ideal


LANE = np.arange(32, dtype=np.uint32)
BY_HAND: list[tuple[str, int, NDArray[np.uint32], int, int]] = [
    # name, mode, offsets, wavefronts, of them extra
    ("consecutive words", 4, 4 * LANE, 1, 0),
    ("one word for all", 4, 0 * LANE, 1, 0),
    ("stride of two words", 4, 8 * LANE, 2, 1),
    ("one bank", 4, 128 * LANE, 32, 31),
    ("padded rows", 4, 132 * LANE, 1, 0),
    ("bytes of eight words", 1, LANE, 1, 0),
    ("consecutive pairs", 8, 8 * LANE, 2, 0),
    ("pairs in one bank", 8, 128 * LANE, 32, 30),
    ("consecutive quads", 16, 16 * LANE, 4, 0),
    ("quads a row apart", 16, 128 * LANE, 32, 28),
    ("quads in swizzled rows", 16, 128 * LANE + 16 * (LANE % 8), 4, 0),
    ("matrix rows together", 5, 16 * LANE, 4, 0),
    ("matrix rows apart", 5, 128 * LANE, 32, 28),
    ("stores in one bank", 3, 128 * LANE, 32, 31),
]


@pytest.mark.parametrize(
    ("name", "mode", "offsets", "wavefronts", "extra"), BY_HAND, ids=lambda v: str(v)[:24]
)
def test_known_patterns(
    kernel: EmulatorLibrary, name: str, mode: int, offsets: NDArray[np.uint32], wavefronts: int, extra: int
) -> None:
    rounds = 3
    got = count(kernel, np.stack([offsets] * rounds), mode)
    assert got == BankCounts(2 * rounds, 2 * rounds * wavefronts, 2 * rounds * (wavefronts - extra))
    assert got.extra == 2 * rounds * extra


@pytest.mark.parametrize("mode", [4, 8, 16, 2])
@pytest.mark.parametrize("config", CONFIGS)
def test_random_patterns_agree_with_the_model(
    kernel: EmulatorLibrary, mode: int, config: tuple[int, int, int]
) -> None:
    """Also where lanes run in another order and are preempted, and where only odd lanes take part."""
    size = SIZES[mode]
    offsets = np.random.default_rng(mode).integers(0, 8192 // size, (6, 32), np.uint32) * np.uint32(size)
    active = (LANE & 1).astype(bool) if mode == 2 else None
    rows = np.array([model(row, size, active) for row in offsets])
    assert rows[:, 0].max() > rows[:, 1].max()
    got = count(kernel, offsets, mode, config)
    assert (got.wavefronts, got.ideal) == (2 * rows[:, 0].sum(), 2 * rows[:, 1].sum())


def test_counts_add_up_and_are_off_by_default(kernel: EmulatorLibrary) -> None:
    listing = "kernels/a.cu:3:7\tlds32\tconsumer\t2\t5\t2\n"
    site = BankSite("kernels/a.cu:3:7", "lds32", "consumer")
    assert parse_banks(listing) == {site: BankCounts(2, 5, 2)}
    assert BankCounts(2, 5, 2) + BankCounts(1, 1, 1) == BankCounts(3, 6, 3)
    buffer = aligned(128)
    params = struct.pack("QII", buffer.ctypes.data, 1, 4)

    def run(detect: int) -> Stats:
        options = LaunchOptions(1, 64, 32768, detect=detect)
        return kernel.launch(params, [Buffer("offsets", buffer)], options).stats

    assert run(DETECT_ALL & ~DETECT_BANKS).banks == {} and run(0).total["smem_wavefronts"] == 0
    stats = run(DETECT_ALL)
    assert len((stats + stats).banks) == len(stats.banks) == 2
