"""roles: which warps of a CTA do what. A fixed set in this version: one weight loader, one store and signal
warp, two activation loaders, four consumers. Register budgets come from the launch bounds as long as all
threads together fit.
"""

from __future__ import annotations

import dataclasses

from tilecc.ir.tile import RoleSpec, TileGraph
from tilecc.passes.context import ROLES_SUBJECT, PassContext

ROLES = (
    RoleSpec("loader", 0, 1),
    RoleSpec("store", 1, 1),
    RoleSpec("activations", 2, 2),
    RoleSpec("consumer", 4, 4),
)


def roles(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `roles`."""
    threads = 32 * max(r.first_warp + r.warps for r in ROLES)
    budget = min(255, ctx.target.registers_per_sm // threads)
    ctx.decide(
        "roles",
        "registers",
        "launch bounds, no setmaxnreg",
        f"{threads} threads may have {budget} registers each",
    )
    ctx.choose("roles", ROLES_SUBJECT, [{r.name: r.warps for r in ROLES}], reason="fixed set of this version")
    return dataclasses.replace(graph, roles=ROLES)
