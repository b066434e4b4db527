"""roles: which warps of a CTA do what, how many of them, and what registers they may have.

All legal sets of the grid below are simulated with the rings they would get; of those within 2 % of
the best the base set is taken, or else the one with the fewest warps.

    loader        one lane asks for weights, and prefetches into L2
    store         sums partials, runs epilogues, signals, pushes to peers
    activations   fetch activations and keys and values
    consumers     multiply

The loader and the store role have one warp each: the protocols of the templates count one. A set is legal
if the launch bounds leave each role the registers that its code takes, and the rings still fit.

    TileGraph(roles=[])  =>  TileGraph(roles=[loader 1, store 1, activations 2, consumer 4])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tilecc.diag import TileccError
from tilecc.ir.attention import fragment_registers
from tilecc.ir.rows import BASE_ROWS
from tilecc.ir.tile import RoleSpec, TileGraph
from tilecc.ir.tile_rules import MAX_THREADS, launch_registers
from tilecc.passes.context import ROLES_SUBJECT, Choice, PassContext
from tilecc.passes.cost import modelled_seconds, trial
from tilecc.passes.rings import rings
from tilecc.passes.tile import for_consumers, tile

CONSUMERS = (4, 8, 16)
ACTIVATIONS = (1, 2, 4)
BASE = (2, 4)
CLOSE = 1.02
"""Sets that are no more than this above the best count as equal: then the base set is taken, which all
measurements so far are of, or else the one with the fewest warps."""
OTHER_REGISTERS = 152
"""What the roles besides the consumers take at the sizes of MiMo-V2.5-Pro, each compiled alone for sm_90a
with nvcc 13.0.88: loader 34, activations 107 to 151, store 136."""
CONSUMER_REGISTERS = 112
"""What a consumer takes besides `fragment_registers`, in the same way: 224 with 112 of them."""


def role_set(activations: int, consumers: int) -> tuple[RoleSpec, ...]:
    """The roles of a CTA. Consumers start at a multiple of four warps, a scheduler each."""
    first = -(-(2 + activations) // 4) * 4
    return (
        RoleSpec("loader", 0, 1),
        RoleSpec("store", 1, 1),
        RoleSpec("activations", 2, activations),
        RoleSpec("consumer", first, consumers),
    )


def roles(graph: TileGraph, ctx: PassContext) -> TileGraph:
    """Fill `roles`, and what follows from the number of consumers in the ops. Raises TileccError TC0223 if
    the rings fit beside no set."""
    wanted = base_consumers(graph, ctx)
    sets: dict[tuple[int, int], tuple[TileGraph, float]] = {}
    refused: list[tuple[Choice, str]] = []
    failed: TileccError | None = None
    for activations, consumers in grid():
        made = with_roles(graph, activations, consumers)
        why = registers_missing(made, ctx)
        if wanted not in (0, consumers):
            why = (
                f"a program of {BASE_ROWS} rows has {wanted} consumers, and its bits are those of any number"
            )
        if not why:
            try:
                sets[activations, consumers] = made, modelled_seconds(rings(made, trial(ctx)), ctx)
                continue
            except TileccError as found:
                failed = failed or found
                why = found.diagnostics[0].message
        refused.append((warps_of(made), why))
    if not sets:
        assert failed is not None
        raise failed
    best = min(cost for _, cost in sets.values())
    close = [key for key, (_, cost) in sets.items() if cost <= best * CLOSE]
    default = BASE if BASE in close else min(close, key=lambda k: (k[0] + k[1], sets[k][1]))
    seconds = {tuple(warps_of(g).items()): cost for g, cost in sets.values()}
    chosen = ctx.choose(
        "roles", ROLES_SUBJECT, [warps_of(g) for g, _ in sets.values()],
        default=warps_of(sets[default][0]), cost=lambda c: seconds[tuple(c.items())] * 1e6, unit="us",
        reason="within 2 % of the best modelled step: the base set, or else the fewest warps",
        refused=refused,
    )  # fmt: skip
    made, _ = sets[int(chosen["activations"]), int(chosen["consumer"])]
    threads = threads_of(made)
    ctx.decide(
        "roles", "registers", f"{launch_registers(ctx.target.registers_per_sm, threads)} for every thread",
        f"launch bounds of {threads} threads; no setmaxnreg: ptxas gives code that calls functions, as every"
        " wait with a watchdog does, one budget for all roles",
    )  # fmt: skip
    return made


def base_consumers(graph: TileGraph, ctx: PassContext) -> int:
    """Consumers of the program of 8 rows, for one of more rows; 0 for that one itself. A sliding layer adds
    the sums of the warps, so that its bits depend on how many there are."""
    if graph.max_rows == BASE_ROWS:
        return 0
    few = trial(ctx)
    few.max_rows = BASE_ROWS
    base = tile(dataclasses.replace(graph, max_rows=BASE_ROWS, buffers=()), few)
    return next(role.warps for role in roles(base, few).roles if role.name == "consumer")


def grid() -> Iterator[tuple[int, int]]:
    """(activation warps, consumer warps) of all sets that the templates can be emitted for."""
    for consumers in CONSUMERS:
        for activations in ACTIVATIONS:
            yield activations, consumers


def with_roles(graph: TileGraph, activations: int, consumers: int) -> TileGraph:
    """The graph with these roles, and attention dealt for them."""
    return dataclasses.replace(for_consumers(graph, consumers), roles=role_set(activations, consumers))


def warps_of(graph: TileGraph) -> Choice:
    """Warps by role."""
    return {role.name: role.warps for role in graph.roles}


def threads_of(graph: TileGraph) -> int:
    """Threads of a CTA."""
    return 32 * max(role.first_warp + role.warps for role in graph.roles)


def registers_missing(graph: TileGraph, ctx: PassContext) -> str:
    """Why the registers do not suffice, empty if they do."""
    threads = threads_of(graph)
    if threads > MAX_THREADS:
        return f"{threads} threads; a CTA may have {MAX_THREADS}"
    have = launch_registers(ctx.target.registers_per_sm, threads)
    consumers = next(role.warps for role in graph.roles if role.name == "consumer")
    need = OTHER_REGISTERS
    for op in graph.ops:
        if op.kind == "attention":
            dim, v_dim, window = (int(op.attrs[k]) for k in ("head_dim", "v_head_dim", "window"))
            held = fragment_registers(dim, v_dim, window, consumers)
            need = max(need, min(CONSUMER_REGISTERS + held, 255))
    return f"{threads} threads may have {have} registers each, the code takes {need}" if need > have else ""
