"""Program -> SyncProgram: the protocol of each op, as its `.cuh` file under templates/include carries it out.

tests/check/test_protocols.py compares every protocol with the primitives that the emulator counts per op
and role. Fences, the synchronisation of lanes within a warp, and what only the host reads (tokens, logits)
are not in it.
"""

from __future__ import annotations

from collections.abc import Callable

from tilecc.check.sync import (
    BarSync,
    BufferSync,
    Do,
    Loop,
    OpSync,
    RingSync,
    RoleSync,
    RowSync,
    Script,
    Statement,
    SyncProgram,
    WaitSync,
)
from tilecc.ir.attention import block_bytes, window_blocks
from tilecc.ir.program import OpClass, Program
from tilecc.ir.rows import row_tiles
from tilecc.ir.tile import FLAG_TURNS

READ_ONLY = "image"
"""The weight image: written by nobody, so accesses to it are left out."""

PER_LAYER = frozenset({"kv", "routes"})

PEER_BUFFERS = ("peer_terms", "peer_argmax")
PEER_SLOTS = 3
"""Buffers that the ranks push into and their slots, as the tile pass lays them out."""

NOT_CHECKED = frozenset({"counters", "state"})
"""Workspace that is no data between ops; `state` is split into `token` and `stop`."""

Scripts = tuple[Script, ...]


def lower(program: Program) -> SyncProgram:
    """The synchronisation of a verified Program."""
    warps = {role.name: role.warps for role in program.roles}
    slots = {ring.name: ring.slots for ring in program.rings}
    rings = [
        RingSync("weights", slots["weights"], "loader", ("consumer",), 1, warps["consumer"], 1),
        RingSync(
            "activations", slots["activations"], "activations", ("consumer",),
            warps["activations"], warps["consumer"], warps["activations"],
        ),
        RingSync(
            "exchange", slots["exchange"], "consumer", ("store",), warps["consumer"], warps["store"],
            warps["consumer"],
        ),
    ]  # fmt: skip
    if any(op.kind == "route" for op in program.classes):
        everyone = tuple(role.name for role in program.roles)
        rings.append(RingSync("routing", 1, "activations", everyone, 1, sum(warps.values()), 1))
    names = {region.name for region in program.workspace} - NOT_CHECKED | {"kv", "token", "stop"}
    ranks = max((int(op.constants.get("ranks", 1)) for op in program.classes), default=1)
    pushed = PEER_BUFFERS if ranks > 1 else ()
    rows = tuple(
        RowSync(
            row.op,
            row.layer,
            tuple(WaitSync(w.counter, w.ordinal) for w in row.waits),
            row.pushed,
            row.polled,
        )
        for row in program.rows
    )
    begin = (Loop("stop", (Do("ended"), Do("read", buffer="stop", word=True))),)
    return SyncProgram(
        program.name,
        tuple(RoleSync(role.name, role.warps) for role in program.roles),
        tuple(rings),
        (
            *(
                BufferSync(
                    name, name in PER_LAYER, FLAG_TURNS if program.turns(name) else 0, program.turns(name)
                )
                for name in sorted(names)
            ),
            *(BufferSync(name, slots=PEER_SLOTS) for name in pushed),
        ),
        tuple(_op(op, program) for op in program.classes),
        rows,
        bars=(
            BarSync("activations", warps["activations"]),
            BarSync("consumers", warps["consumer"]),
            BarSync("selecting", warps["activations"] + warps["consumer"]),
        ),
        begin=tuple(Script(role.name, begin) for role in program.roles),
        last=next((op.counter for op in program.classes if op.kind == "commit"), -1),
        ranks=ranks,
    )


def _op(op: OpClass, program: Program) -> OpSync:
    c = op.constants
    tasks, chunks = int(c["tile_tasks"]), 1
    if "tile_chunk" in c:
        splits = 1 if op.kind == "experts_down" else int(c["tile_splits"])
        blocks = -(-int(c["tile_blocks"]) // splits)
        chunks = -(-blocks // int(c["tile_chunk"]))
    shape = _shape(op, program)
    if op.kind == "route":
        tasks = 1
    elif op.kind == "experts_up":
        tasks = shape["groups"]
    made: Callable[[OpClass], Scripts] = {
        "attention": _window if int(c.get("window", 0)) else _split, "attention_merge": _vector,
        "reduce": _vector, "embed": _vector, "commit": _vector, "argmax_push": _vector, "route": _route,
    }.get(op.kind, _gemv)  # fmt: skip
    over = "experts" if op.kind == "experts_up" else ""
    return OpSync(
        op.name, op.counter, op.per_step, tasks, made(op), chunks=chunks, tasks_over=over, kind=op.kind,
        shape=shape, loc=op.loc,
    )  # fmt: skip


def _shape(op: OpClass, program: Program) -> dict[str, int]:
    """Sizes that the symbols of the op's scripts follow from."""
    c = op.constants
    warps = next(role.warps for role in program.roles if role.name == "consumer")
    shape = {"rotation": int(c["rotation"]), "max_rows": program.max_rows}
    if "tile_chunk" in c:
        shape |= {key: int(c[f"tile_{key}"]) for key in ("blocks", "chunk", "act_chunk", "slots", "splits")}
        shape["row_tiles"] = row_tiles(program.max_rows)
        shape["groups"] = -(-int(c["tile_tiles"]) // int(c["tile_group"]))
        per_task = -(-shape["blocks"] // shape["splits"])
        shape["held"] = -(-per_task // shape["act_chunk"])
        down = op.kind == "experts_down"
        shape["resident"] = int(not down and shape["held"] <= program.ring("activations").slots)
        if "experts" in c:
            shape["experts"] = int(c["experts"])
    elif op.kind == "attention":
        shape["kv_heads"] = int(c["kv_heads"])
        if int(c["window"]):
            turns, slots = int(c["tile_turns"]), program.ring("activations").slots
            shape |= {
                "window": int(c["window"]), "round": turns * warps,
                "max_early": min(turns * warps, slots - 1), "max_blocks": window_blocks(int(c["window"])),
            }  # fmt: skip
        else:
            shape |= {"splits": int(c["tile_splits"]), "chunk_blocks": int(c["tile_chunk_blocks"])}
            shape["task_rows"] = int(c["tile_task_rows"])
            block = block_bytes(int(c["head_dim"]), int(c["v_head_dim"]), str(c["kv"]))
            slot = program.ring("activations").slot_bytes
            shape["slot_blocks"] = min(shape["chunk_blocks"], slot // block)
    return shape


def _reads(op: OpClass) -> tuple[str, ...]:
    """Global buffers that the activation role (or, without one, the store role) reads, words aside."""
    c = op.constants
    if op.polls:
        return {"reduce": ("x",)}.get(op.kind, ())
    several = int(c.get("ranks", 1)) > 1
    return {
        "embed": ("token",),
        "reduce": ("peer_terms" if several else "partials", "x"),
        "commit": ("peer_argmax" if several else "argmax",),
        "argmax_push": ("argmax",),
        "attention": ("queries", "kv"),
        "attention_merge": ("attention_partials",),
        "route": ("router_logits",),
        "experts_down": ("expert_hidden",),
        "project": (str(c.get("input", "")),),
    }.get(op.kind, ("y", "sum_sq"))


def _writes(op: OpClass) -> tuple[str, ...]:
    if op.pushes:
        return ()
    split = int(op.constants.get("tile_splits", 1)) > 1
    partials = "peer_terms" if int(op.constants.get("ranks", 1)) > 1 else "partials"
    return {
        "embed": ("x", "y", "sum_sq"),
        "reduce": ("x", "y", "sum_sq"),
        "commit": ("token", "stop"),
        "qkv": ("queries", "kv"),
        "attention": ("attention_partials",) if split else ("attention",),
        "attention_merge": ("attention",),
        "project": (partials,),
        "router": ("router_logits",),
        "gate_up": ("hidden",),
        "experts_up": ("expert_hidden",),
        "experts_down": (partials,),
        "head": ("argmax",),
        "argmax_push": ("peer_argmax",),
    }[op.kind]


def _read(op: OpClass) -> tuple[Do, ...]:
    return tuple(Do("receive" if b in PEER_BUFFERS else "read", buffer=b) for b in _reads(op))


def _write(op: OpClass) -> tuple[Do, ...]:
    return tuple(Do("send" if b in PEER_BUFFERS else "write", buffer=b) for b in _writes(op))


def _vector(op: OpClass) -> Scripts:
    """Ops of the store warp alone (op_vector.cuh, the merge of op_attention.cuh)."""
    # Each word is taken by one lane, which poisons it again.
    words = (Do("poll", buffer=op.polls), Do("poison", buffer=op.polls)) if op.polls else ()
    body = (*words, *_read(op), *_write(op))
    return (Script("store", (Do("inputs"), Loop("tasks", body), *_signal(op))),)


def _signal(op: OpClass) -> tuple[Do, ...]:
    return (Do("signal"),) if op.counter >= 0 else ()


def _route(op: OpClass) -> Scripts:
    """op_route.cuh: activation and consumer warps select for a row each, activation warp 0 makes the list,
    everyone takes it; see `_gemv` for its release."""
    both = Do("sync", bar="selecting")
    select: tuple[Statement, ...] = (
        both,
        *((Do("poll", buffer=op.polls),) if op.polls else ()),
        *(Do("read", buffer=b) for b in _reads(op)),
        Do("put", "routing", area="warp:selected"),
        Loop("cta=0", (Do("write", buffer="routes"),)),
        both,
    )
    build = (Do("use", "routing", area="warp:selected"), Do("put", "routing"))
    return (
        Script(
            "activations",
            (
                Do("inputs"), Do("acquire", "routing"), *select, Loop("warp0", build),
                Do("commit", "routing"), Do("sync", bar="activations"),
            ),
        ),
        Script("consumer", (*select, Do("take", "routing"))),
        *(Script(role, (Do("take", "routing"),)) for role in ("loader", "store")),
    )  # fmt: skip


def _gemv(op: OpClass) -> Scripts:
    """op_gemv.cuh."""
    c = op.constants
    up, down = op.kind == "experts_up", op.kind == "experts_down"
    last = (Do("release", "routing"),) if down else ()
    listed = (Do("use", "routing"),)
    # The number of tasks is that of active experts; the chunks of a down projection go over the list.
    every, each = listed if up else (), listed if down else ()
    normed = c["source"] == "norm"
    weights = (
        Do("acquire", "weights"), Do("copy", "weights", READ_ONLY), Do("commit", "weights"),
    )  # fmt: skip
    fill = (
        Do("acquire", "activations"),
        Do("copy", "activations", _reads(op)[0]),
        Do("commit", "activations"),
    )
    consume: tuple[Statement, ...]
    if down:
        load: Statement = Loop("experts", (Loop("chunks", weights),))
        put: Statement = Loop("experts", (Loop("chunks", fill),))
        both = (Do("take", "activations"), _TAKE_WEIGHTS, _USE, _USE_WEIGHTS, _RELEASE, _RELEASE_WEIGHTS)
        consume = (Loop("experts", (Loop("chunks", both),)),)
    else:
        # Of an op whose activations are resident the first task takes them, and the last one gives them back.
        load = Loop("held", (Loop("pieces", weights),))
        put = Loop("fresh", (Loop("held", fill),))
        use = Do("use", "activations", ahead="slot")
        consume = (
            Loop(
                "held",
                (
                    Loop("fresh", (Do("take", "activations", ahead="slot"),)),
                    Loop("pieces", (_TAKE_WEIGHTS, use, _USE_WEIGHTS, _RELEASE_WEIGHTS)),
                    Loop("closing", (Do("release", "activations", ahead="slot"),)),
                ),
            ),
            Loop("closing", (Loop("held", (Do("skip", "activations"),)),)),
        )
    exchange = Loop("tiles", (Do("acquire", "exchange"), Do("put", "exchange"), Do("commit", "exchange")))
    writes = _write(op)
    if op.pushes:
        # What every CTA reads, nobody can take back but who pushed it.
        own = (Do("poison", buffer=op.pushes),) if op.kind == "router" else ()
        writes = (*own, Do("push", buffer=op.pushes))
    # The head folds its tiles and leaves one result per CTA, with or without tasks.
    tile, end = ((), writes) if op.kind == "head" else (writes, ())
    rows = listed if up else ()
    waits = (Do("inputs"), Do("read", buffer="sum_sq")) if normed else (Do("idle"),)
    return (
        Script("loader", (*every, Loop("tasks", (*each, load)), *last)),
        Script(
            "activations", (*every, Loop("any", (Do("inputs"),)), Loop("tasks", (*each, put)), *last)
        ),
        Script("consumer", (*every, Loop("tasks", (*each, *consume, exchange)), *last)),
        Script(
            "store",
            (
                *every,
                *waits,
                Loop(
                    "tasks",
                    (
                        Loop(
                            "tiles",
                            (
                                Do("take", "exchange"), Do("use", "exchange"), *rows, *tile,
                                Do("release", "exchange"),
                            ),
                        ),
                    ),
                ),
                *end,
                *last,
                *_signal(op),
            ),
        ),
    )  # fmt: skip


def _fill(buffer: str, older: bool = False) -> tuple[Do, ...]:
    """`fill_slot` of attn_common.cuh."""
    return (
        Do("acquire", "activations"),
        Do("copy", "activations", buffer, older=older),
        Do("commit", "activations"),
    )


_TAKE = Do("take", "activations")
_USE = Do("use", "activations")
_RELEASE = Do("release", "activations")
_TAKE_WEIGHTS = Do("take", "weights")
_USE_WEIGHTS = Do("use", "weights")
_RELEASE_WEIGHTS = Do("release", "weights")


def _done() -> Script:
    """The store warp of both forms of attention: it hands over what the consumers wrote."""
    hand_over = (Do("take", "exchange"), Do("release", "exchange"))
    return Script("store", (Do("idle"), Loop("tasks", hand_over), Do("signal")))


def _window(op: OpClass) -> Scripts:
    """op_attention.cuh: keys of earlier steps come before the op's inputs, the slot of the queries is taken
    out of turn, and the consumers share scores, maxima and sums in the exchange slot."""
    scores, maxima, sums = "block:scores", "warp:maxima", "warp:sums"
    fill: tuple[Statement, ...] = (
        Loop("early", _fill("kv", older=True)),
        Loop("first", (Do("inputs"),)),
        *_fill("queries"),
        Loop("rounds", (Loop("late", _fill("kv")), Loop("span", _fill("kv")))),
    )

    def key(over: str) -> Statement:
        score = Loop("turn", (_USE, Do("put", "exchange", area=scores)))
        return Loop(over, (_TAKE, score, _RELEASE))

    values: tuple[Statement, ...] = (_TAKE, Do("use", "exchange", area=scores), _USE, _RELEASE)
    turn: tuple[Statement, ...] = (
        key("lead"),
        Loop("opening", (Do("skip", "activations"),)),
        key("late"),
        Do("put", "exchange", area=maxima),
        Do("sync", bar="consumers"),
        Do("use", "exchange", area=maxima),
        # Each warp turns its own scores into probabilities, in place.
        Loop(
            "span",
            (Loop("turn", (Do("use", "exchange", area=scores), Do("put", "exchange", area=scores))),),
        ),
        Do("put", "exchange", area=sums),
        Do("sync", bar="consumers"),
        Do("use", "exchange", area=sums),
        Loop("span", values),
    )
    queries = tuple(Do(verb, "activations", ahead="early") for verb in ("take", "use", "release"))
    return (
        Script("activations", (Loop("any", (Do("previous"),)), Loop("tasks", fill))),
        Script(
            "consumer",
            (
                Loop(
                    "tasks",
                    (
                        *queries, Do("acquire", "exchange"), Loop("rounds", turn),
                        *(Do("write", buffer=b) for b in _writes(op)), Do("commit", "exchange"),
                    ),
                ),
            ),
        ),
        _done(),
    )  # fmt: skip


def _split(op: OpClass) -> Scripts:
    """op_attention_split.cuh: every consumer warp publishes the partial of its own row. `blocks` are those of
    one activation slot each."""
    take = (_TAKE, _USE, _RELEASE)
    return (
        Script(
            "activations",
            (
                Loop("any", (Do("inputs"),)),
                Loop("tasks", (Loop("rows", _fill("queries")), Loop("blocks", _fill("kv")))),
            ),
        ),
        Script(
            "consumer",
            (
                Loop(
                    "tasks",
                    (
                        Loop("rows", take), Loop("blocks", take),
                        *(Do("write", buffer=b) for b in _writes(op)),
                        Do("acquire", "exchange"), Do("commit", "exchange"),
                    ),
                ),
            ),
        ),
        _done(),
    )  # fmt: skip
