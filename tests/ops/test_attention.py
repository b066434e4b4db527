"""Attention of one rank of MiMo-V2.5-Pro (16 query heads on one KV head, 192 / 128), and of small odd sizes:
numerics against float64, bits that depend on nothing but the row, all detectors of the emulator clean.

The cache is NaN wherever no row may look, so a result that is finite has looked nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ops.attention import (
    E4M3,
    PRO_GLOBAL,
    PRO_WINDOW,
    Built,
    Case,
    Place,
    Shape,
    attend,
    bits,
    build,
    check,
    launch,
    random_case,
    reference,
)
from tests.ops.device import ON_GPU
from tests.ops.one_op import SCHEDULES, assert_clean
from tilecc.runtime.devices.emu_lib import DETECT_ALL

Make = Callable[..., Built]
KV = ("bf16", "fp8")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`build` that compiles each shape once."""
    done: dict[Any, Built] = {}

    def made(shape: Shape, **options: Any) -> Built:
        key = (shape, tuple((k, v if np.isscalar(v) else v.tobytes()) for k, v in sorted(options.items())))
        if key not in done:
            done[key] = build(tmp_path_factory.mktemp("attention") / "p", shape, **options)
        return done[key]

    return made


def run(built: Built, case: Case, **options: Any) -> np.ndarray:
    kernel = built.emulator(**{"detect": DETECT_ALL, **options})
    got = attend(kernel, built, case)
    assert_clean(kernel)
    return got


def splits(built: Built) -> int:
    return built.constant("tile_splits")


PLACES: dict[str, list[Place]] = {
    "one key": [(0, 0)],
    "window - 1, window, window + 1": [(126, 0), (127, 1), (128, 2)],
    "draft block": [(200 + i, 1) for i in range(8)],
    "block boundary": [(252 + i, 0) for i in range(8)],
    "mixed": [(5, 0), (300, 1), (301, 1), (140, 2), (302, 1), (141, 2), (6, 0)],
    "ends of the context": [(511, 0), (0, 1), (63, 2), (64, 2)],
}


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", [PRO_WINDOW, PRO_GLOBAL], ids=["window", "global"])
def test_numerics_at_the_shapes_of_mimo(make: Make, shape: Shape, kv: str) -> None:
    built = make(dataclasses.replace(shape, kv=kv))
    for name, places in PLACES.items():
        for scale in (1.0, 8.0):  # flat and peaked softmax
            case = random_case(built.shape, places, seed=len(name), scale=scale)
            worst = check(run(built, case), reference(case, built.sinks, splits(built)))
            print(f"{name}, scores of {scale}: {worst:.1e} of the largest value")


@pytest.mark.parametrize("kv", KV)
def test_4096_positions(make: Make, kv: str) -> None:
    built = make(dataclasses.replace(PRO_GLOBAL, kv=kv, max_context=4104, max_seqs=1))
    case = random_case(built.shape, [(4095, 0)])
    check(run(built, case), reference(case, built.sinks, splits(built)))
    ring = make(dataclasses.replace(PRO_WINDOW, kv=kv, max_context=4104, max_seqs=1))
    case = random_case(ring.shape, [(4090 + i, 0) for i in range(6)])
    check(run(ring, case), reference(case, ring.sinks))


@pytest.mark.parametrize("kv", KV)
def test_65536_positions_of_a_sliding_layer(make: Make, kv: str) -> None:
    """The ring after 454 laps, at the end of the context."""
    shape = dataclasses.replace(PRO_WINDOW, kv=kv, max_context=65536, max_seqs=1)
    built = make(shape)
    case = random_case(shape, [(65528 + i, 0) for i in range(8)])
    assert 65535 // (16 * built.kv_blocks) > 400
    check(run(built, case), reference(case, built.sinks))


@pytest.mark.nightly
@pytest.mark.parametrize("kv", KV)
def test_65536_positions(make: Make, kv: str) -> None:
    """Four of the sixteen heads, one row: 4,096 blocks in 64 splits, chunk by chunk over several laps."""
    shape = dataclasses.replace(PRO_GLOBAL, heads=4, kv=kv, max_context=65536, max_seqs=1)
    built = make(shape)
    assert splits(built) == 64
    case = random_case(shape, [(65535, 0)])
    check(run(built, case), reference(case, built.sinks, splits(built)))


SMALL = [
    Shape(8, heads=4, kv_heads=2, dim=16, v_dim=8, max_context=64, max_seqs=2),
    Shape(33, heads=6, kv_heads=2, dim=24, v_dim=20, max_context=256, max_seqs=2),
    Shape(300, heads=5, kv_heads=1, dim=48, v_dim=32, max_context=512, max_seqs=2),  # two rounds of blocks
    Shape(1, heads=2, kv_heads=1, dim=8, v_dim=2, sink=False, max_context=64, max_seqs=2),
    Shape(0, heads=8, kv_heads=4, dim=48, v_dim=32, max_context=256, max_seqs=2),
    Shape(0, heads=3, kv_heads=3, dim=40, v_dim=24, max_context=64, max_seqs=2),
    Shape(0, heads=2, kv_heads=1, dim=8, v_dim=2, sink=False, max_context=40, max_seqs=2),
]


@pytest.mark.parametrize(
    "shape", SMALL, ids=lambda s: f"window{s.window}-{s.heads}x{s.kv_heads}-{s.dim}-{s.v_dim}"
)
def test_other_shapes(make: Make, shape: Shape) -> None:
    built = make(shape)
    last = shape.max_context - 1
    for places in ([(0, 0)], [(last, 0), (last - 1, 0), (last // 2, 1)], [(17 + i, 1) for i in range(8)]):
        case = random_case(shape, places, seed=3)
        check(run(built, case), reference(case, built.sinks, splits(built)))


@pytest.mark.parametrize(
    "shape", [PRO_WINDOW, dataclasses.replace(PRO_GLOBAL, sink=True)], ids=["window", "global"]
)
def test_extreme_sinks_and_scores(make: Make, shape: Shape) -> None:
    """Sinks that swallow everything or nothing; scores whose exponentials overflow by themselves."""
    ends = np.array([-1e30, -200, -88, -30, 0, 30, 88, 200, 300, 1e3, -1e3, 1, 2, -2, 5, -5], np.float32)
    built = make(shape, sinks=ends)
    places = [(0, 0), (130, 1), (131, 1)]
    for scale in (1.0, 60.0):
        case = random_case(shape, places, seed=7, scale=scale)
        check(run(built, case), reference(case, built.sinks, splits(built)))
    # A sink above every score leaves exactly nothing.
    certain = make(shape, sinks=np.full(16, 3e4, np.float32))
    assert not run(certain, random_case(shape, places)).astype(np.float32).any()


@pytest.mark.parametrize("shape", [PRO_WINDOW, PRO_GLOBAL], ids=["window", "global"])
def test_every_fp8_code_of_the_cache_is_exact(make: Make, shape: Shape) -> None:
    """One visible key has probability 1, so a row's output is its value; NaN codes stay NaN, sinks count
    nothing."""
    shape = dataclasses.replace(shape, kv="fp8", max_seqs=4)
    built = make(shape, sinks=np.full(16, -np.inf, np.float32)) if shape.sink else make(shape)
    case = random_case(shape, [(0, seq) for seq in range(4)])
    codes = np.arange(512).reshape(4, 128) % 256
    codes[2:] = codes[:2, ::-1]
    case.v[:, 0, 0] = codes.astype(np.uint8).view(E4M3).astype(np.float32)
    got = run(built, case).reshape(4, 16, 128).astype(np.float32)
    want = case.v[:, 0]
    assert ((got == want) | (np.isnan(got) & np.isnan(want))).all() and np.isnan(got).sum() == 2 * 2 * 16


@pytest.mark.parametrize("shape", [PRO_WINDOW, PRO_GLOBAL], ids=["window", "global"])
def test_every_fp8_code_of_a_key_counts_as_it_is(make: Make, shape: Shape) -> None:
    """A query that is zero but at one dimension sees one code of a key. With a score of 1 to 2 a code that is
    wrong by one step would move the result by far more than the bound."""
    shape = dataclasses.replace(shape, kv="fp8", max_seqs=4)
    built = make(shape)
    for first in (0, 128):
        case = random_case(shape, [(1, row % 4) for row in range(8)])
        case.q[:], case.k[:] = 0, 0
        case.v[:, 0], case.v[:, 1] = 1, -1
        for row, head in np.ndindex(8, 16):
            code = first + 16 * row + head
            value = float(np.uint8(code).view(E4M3))
            if value == 0 or np.isnan(value):
                continue
            case.k[row % 4, 0, 0, 16 * row + head] = value
            case.q[row, head, 16 * row + head] = 2.0 ** np.ceil(np.log2(192**0.5 / abs(value)))
        check(run(built, case), reference(case, built.sinks, splits(built)))


def test_equal_scores_average_the_values(make: Make) -> None:
    """With queries of zero every visible key counts the same, so nothing may be counted twice or left out."""
    built = make(PRO_GLOBAL)
    case = random_case(PRO_GLOBAL, [(99, 0), (100, 0), (300, 1)])
    case.q[:] = 0
    got = run(built, case).astype(np.float64)
    for row, (p, s) in enumerate(case.places):
        mean = case.v[s, : p + 1, 0].astype(np.float64).mean(axis=0)
        assert np.abs(got[row].reshape(16, 128) - mean).max() <= 2.0**-8 * np.abs(mean).max() + 1e-6


def test_not_a_number_stays_where_it_is(make: Make) -> None:
    """A NaN in a row's query or visible values reaches that row's result and no other."""
    for built in (make(PRO_WINDOW), make(PRO_GLOBAL)):
        case = random_case(built.shape, [(140, 0), (141, 0), (142, 1)])
        clean = run(built, case)
        bad = dataclasses.replace(case, q=case.q.copy(), v=case.v.copy())
        bad.q[0, 3, 0] = np.nan
        bad.v[1, 142, 0, 5] = np.nan
        got = run(built, bad).astype(np.float32)
        heads = got.reshape(3, 16, 128)
        assert np.isnan(heads[0, 3]).all() and np.isnan(heads[2, :, 5]).all()
        assert np.isnan(got).sum() == 128 + 16
        assert (bits(run(built, bad)[1]) == bits(clean[1])).all()


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", [PRO_WINDOW, PRO_GLOBAL], ids=["window", "global"])
def test_a_row_depends_on_nothing_but_itself(make: Make, shape: Shape, kv: str) -> None:
    """Its bits are the same alone, in every column, beside any rows, on any number of CTAs, in any order."""
    built = make(dataclasses.replace(shape, kv=kv))
    places = [(200, 0), (201, 0), (130, 1), (202, 0), (5, 2), (203, 0), (131, 1), (6, 2)]
    case = random_case(built.shape, places, seed=11)
    together = bits(run(built, case))
    for i in range(8):
        assert (bits(run(built, case.rows(i)))[0] == together[i]).all(), f"row {i} alone"
    rng = np.random.default_rng(1)
    for count in range(2, 9):
        order = [int(i) for i in rng.permutation(8)[:count]]
        got = bits(run(built, case.rows(*order), grid=(1, 2, 3, 5, 8)[count % 5]))
        assert (got == together[order]).all(), f"rows {order}"
    # Row 0 in every column, beside other rows of its own sequence and of others.
    for at in range(8):
        order = [int(i) for i in 1 + rng.permutation(7)]
        order.insert(at, 0)
        assert (bits(run(built, case.rows(*order))) == together[order]).all(), f"rows {order}"


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", [PRO_WINDOW, PRO_GLOBAL], ids=["window", "global"])
def test_adversarial_schedules(make: Make, shape: Shape, kv: str) -> None:
    """Several steps a launch, so that the keys fetched before the hand-off meet the step before."""
    built = make(dataclasses.replace(shape, kv=kv))
    case = random_case(built.shape, [(200 + i, 0) for i in range(5)] + [(77, 1)], seed=13)
    want = bits(run(built, case))
    for schedule, landing, seed, grid in SCHEDULES:
        kernel = built.emulator(grid=grid, detect=DETECT_ALL, schedule=schedule, landing=landing, seed=seed)
        got = attend(kernel, built, case, steps=3)
        assert_clean(kernel)
        assert (bits(got) == want).all(), (schedule, landing, seed, grid)


@pytest.mark.parametrize("kv", KV)
def test_bits_do_not_depend_on_where_the_ring_wraps(make: Make, kv: str) -> None:
    """The same positions in caches of every length from the smallest legal one: each puts them elsewhere."""
    shape = dataclasses.replace(PRO_WINDOW, kv=kv, max_seqs=1)
    smallest = make(shape).kv_blocks
    found = []
    for blocks in (smallest, smallest + 1, smallest + 3):
        built = make(shape, kv_blocks=blocks)
        assert built.kv_blocks == blocks
        case = random_case(shape, [(300 + i, 0) for i in range(8)], seed=17)
        found.append(bits(run(built, case)))
    assert all((f == found[0]).all() for f in found)


def test_bits_do_not_depend_on_the_longest_context(make: Make) -> None:
    """Fewer positions at most means fewer splits, of which the rest would have been empty."""
    case = random_case(PRO_GLOBAL, [(120, 0), (121, 0)], seed=19)
    short, long = make(dataclasses.replace(PRO_GLOBAL, max_context=128)), make(PRO_GLOBAL)
    assert splits(short) == 2 and splits(long) == 8
    assert (bits(run(short, case)) == bits(run(long, case))).all()


@pytest.mark.parametrize("rows", [16, pytest.param(64, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("shape", [PRO_WINDOW, PRO_GLOBAL], ids=["window", "global"])
def test_steps_of_more_rows_give_the_same_bits(make: Make, shape: Shape, rows: int) -> None:
    """A chunk of one sequence as long as the ring allows, and the beginning of another."""
    more = dataclasses.replace(shape, max_rows=rows)
    places = [(190 + i, 0) for i in range(rows - 3)] + [(i, 1) for i in range(3)]
    case = random_case(more, places, seed=23)
    got = run(make(more), case)
    check(got, reference(case, make(more).sinks, splits(make(more))))
    for first in range(0, rows, 8):
        few = case.rows(*range(first, first + 8))
        same = run(make(shape), dataclasses.replace(few, shape=shape))
        assert (bits(same) == bits(got[first : first + 8])).all()
    order = [int(i) for i in np.random.default_rng(2).permutation(rows)]
    assert (bits(run(make(more), case.rows(*order), grid=5)) == bits(got)[order]).all()
    kernel = make(more).emulator(detect=DETECT_ALL, schedule="pct", landing="last", seed=4)
    assert (bits(attend(kernel, make(more), case, steps=2)) == bits(got)).all()
    assert_clean(kernel)


@pytest.mark.parametrize("residue", range(16))
def test_every_residue_of_the_ring(make: Make, residue: int) -> None:
    """Every place of a block as the last position, after the ring has wrapped."""
    built = make(PRO_WINDOW)
    case = random_case(PRO_WINDOW, [(336 + residue, 0)], seed=residue)
    check(run(built, case), reference(case, built.sinks))


@pytest.mark.skipif(ON_GPU, reason="the emulator counts")
def test_rows_of_a_sequence_share_the_keys_of_a_global_layer(make: Make) -> None:
    """Eight rows of one sequence: a global layer's blocks come once per task of four rows."""
    for built in (make(PRO_WINDOW), make(PRO_GLOBAL)):
        case = random_case(built.shape, [(200 + i, 0) for i in range(8)])
        stats = launch(built.emulator(detect=DETECT_ALL), built, case).stats
        query, block = 12 * 512, 12 * 512 + 8 * 512
        if built.shape.window:
            blocks = sum((200 + i) // 16 - (200 + i - 127) // 16 + 1 for i in range(8))
            assert stats["bulk_load_bytes"] == 8 * query + blocks * block
        else:
            # 208 positions: 13 blocks in four splits, each split for two groups of four rows.
            assert stats["bulk_load_bytes"] == 4 * 8 * query + 2 * 13 * block


@pytest.mark.parametrize("kv", KV)
def test_two_warps_on_a_row_give_the_bits_of_one(make: Make, kv: str) -> None:
    """Eight consumers share the values of four rows of a global layer; an odd number of value tiles."""
    shape = Shape(0, heads=6, kv_heads=2, dim=32, v_dim=40, kv=kv, max_context=512, max_seqs=2)
    one, two = make(shape), make(dataclasses.replace(shape, consumers=8))
    assert two.package.manifest.threads > one.package.manifest.threads
    case = random_case(shape, [(300 + i, 0) for i in range(5)] + [(40, 1), (0, 1)], seed=4)
    got = run(two, case, grid=2)
    check(got, reference(case, two.sinks, splits(two)))
    assert np.array_equal(bits(got), bits(run(one, case)))


def test_eight_consumers_share_a_window(make: Make) -> None:
    shape = Shape(33, heads=6, kv_heads=2, dim=24, v_dim=20, max_context=256, max_seqs=2, consumers=8)
    built = make(shape)
    case = random_case(shape, [(100 + i, 0) for i in range(5)] + [(255, 1)], seed=5)
    check(run(built, case), reference(case, built.sinks))
