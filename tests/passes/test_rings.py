"""rings: slots fit what the ops put there, the whole fits the target, or the model is refused."""

from __future__ import annotations

import pytest

from tests.passes.helpers import FILE, Net, context, line_of, lower, refusal, tiles_until, tiny
from tilecc.emit.cuda import smem_bytes
from tilecc.passes.rings import FIXED_BYTES, MAX_WEIGHT_STAGES, MIN_WEIGHT_STAGES, rings
from tilecc.passes.roles import roles
from tilecc.target import show


def sizes(net: Net) -> dict[str, tuple[int, int]]:
    return {r.name: (r.slots, r.slot_bytes) for r in tiles_until(net.graph(), rings).rings}


def test_before_and_after() -> None:
    graph = tiles_until(Net().graph(), roles)
    ctx = context()
    assert graph.rings == ()
    made = {r.name: (r.slots, r.slot_bytes) for r in rings(graph, ctx).rings}
    # weights: a group of 2 tiles, 1 bf16 block each. activations: one chunk. exchange: 4 warps, each
    # with the probabilities of one block and the maxima and sums of 16 heads.
    assert made == {"weights": (8, 2 * 4096), "activations": (8, 2048), "exchange": (2, 4 * (1024 + 128))}
    (decision,) = (d for d in ctx.decisions if d.pass_name == "rings")
    assert decision.choice == "8 stages of 8192 B"
    needed = show(ctx.target.in_flight, "B")
    assert decision.reason == f"64 KiB in flight per SM; the memory system needs {needed}"


def test_the_largest_op_decides_the_slot() -> None:
    assert sizes(Net(hidden=256))["weights"] == (8, 2 * 2 * 4096)  # two K blocks a chunk
    assert sizes(Net(hidden=256, formats={"router": "f32"}, experts=48))["weights"] == (8, 2 * 8192)
    # the keys of 16 positions, or a row's queries of 16 heads; a window of 8 has one block per consumer warp
    assert sizes(Net(dim=192, v_dim=128))["activations"] == (8, 16 * 192 * 2)
    assert sizes(Net(dim=192, v_dim=128))["exchange"] == (2, 4 * (1024 + 128))
    assert sizes(Net(layers=((128, "dense"),)))["exchange"] == (2, 4 * (3 * 1024 + 128))
    assert sizes(Net(dim=8, v_dim=2, rotary=4))["activations"] == (8, 2048)


def test_weights_get_what_the_others_leave() -> None:
    slots, stage = sizes(Net(hidden=512, dim=640, v_dim=64, formats={"router": "f32"}))["weights"]
    assert MIN_WEIGHT_STAGES <= slots < MAX_WEIGHT_STAGES
    left = 227 * 1024 - FIXED_BYTES - 8 * 20480 - 2 * 4 * (1024 + 128)
    assert slots * stage <= left < (slots + 1) * stage


@pytest.mark.parametrize(
    "net", [Net(), Net(hidden=512, dim=192, v_dim=128), Net(hidden=512, dim=256, v_dim=128)]
)
def test_the_emitted_layout_fits_the_target(net: Net) -> None:
    """FIXED_BYTES must cover the barriers and the routing record of the emitted kernel."""
    ctx = context()
    assert smem_bytes(lower(net.graph(), ctx)[1]) <= ctx.target.smem_per_cta
    assert smem_bytes(tiny()[1]) <= ctx.target.smem_per_cta


def test_heads_that_do_not_fit() -> None:
    graph = Net(layers=((8, "dense"), (0, "dense")), hidden=512, dim=1024, v_dim=512, rotary=64).graph()
    found = refusal(lambda: tiles_until(graph, rings), "TC0223")
    assert found.message == "shared memory of `sm_90a` does not hold 3 weight stages"
    assert f"{227 * 1024} B per CTA; activations 8 x 32768 B, exchange 2 x 4608 B" in found.notes[0]
    assert found.span is not None
    assert (found.span.file, found.span.line) == (FILE, line_of(graph, "layers.0.attend"))
    assert found.help
