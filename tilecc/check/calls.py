"""How often each role calls each primitive in one row of the step, according to the protocols.

The names are those of the emulator's counts: `tests/check/test_protocols.py` compares the two.
"""

from __future__ import annotations

from collections import Counter

from tilecc.check.extents import Frame, Launch, walk
from tilecc.check.sync import Do, RowSync, SyncProgram

LANES = {"loader": 1}
"""Lanes of a warp that run its role's code and count a wait each; 32 where nothing is said."""

EXACT = ("mbar_wait", "mbar_arrive", "barrier", "counter_wait", "counter_signal")
"""Primitives whose calls the protocols give in number."""

TOUCHES = ("bulk_load", "lds", "sts", "stg", "ldg", "word_push", "word_poll")
"""Primitives of which the protocols say in which role of which op they are called at all."""


def calls(program: SyncProgram, launch: Launch, index: int) -> dict[str, Counter[str]]:
    """Calls of each role in row `index` of one step, summed over CTAs and warps."""
    row, op = program.rows[index], program.op(program.rows[index].op)
    number = program.ops.index(op)
    scripts = {s.role: s.body for s in op.scripts}
    found: dict[str, Counter[str]] = {}
    for role in program.roles:
        made = found.setdefault(role.name, Counter())
        for cta in range(launch.grid):
            dealt = launch.dealt(op, number, row.layer, cta)
            for warp in range(role.warps):
                f = Frame(op, row.layer, 0, cta, warp, role.warps, dealt)
                for do in walk(scripts.get(role.name, ()), f, launch):
                    _count(made, do, f, row, program, LANES.get(role.name, 32))
    return found


def _count(made: Counter[str], do: Do, f: Frame, row: RowSync, program: SyncProgram, lanes: int) -> None:
    verb = do.verb
    if verb in ("acquire", "take"):
        made["mbar_wait"] += lanes
    elif verb == "release":
        made["mbar_arrive"] += 1
    elif verb == "commit":
        ring = next(r for r in program.rings if r.name == do.ring)
        made["mbar_arrive"] += int(ring.commits > 1 or f.warp == 0)
    elif verb in ("inputs", "previous") or (verb == "idle" and not f.tasks):
        made["counter_wait"] += len(row.waits)  # by an elected lane
    elif verb == "signal":
        made["counter_signal"] += 1
    elif verb == "sync":
        made["barrier"] += 1
    elif verb == "copy":
        made["bulk_load"] += int(f.warp == 0)
    else:
        name = {
            "put": "sts", "use": "lds", "read": "ldg", "write": "stg", "push": "word_push",
            "poll": "word_poll", "poison": "stg",
        }.get(verb)  # fmt: skip
        if name is not None:
            made[name] += 1
