"""Program -> SyncProgram: the protocol of each op, as its `.cuh` file under templates/include carries it out.

Three ops are modelled in a simpler form than they run; the rest of them is left to the emulator's detectors.
Attention: without the keys that its activation warps load before the queries are ready, under the waits of
the step before; its results are written by the store warp, not by the consumers. Routing: by the activation
warps alone, without the consumers that help them between two named barriers.
"""

from __future__ import annotations

from collections.abc import Callable

from tilecc.check.sync import (
    BufferSync,
    Do,
    Loop,
    OpSync,
    RingSync,
    RoleSync,
    RowSync,
    Script,
    SyncProgram,
    WaitSync,
)
from tilecc.ir.program import OpClass, Program

READ_ONLY = "image"
"""The weight image: written by nobody, so accesses to it are left out."""

PER_LAYER = frozenset({"kv"})

NOT_CHECKED = frozenset({"counters", "state", "routes"})
"""Workspace that is no data between ops; `routes` is a log that CTA 0 alone writes, in its program order."""

Scripts = tuple[Script, ...]


def lower(program: Program) -> SyncProgram:
    """The synchronisation of a verified Program."""
    warps = {role.name: role.warps for role in program.roles}
    slots = {ring.name: ring.slots for ring in program.rings}
    rings = [
        RingSync("weights", slots["weights"], "loader", ("consumer",), 1, warps["consumer"]),
        RingSync(
            "activations", slots["activations"], "activations", ("consumer",),
            warps["activations"], warps["consumer"],
        ),
        RingSync("exchange", slots["exchange"], "consumer", ("store",), warps["consumer"], warps["store"]),
    ]  # fmt: skip
    if any(op.kind == "route" for op in program.classes):
        everyone = tuple(role.name for role in program.roles)
        rings.append(RingSync("routing", 1, "activations", everyone, 1, sum(warps.values())))
    names = {region.name for region in program.workspace} - NOT_CHECKED | {"kv", "token"}
    ops = tuple(_op(op) for op in program.classes)
    rows = tuple(
        RowSync(row.op, row.layer, tuple(WaitSync(w.counter, w.ordinal) for w in row.waits))
        for row in program.rows
    )
    return SyncProgram(
        program.name,
        tuple(RoleSync(role.name, role.warps) for role in program.roles),
        tuple(rings),
        tuple(BufferSync(name, name in PER_LAYER) for name in sorted(names)),
        ops,
        rows,
    )


def _op(op: OpClass) -> OpSync:
    c = op.constants
    tasks, chunks = int(c["tile_tasks"]), 1
    if "tile_chunk" in c:
        splits = 1 if op.kind == "experts_down" else int(c["tile_splits"])
        blocks = -(-int(c["tile_blocks"]) // splits)
        chunks = -(-blocks // int(c["tile_chunk"]))
    if op.kind == "route":
        tasks = 1
    made: Callable[[OpClass], Scripts] = {
        "attention": _attention, "attention_merge": _vector, "reduce": _vector, "embed": _vector,
        "commit": _vector, "route": _route,
    }.get(op.kind, _gemv)  # fmt: skip
    over = "experts" if op.kind == "experts_up" else ""
    return OpSync(
        op.name, op.counter, op.per_step, tasks, made(op), chunks=chunks, tasks_over=over, loc=op.loc
    )


def _reads(op: OpClass) -> tuple[str, ...]:
    """Global buffers that the activation role (or, without one, the store role) reads."""
    c = op.constants
    return {
        "embed": ("token",),
        "reduce": ("partials", "x"),
        "commit": ("argmax",),
        "attention": ("queries", "kv"),
        "attention_merge": ("attention_partials",),
        "route": ("router_logits",),
        "experts_down": ("expert_hidden",),
        "project": (str(c.get("input", "")),),
    }.get(op.kind, ("x", "sum_sq"))


def _writes(op: OpClass) -> tuple[str, ...]:
    split = int(op.constants.get("tile_splits", 1)) > 1
    return {
        "embed": ("x", "sum_sq"),
        "reduce": ("x", "sum_sq"),
        "commit": ("token",),
        "qkv": ("queries", "kv"),
        "attention": ("attention_partials",) if split else ("attention",),
        "attention_merge": ("attention",),
        "project": ("partials",),
        "router": ("router_logits",),
        "gate_up": ("hidden",),
        "experts_up": ("expert_hidden",),
        "experts_down": ("partials",),
        "head": ("argmax",),
    }[op.kind]


def _vector(op: OpClass) -> Scripts:
    """Ops of the store warp alone (op_vector.cuh, the merge of op_attention.cuh)."""
    body = (*(Do("read", buffer=b) for b in _reads(op)), *(Do("write", buffer=b) for b in _writes(op)))
    return (Script("store", (Do("inputs"), Loop("tasks", body), Do("signal"))),)


def _route(op: OpClass) -> Scripts:
    """op_route.cuh: the activation warps compute the record, everyone takes it; see `_gemv` for its
    release."""
    fill = (
        *(Do("read", buffer=b) for b in _reads(op)),
        Do("put", "routing"),
        Do("sync"),
        Do("commit", "routing"),
        Do("sync"),
    )
    return (
        Script("activations", (Do("inputs"), Do("acquire", "routing"), *fill)),
        *(Script(role, (Do("take", "routing"),)) for role in ("loader", "store", "consumer")),
    )


def _gemv(op: OpClass) -> Scripts:
    """op_gemv.cuh."""
    copied = op.constants["source"] != "norm"
    routed = op.kind in ("experts_up", "experts_down")
    last = (Do("release", "routing"),) if op.kind == "experts_down" else ()
    use_route = (Do("use", "routing"),) if routed else ()
    over = "experts" if op.kind == "experts_down" else ""

    def per_chunk(*body: Do) -> Loop:
        inner = Loop("chunks", body)
        return Loop("tasks", (Loop(over, (inner,)) if over else inner,))

    if copied:
        fill: tuple[Do, ...] = (Do("copy", "activations", _reads(op)[0]),)
    else:
        fill = (Do("read", buffer="x"), Do("read", buffer="sum_sq"), Do("put", "activations"))
    consume = Loop(
        "chunks",
        (
            Do("take", "activations"), Do("take", "weights"), Do("use", "activations"), Do("use", "weights"),
            Do("release", "activations"), Do("release", "weights"),
        ),
    )  # fmt: skip
    exchange = (Do("acquire", "exchange"), Do("put", "exchange"), Do("commit", "exchange"))
    writes = tuple(Do("write", buffer=b) for b in _writes(op))
    # The head folds its tiles and leaves one result per CTA, with or without tasks.
    each, end = ((), writes) if op.kind == "head" else (writes, ())
    return (
        Script(
            "loader",
            (
                *use_route,
                per_chunk(
                    Do("acquire", "weights"), Do("copy", "weights", READ_ONLY), Do("commit", "weights")
                ),
                *last,
            ),
        ),
        Script(
            "activations",
            (
                *use_route,
                Loop("any", (Do("inputs"),)),
                per_chunk(Do("acquire", "activations"), *fill, Do("commit", "activations")),
                *last,
            ),
        ),
        Script(
            "consumer",
            (*use_route, Loop("tasks", ((Loop(over, (consume,)) if over else consume), *exchange)), *last),
        ),
        Script(
            "store",
            (
                *use_route,
                Do("idle"),
                Loop(
                    "tasks", (Do("take", "exchange"), Do("use", "exchange"), *each, Do("release", "exchange"))
                ),
                *end,
                *last,
                Do("signal"),
            ),
        ),
    )


def _attention(op: OpClass) -> Scripts:
    """op_attention.cuh."""
    fill = (Do("acquire", "activations"),)
    done = (Do("commit", "activations"),)
    take = (Do("take", "activations"), Do("use", "activations"), Do("release", "activations"))
    exchange = (Do("acquire", "exchange"), Do("put", "exchange"), Do("commit", "exchange"))
    return (
        Script(
            "activations",
            (
                Loop("any", (Do("inputs"),)),
                Loop(
                    "tasks",
                    (
                        *fill, Do("copy", "activations", "queries"), *done,
                        Loop("blocks", (*fill, Do("copy", "activations", "kv"), *done)),
                    ),
                ),
            ),
        ),
        Script("consumer", (Loop("tasks", (*take, Loop("blocks", take), *exchange)),)),
        Script(
            "store",
            (
                Do("idle"),
                Loop(
                    "tasks",
                    (
                        Do("take", "exchange"), Do("use", "exchange"),
                        *(Do("write", buffer=b) for b in _writes(op)), Do("release", "exchange"),
                    ),
                ),
                Do("signal"),
            ),
        ),
    )  # fmt: skip
