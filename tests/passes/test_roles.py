"""roles: the warps of a CTA."""

from __future__ import annotations

from tests.passes.helpers import Net, context, tiles_until
from tilecc.ir.tile_rules import role_problems
from tilecc.passes.place import place
from tilecc.passes.roles import roles


def test_before_and_after() -> None:
    graph = tiles_until(Net().graph(), place)
    ctx = context()
    made = roles(graph, ctx)
    assert graph.roles == ()
    assert [(r.name, r.first_warp, r.warps) for r in made.roles] == [
        ("loader", 0, 1),
        ("store", 1, 1),
        ("activations", 2, 2),
        ("consumer", 4, 4),
    ]
    assert list(role_problems(made.roles)) == []


def test_the_register_budget_is_what_the_launch_bounds_allow() -> None:
    ctx = context()
    roles(tiles_until(Net().graph(), place), ctx)
    (budget,) = (d for d in ctx.decisions if d.subject == "registers")
    assert (
        budget.reason == "256 threads may have 255 registers each"
    )  # 64 Ki / 256 is 256, an instruction names 255
    assert [d.pass_name for d in ctx.decisions] == ["roles", "roles"]
