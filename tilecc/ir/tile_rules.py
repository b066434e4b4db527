"""Rules of the TileGraph verifier, for a graph whose fields are all filled (after `rings`).

The synchronisation rules are stated here anew, on happens-before sets, and share no code with the pass that
derives the hand-offs. Two steps are laid out one after the other; op i of the second step has index count +
i.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from tilecc.diag import Diagnostic
from tilecc.diag.model import nearest
from tilecc.ir.attention import exchange_bytes, key_bytes, query_bytes, value_bytes
from tilecc.ir.rows import BASE_ROWS, ROW_COUNTS, act_block_bytes
from tilecc.ir.tile import (
    FLAG_TURNS,
    STORE_OPS,
    Access,
    HandOffKind,
    RingSpec,
    RoleSpec,
    Space,
    TileGraph,
    TileOp,
)
from tilecc.ir.verify import Rule, violation
from tilecc.weights.layout import BLOCK_BYTES

MAX_THREADS = 1024
ROLES = ("loader", "store", "activations", "consumer")
OP_KINDS = (
    "embed", "qkv", "attention", "attention_merge", "project", "reduce", "router", "route", "gate_up",
    "experts_up", "experts_down", "head", "argmax_push", "commit",
)  # fmt: skip
RINGS = ("weights", "activations", "exchange")
RING_ALIGN = 128
FRAGMENT_BYTES = 512
"""One m16n8 float32 accumulator of a warp, or one m16k16 bf16 operand."""

Check = Callable[[TileGraph], Iterator[Diagnostic]]
_CHECKS: list[Rule[TileGraph]] = []


def _rule(doc: str) -> Callable[[Check], Check]:
    """Register a check under its function name with dashes."""

    def register(check: Check) -> Check:
        _CHECKS.append(Rule(check.__name__.replace("_", "-"), doc, check))
        return check

    return register


# ------------------------------------------------------------------------------------------- names and boxes


@_rule("ops, weights, buffers, roles and rings have names of their own")
def unique_names(graph: TileGraph) -> Iterator[Diagnostic]:
    for what, names in (
        ("ops", [o.name for o in graph.ops]),
        ("weights", [w.name for w in graph.weights]),
        ("buffers", [b.name for b in graph.buffers]),
        ("roles", [r.name for r in graph.roles]),
        ("rings", [r.name for r in graph.rings]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield violation("unique-names", f"{count} {what} are named `{name}`")


@_rule("layers come in ascending order, each in one piece; ops without a layer stand before or after them")
def layers_in_order(graph: TileGraph) -> Iterator[Diagnostic]:
    inside = [i for i, op in enumerate(graph.ops) if op.layer >= 0]
    if not inside:
        return
    previous = -1
    for op in graph.ops[inside[0] : inside[-1] + 1]:
        if op.layer < previous:
            yield violation("layers-in-order", f"`{op.name}` stands after ops of layer {previous}", op.loc)
        if op.layer >= graph.layers:
            yield violation("layers-in-order", f"`{op.name}`: the graph has {graph.layers} layers", op.loc)
        previous = max(previous, op.layer)


@_rule("every op is of a known kind")
def known_kinds(graph: TileGraph) -> Iterator[Diagnostic]:
    for op in graph.ops:
        if op.kind not in OP_KINDS:
            help = nearest(op.kind, OP_KINDS)
            yield violation("known-kinds", f"`{op.name}`: there is no kind of op `{op.kind}`", op.loc, help)


@_rule("every weight that an op names is in the image")
def weights_exist(graph: TileGraph) -> Iterator[Diagnostic]:
    known = {w.name for w in graph.weights}
    for op in graph.ops:
        for use, name in op.weights.items():
            if name not in known:
                yield violation(
                    "weights-exist", f"`{op.name}` uses `{name}` as {use}; not in the image", op.loc
                )


@_rule("every access names a buffer and lies inside it")
def boxes_inside(graph: TileGraph) -> Iterator[Diagnostic]:
    shapes = {b.name: b.shape for b in graph.buffers}
    for op in graph.ops:
        for access in (*op.reads, *op.writes):
            shape = shapes.get(access.buffer)
            if shape is None:
                yield violation("boxes-inside", f"`{op.name}` accesses no buffer: `{access.buffer}`", op.loc)
            elif len(shape) != len(access.box):
                text = f"`{op.name}` has a box of rank {len(access.box)} in `{access.buffer}` {list(shape)}"
                yield violation("boxes-inside", text, op.loc)
            elif not all(0 <= lo < hi <= n for (lo, hi), n in zip(access.box, shape, strict=True)):
                box = [list(b) for b in access.box]
                text = f"box {box} of `{op.name}` is not inside `{access.buffer}` {list(shape)}"
                yield violation("boxes-inside", text, op.loc)


@_rule("a buffer that is read is written by some op, or is a KV cache")
def reads_have_writers(graph: TileGraph) -> Iterator[Diagnostic]:
    written = {a.buffer for op in graph.ops for a in op.writes}
    kv = {b.name for b in graph.buffers if b.space is Space.KV}
    for op in graph.ops:
        for access in op.reads:
            if access.buffer not in written | kv:
                text = f"`{op.name}` reads `{access.buffer}`, which no op writes"
                yield violation("reads-have-writers", text, op.loc)


@_rule("every op has tasks; only the routing, which each CTA runs for itself, has none to deal")
def tasks_positive(graph: TileGraph) -> Iterator[Diagnostic]:
    for op in graph.ops:
        tasks = op.tiles.get("tasks", -1)
        local = bool(op.writes) and _signals_in_cta(graph, op)
        if tasks <= 0 and not (local and tasks == 0):
            yield violation("tasks-positive", f"`{op.name}` has {tasks} tasks", op.loc)
        if op.rotation < 0:
            yield violation("tasks-positive", f"`{op.name}` has rotation {op.rotation}", op.loc)


def _signals_in_cta(graph: TileGraph, op: TileOp) -> bool:
    """Whether an op's result lives in the shared memory of each CTA: then it has no counter."""
    local = {b.name for b in graph.buffers if b.space is Space.CTA}
    return any(a.buffer in local for a in op.writes)


# ---------------------------------------------------------------------------------------------- hand-offs


@_rule("a hand-off names another op, which stands before it unless it is one of the step before")
def hand_offs_point_back(graph: TileGraph) -> Iterator[Diagnostic]:
    place = {op.name: i for i, op in enumerate(graph.ops)}
    for i, op in enumerate(graph.ops):
        for h in op.hand_offs:
            if h.source not in place:
                text = f"`{op.name}` waits for `{h.source}`, which does not exist"
                yield violation("hand-offs-point-back", text, op.loc)
            elif not h.previous_step and place[h.source] >= i:
                text = f"`{op.name}` waits for `{h.source}`, which does not stand before it"
                yield violation("hand-offs-point-back", text, op.loc)
        for (source, previous), n in Counter((h.source, h.previous_step) for h in op.hand_offs).items():
            if n > 1:
                where = " of the step before" if previous else ""
                text = f"`{op.name}` waits {n} times for `{source}`{where}"
                yield violation("hand-offs-point-back", text, op.loc)


@_rule("an mbarrier protects shared memory of the CTA, a counter is that of an op that signals one")
def hand_off_kinds(graph: TileGraph) -> Iterator[Diagnostic]:
    spaces = {b.name: b.space for b in graph.buffers}
    words = {b.name for b in graph.buffers if b.word}
    ops = {op.name: op for op in graph.ops}
    for op in graph.ops:
        for h in op.hand_offs:
            unknown = [b for b in h.buffers if b not in spaces]
            if unknown or not h.buffers:
                text = f"hand-off `{h.source}` -> `{op.name}` is over {unknown or 'nothing'}"
                yield violation("hand-off-kinds", text, op.loc)
                continue
            far = [b for b in h.buffers if spaces[b] is not Space.CTA]
            if h.kind is HandOffKind.MBARRIER and far:
                text = f"`{h.source}` -> `{op.name}`: an mbarrier does not order `{far[0]}` between CTAs"
                yield violation("hand-off-kinds", text, op.loc)
            pushed = [b for b in h.buffers if spaces[b] is Space.PEER]
            if (h.kind is HandOffKind.PEER_FLAG) != (len(pushed) == len(h.buffers)):
                text = f"`{h.source}` -> `{op.name}`: a peer flag orders pushed buffers, nothing else does"
                yield violation("hand-off-kinds", text, op.loc)
            plain = [b for b in h.buffers if b not in words]
            if h.kind is HandOffKind.FLAG and plain:
                text = f"`{h.source}` -> `{op.name}`: the words of `{plain[0]}` are no flags"
                yield violation("hand-off-kinds", text, op.loc)
            source = ops.get(h.source)
            if h.kind is HandOffKind.COUNTER and source is not None and _signals_in_cta(graph, source):
                text = f"`{op.name}` waits for a counter of `{h.source}`, which signals only inside the CTA"
                yield violation("hand-off-kinds", text, op.loc)


class Order:
    """Happens-before of two steps, as bit sets of op indices.

    `before[i]`: ops whose part on the same CTA is done when i starts. `everywhere[i]`: ops that are done on
    all CTAs. A counter waits for all CTAs, each of which arrives when it is done with the op and all before
    it; an mbarrier waits for one's own; what was done everywhere stays so. `stored`: what the store warps
    know, which go through all ops and carry out some alone.
    """

    def __init__(self, graph: TileGraph) -> None:
        count = len(graph.ops)
        place = {op.name: i for i, op in enumerate(graph.ops)}
        self.before: list[int] = []
        self.everywhere: list[int] = []
        stored = 0
        for index in range(2 * count):
            step, number = divmod(index, count)
            local = far = stored if graph.ops[number].kind in STORE_OPS else 0
            for h in graph.ops[number].hand_offs:
                source = place.get(h.source, -1)
                if h.kind in (HandOffKind.PEER_FLAG, HandOffKind.FLAG):
                    continue  # orders the words alone, see peer-exchanges and flag-turns
                at = source + (step - h.previous_step) * count
                if source < 0 or not 0 <= at < index:
                    continue  # of the step before the first, or reported by hand-offs-point-back
                local |= self.before[at] | 1 << at
                if h.kind is HandOffKind.COUNTER:
                    far |= (1 << at + 1) - 1
                    local |= far
                else:
                    far |= self.everywhere[at]
            self.before.append(local)
            self.everywhere.append(far)
            stored |= far


@_rule("two accesses of one element, one of them a write, are ordered by hand-offs, also across steps")
def conflicts_ordered(graph: TileGraph) -> Iterator[Diagnostic]:
    count = len(graph.ops)
    spaces = {b.name: b.space for b in graph.buffers}
    words = {b.name for b in graph.buffers if b.word}
    order = Order(graph)
    readers: dict[str, int] = {}
    writers: dict[str, int] = {}
    for index in range(2 * count):
        op = graph.ops[index % count]
        written = {a.buffer for a in op.writes}
        for buffer in sorted({a.buffer for a in (*op.reads, *op.writes)} if index >= count else ()):
            if spaces.get(buffer) is Space.PEER or buffer in words:
                continue  # see peer-exchanges and flag-turns
            local = spaces.get(buffer) is Space.CTA
            known = (order.before if local else order.everywhere)[index]
            others = writers.get(buffer, 0) | (readers.get(buffer, 0) if buffer in written else 0)
            for at in _bits(others & ~known):
                other = graph.ops[at % count]
                if at != index and _conflict(op, other, buffer):
                    when = " of the step before" if at < count else ""
                    text = f"`{op.name}` and `{other.name}`{when} both use `{buffer}`, nothing orders them"
                    yield violation("conflicts-ordered", text, op.loc)
        for accesses, table in ((op.reads, readers), (op.writes, writers)):
            for buffer in {a.buffer for a in accesses}:
                table[buffer] = table.get(buffer, 0) | 1 << index


@_rule("pushes and reads of a peer buffer take turns over 3 slots; each read waits for the push before it")
def peer_exchanges(graph: TileGraph) -> Iterator[Diagnostic]:
    ranks = graph.ranks
    for buffer in (b for b in graph.buffers if b.space is Space.PEER):
        if buffer.slots < 3 or ranks < 2:
            text = f"`{buffer.name}` has {buffer.slots} slots for {ranks} ranks; pushes need 3 and 2"
            yield violation("peer-exchanges", text)
        pushed: TileOp | None = None
        for op in graph.ops:
            if buffer.name in {a.buffer for a in op.writes}:
                if pushed is not None:
                    text = f"`{op.name}` pushes `{buffer.name}` before what `{pushed.name}` pushed is read"
                    yield violation("peer-exchanges", text, op.loc)
                pushed = op
            if buffer.name in {a.buffer for a in op.reads}:
                sources = {h.source for h in op.hand_offs if h.kind is HandOffKind.PEER_FLAG}
                if pushed is None or pushed.name not in sources:
                    text = f"`{op.name}` reads `{buffer.name}` without waiting for the push before it"
                    yield violation("peer-exchanges", text, op.loc)
                pushed = None
        if pushed is not None:
            text = f"nothing reads what `{pushed.name}` pushes into `{buffer.name}`"
            yield violation("peer-exchanges", text, pushed.loc)


@_rule("words that are flags are pushed and polled in turn; a turn starts when all is done with the last one")
def flag_turns(graph: TileGraph) -> Iterator[Diagnostic]:
    count = len(graph.ops)
    everywhere = Order(graph).everywhere
    for buffer in (b for b in graph.buffers if b.word):
        if buffer.space is not Space.WORKSPACE or buffer.slots != FLAG_TURNS or buffer.word not in (4, 8):
            text = f"`{buffer.name}` has {buffer.slots} slots of words of {buffer.word} B, not 3 of 4 or 8"
            yield violation("flag-turns", f"{text} in the workspace")
        pushed: list[int] = []
        polled: list[int] = []
        for index in range(2 * count):
            op = graph.ops[index % count]
            if buffer.name in {a.buffer for a in op.reads}:
                flags = {h.source for h in op.hand_offs if h.kind is HandOffKind.FLAG}
                if len(pushed) != len(polled) + 1 or graph.ops[pushed[-1] % count].name not in flags:
                    text = f"`{op.name}` polls `{buffer.name}` without being handed what was just pushed"
                    yield violation("flag-turns", text, op.loc)
                    break
                polled.append(index)
            if buffer.name in {a.buffer for a in op.writes}:
                if len(pushed) != len(polled):
                    other = graph.ops[pushed[-1] % count].name
                    text = f"`{op.name}` pushes `{buffer.name}` before what `{other}` pushed is polled"
                    yield violation("flag-turns", text, op.loc)
                    break
                pushed.append(index)
        for n in range(1, min(len(pushed), len(polled))):
            for at, past, what in (
                (pushed[n], pushed[n - 1], "pushes"),
                (pushed[n], polled[n - 1], "pushes"),
                (polled[n], pushed[n - 1], "polls"),
                (polled[n], polled[n - 1], "polls"),
            ):
                if at >= count and not everywhere[at] >> past & 1:
                    op, last = graph.ops[at % count], graph.ops[past % count]
                    text = f"`{op.name}` {what} `{buffer.name}`, and nothing orders it after `{last.name}`"
                    yield violation("flag-turns", f"{text} of the turn before", op.loc)


@_rule("an op of the next layer or step is ordered after the same op before it: a counter counts arrivals")
def instances_ordered(graph: TileGraph) -> Iterator[Diagnostic]:
    count = len(graph.ops)
    everywhere = Order(graph).everywhere
    last: dict[str, int] = {}
    for index in range(2 * count):
        op = graph.ops[index % count]
        previous = last.get(op.label)
        if previous is not None and not everywhere[index] >> previous & 1:
            other = graph.ops[previous % count]
            when = " of the step before" if previous < count <= index else ""
            text = f"nothing orders `{op.name}` after `{other.name}`{when}, whose arrivals share its counter"
            yield violation("instances-ordered", text, op.loc)
        last[op.label] = index


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _conflict(a: TileOp, b: TileOp, buffer: str) -> bool:
    """Whether the ops have overlapping boxes of the buffer, one of them written."""
    for mine, writes in _accesses(a, buffer):
        for other, wrote in _accesses(b, buffer):
            if (writes or wrote) and _overlap(mine, other):
                return True
    return False


def _accesses(op: TileOp, buffer: str) -> list[tuple[Access, bool]]:
    found = [(a, False) for a in op.reads if a.buffer == buffer]
    return found + [(a, True) for a in op.writes if a.buffer == buffer]


def _overlap(a: Access, b: Access) -> bool:
    if len(a.box) != len(b.box):
        return True  # reported by boxes-inside
    return all(max(p[0], q[0]) < min(p[1], q[1]) for p, q in zip(a.box, b.box, strict=True))


# -------------------------------------------------------------------------------------------- CTA machine


def launch_registers(registers_per_sm: int, threads: int) -> int:
    """Registers per thread that the launch bounds give a CTA alone on its SM: ptxas counts warps by fours
    and hands out registers by eights."""
    return min(255, registers_per_sm // (-(-threads // 128) * 128) // 8 * 8)


def role_problems(roles: tuple[RoleSpec, ...]) -> Iterator[str]:
    """What is wrong with the warp roles of a CTA; shared with the Program's rules."""
    names = [r.name for r in roles]
    for name in ROLES:
        if name not in names:
            yield f"there is no role `{name}`"
    owner: dict[int, str] = {}
    for role in roles:
        if role.warps <= 0 or role.first_warp < 0:
            yield f"role `{role.name}` has {role.warps} warps from warp {role.first_warp}"
        for warp in range(role.first_warp, role.first_warp + role.warps):
            if warp in owner:
                yield f"warp {warp} is in `{owner[warp]}` and in `{role.name}`"
            owner[warp] = role.name
    threads = 32 * (max(owner, default=-1) + 1)
    if threads > MAX_THREADS:
        yield f"{threads} threads are more than a CTA may have ({MAX_THREADS})"


def ring_problems(rings: tuple[RingSpec, ...]) -> Iterator[str]:
    """What is wrong with the rings by themselves; shared with the Program's rules."""
    names = [r.name for r in rings]
    for name in RINGS:
        if name not in names:
            yield f"there is no ring `{name}`"
    for ring in rings:
        if ring.slots < 2:
            yield f"ring `{ring.name}` has {ring.slots} slots; one is filled while another is read"
        if ring.slot_bytes <= 0 or ring.slot_bytes % RING_ALIGN:
            yield f"slots of `{ring.name}` have {ring.slot_bytes} B, no multiple of {RING_ALIGN}"


@_rule("a step has a legal number of rows, and chunks of more than 8 rows deal blocks to warps alike")
def rows_and_chunks(graph: TileGraph) -> Iterator[Diagnostic]:
    if graph.max_rows not in ROW_COUNTS:
        yield violation("rows-and-chunks", f"{graph.max_rows} rows are none of {list(ROW_COUNTS)}")
    for op in graph.ops:
        if "chunk" not in op.tiles:
            continue
        chunk, warps = op.tiles["chunk"], op.tiles["warps_k"]
        blocks = op.tiles["blocks"]
        if op.kind != "experts_down":
            blocks = -(-blocks // op.tiles["splits"])
        if graph.max_rows > BASE_ROWS and chunk < blocks and chunk % warps and warps % chunk:
            text = f"`{op.name}` has chunks of {chunk} K blocks for {warps} warps"
            yield violation("rows-and-chunks", text, op.loc)


@_rule("warp roles do not overlap, none is missing, and a CTA has at most 1024 threads")
def roles_disjoint(graph: TileGraph) -> Iterator[Diagnostic]:
    for problem in role_problems(graph.roles):
        yield violation("roles-disjoint", problem)


@_rule("ring slots are aligned and as large as what each op puts there")
def rings_large_enough(graph: TileGraph) -> Iterator[Diagnostic]:
    for problem in ring_problems(graph.rings):
        yield violation("rings-large-enough", problem)
    size = {r.name: r.slot_bytes for r in graph.rings}
    consumers = sum(r.warps for r in graph.roles if r.name == "consumer")
    for op in graph.ops:
        for ring, need in slot_needs(graph, op, consumers):
            if ring in size and need > size[ring]:
                text = f"`{op.name}` puts {need} B into a slot of `{ring}`, which holds {size[ring]} B"
                yield violation("rings-large-enough", text, op.loc)


def slot_needs(graph: TileGraph, op: TileOp, consumers: int) -> Iterator[tuple[str, int]]:
    """(ring, bytes) that an op puts into one slot: the static_asserts of op_gemv.cuh and op_attention.cuh."""
    if "chunk" in op.tiles:
        group, chunk = op.tiles["group"], op.tiles["slots"] * op.tiles["chunk"]
        matrix = next((w for w in graph.weights if w.name == op.weights.get("matrix")), None)
        if matrix is not None and matrix.format in BLOCK_BYTES:
            yield "weights", group * chunk * BLOCK_BYTES[matrix.format]
        yield "activations", op.tiles["slots"] * op.tiles["act_chunk"] * act_block_bytes(graph.max_rows)
        yield "exchange", op.tiles["warps_k"] * group * FRAGMENT_BYTES
    if op.kind == "attention":
        dim, v_dim, kv = int(op.attrs["head_dim"]), int(op.attrs["v_head_dim"]), str(op.attrs["kv"])
        yield "activations", max(query_bytes(dim), key_bytes(dim, kv), value_bytes(v_dim, kv))
        yield "exchange", exchange_bytes(int(op.attrs["window"]), consumers)


TILE_RULES: tuple[Rule[TileGraph], ...] = tuple(_CHECKS)
"""The rules, in the order in which they are checked."""

PARTIAL_RULES: tuple[Rule[TileGraph], ...] = tuple(
    rule
    for rule in _CHECKS
    if rule.name
    in (
        "unique-names",
        "layers-in-order",
        "known-kinds",
        "weights-exist",
        "boxes-inside",
        "hand-offs-point-back",
        "hand-off-kinds",
    )
)
"""The rules that hold after any pass, for a graph that lacks what later passes fill in."""
