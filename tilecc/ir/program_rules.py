"""Rules of the Program verifier: counters, waits, the op table, memory, and the limits of the grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from tilecc.diag import Diagnostic
from tilecc.ir.attention import block_bytes
from tilecc.ir.program import OpRowSpec, Program
from tilecc.ir.rows import ROW_COUNTS
from tilecc.ir.tile import FLAG_TURNS
from tilecc.ir.tile_rules import ring_problems, role_problems
from tilecc.ir.verify import Rule, violation

MAX_WAITS = 3
"""Waits that a row of the op table holds (OpRow in op_common.cuh)."""
ALIGN = 256
"""Bytes on which workspace regions and KV caches start: the unit of the op table's offsets."""
COUNTER_BYTES = 128
"""A counter has a cache line of its own."""
MAX_GRID = 256
"""CTAs for which the per-CTA results of the step (argmax) have room."""
ARGMAX_BYTES = 8
"""Value and id of one row."""

Check = Callable[[Program], Iterator[Diagnostic]]
_CHECKS: list[Rule[Program]] = []


def _rule(doc: str) -> Callable[[Check], Check]:
    """Register a check under its function name with dashes."""

    def register(check: Check) -> Check:
        _CHECKS.append(Rule(check.__name__.replace("_", "-"), doc, check))
        return check

    return register


def execution_order(program: Program) -> list[str]:
    """The op class of every row that each CTA goes through in one step, absent rows of a layer left out."""
    present = {(row.layer, row.op) for row in program.rows}
    loop = [name for n in range(program.layers) for name in program.body if (n, name) in present]
    return [*program.prologue, *loop, *program.epilogue]


# -------------------------------------------------------------------------------------------- the op table


@_rule("each class is in one of prologue, body and epilogue, once")
def body_order(program: Program) -> Iterator[Diagnostic]:
    names = Counter(c.name for c in program.classes)
    listed = Counter((*program.prologue, *program.body, *program.epilogue))
    for name in dict.fromkeys((*names, *listed)):
        if names[name] != 1 or listed[name] != 1:
            text = f"class `{name}` is defined {names[name]} times and listed {listed[name]} times"
            yield violation("body-order", text)


@_rule("the rows are the step in its order: prologue, the layers with their part of the body, epilogue")
def rows_in_order(program: Program) -> Iterator[Diagnostic]:
    listed: dict[tuple[int, str], int] = Counter((row.layer, row.op) for row in program.rows)
    for (layer, name), count in listed.items():
        inside = name in program.body
        if count > 1:
            yield violation("rows-in-order", f"{count} rows are `{name}` of layer {layer}")
        if inside != (0 <= layer < program.layers):
            where = "in" if inside else "outside"
            text = f"a row is `{name}` of layer {layer}, but the class is {where} the loop"
            yield violation("rows-in-order", f"{text} of {program.layers} layers")
    found, want = [row.op for row in program.rows], execution_order(program)
    if found != want:
        at = next((i for i, pair in enumerate(zip(found, want, strict=False)) if pair[0] != pair[1]), -1)
        at = min(len(found), len(want)) if at < 0 else at
        got, due = (names[at] if at < len(names) else "nothing" for names in (found, want))
        yield violation("rows-in-order", f"row {at} is `{got}`, the kernel runs `{due}` there")


@_rule("a row names a class and image entries that exist, with the shape that its class was made for")
def rows_match_classes(program: Program) -> Iterator[Diagnostic]:
    classes = {c.name: c for c in program.classes}
    weights = {w.name: w for w in program.weights}
    uses: dict[str, set[str]] = {}
    for row in program.rows:
        if row.op not in classes:
            yield violation("rows-match-classes", f"a row of layer {row.layer} names no class: `{row.op}`")
            continue
        op = classes[row.op]
        where = f"row `{row.op}` of layer {row.layer}"
        if uses.setdefault(row.op, set(row.weights)) != set(row.weights):
            text = f"{where} uses {sorted(row.weights)}, other rows of the class {sorted(uses[row.op])}"
            yield violation("rows-match-classes", text, op.loc)
        for use, name in row.weights.items():
            if name not in weights:
                text = f"{where} uses `{name}` as {use}, which is not in the image"
                yield violation("rows-match-classes", text, op.loc)
        matrix = weights.get(row.weights.get("matrix", ""))
        made = tuple(op.constants.get(k) for k in ("format", "matrix_rows", "matrix_cols"))
        if matrix is not None and made != (matrix.format, matrix.rows, matrix.cols):
            found = (matrix.format, matrix.rows, matrix.cols)
            text = f"{where}: `{matrix.name}` is {found}, the class has {made}"
            yield violation("rows-match-classes", text, op.loc)


# ------------------------------------------------------------------------------------------------ counters


@_rule("counter ids are 0, 1, 2, ... without gap, and the counters have a line each")
def counters_dense(program: Program) -> Iterator[Diagnostic]:
    ids = sorted(c.counter for c in program.classes if c.counter != -1)
    if ids != list(range(len(ids))):
        yield violation("counters-dense", f"the counter ids are {ids}")
    need = COUNTER_BYTES * len(ids)
    have = sum(r.nbytes for r in program.workspace if r.name == "counters")
    if have < need:
        yield violation("counters-dense", f"{len(ids)} counters take {need} B, their region has {have} B")


@_rule("per_step of a class is the number of its rows")
def per_step_counts(program: Program) -> Iterator[Diagnostic]:
    rows = Counter(row.op for row in program.rows)
    for op in program.classes:
        if op.per_step != rows[op.name] or op.per_step <= 0:
            text = f"`{op.name}` has {rows[op.name]} rows and says {op.per_step} per step"
            yield violation("per-step-counts", text, op.loc)


@_rule("a wait names a counter and an instance that this or the previous step has run before the waiting op")
def waits_satisfiable(program: Program) -> Iterator[Diagnostic]:
    by_counter = {c.counter: c for c in program.classes if c.counter >= 0}
    started: Counter[str] = Counter()
    for row in program.rows:
        where = f"row `{row.op}` of layer {row.layer}"
        if len(row.waits) > MAX_WAITS:
            text = f"{where} has {len(row.waits)} waits, a row holds {MAX_WAITS}"
            yield violation("waits-satisfiable", text)
        for wait in row.waits:
            source = by_counter.get(wait.counter)
            if source is None:
                yield violation(
                    "waits-satisfiable", f"{where} waits for counter {wait.counter}; no class has it"
                )
                continue
            if wait.per_step != source.per_step:
                text = f"{where} counts {wait.per_step} `{source.name}` per step, there are {source.per_step}"
                yield violation("waits-satisfiable", text, source.loc)
            if not -source.per_step < wait.ordinal <= started[source.name]:
                text = f"{where} waits for instance {wait.ordinal} of `{source.name}`"
                text += f", {started[source.name]} have started"
                yield violation("waits-satisfiable", text, source.loc)
        started[row.op] += 1


@_rule("words that are flags: a region of 3 slots for each, polled in the turn in which they were pushed")
def turns_match(program: Program) -> Iterator[Diagnostic]:
    regions = {r.name: r for r in program.workspace}
    pushed: Counter[str] = Counter()
    classes = {c.name: c for c in program.classes}
    for op in program.classes:
        for name in filter(None, (op.pushes, op.polls)):
            region = regions.get(name)
            if region is None or region.init != "poison" or region.nbytes % (8 * FLAG_TURNS):
                text = f"`{op.name}` hands over words in `{name}`, which is no region of words as flags"
                yield violation("turns-match", text, op.loc)
    for row in program.rows:
        if row.op not in classes:
            continue  # reported by rows-match-classes
        op = classes[row.op]
        where = f"row `{row.op}` of layer {row.layer}"
        for verb, name, turn in (("polls", op.polls, row.polled), ("pushes", op.pushes, row.pushed)):
            due = pushed[name] - (verb == "polls")
            if turn != (due if name else 0):
                text = f"{where} {verb} turn {turn} of `{name}`, which is in turn {due}"
                yield violation("turns-match", text, op.loc)
        if op.pushes:
            pushed[op.pushes] += 1


# -------------------------------------------------------------------------------------------------- memory


@_rule("workspace regions have names of their own, are aligned, disjoint and inside the workspace")
def workspace_disjoint(program: Program) -> Iterator[Diagnostic]:
    for name, count in Counter(r.name for r in program.workspace).items():
        if count > 1:
            yield violation("workspace-disjoint", f"{count} regions are named `{name}`")
    end, last = 0, ""
    for region in sorted(program.workspace, key=lambda r: (r.offset, r.nbytes)):
        if region.offset % ALIGN or region.offset < 0 or region.nbytes < 0:
            text = f"`{region.name}` is {region.nbytes} B at {region.offset}, not on {ALIGN} B"
            yield violation("workspace-disjoint", text)
        if region.offset < end:
            yield violation("workspace-disjoint", f"`{region.name}` begins inside `{last}`")
        if region.offset + region.nbytes > end:
            end, last = region.offset + region.nbytes, region.name
    if end > program.workspace_bytes:
        text = f"`{last}` ends at {end}, the workspace has {program.workspace_bytes} B"
        yield violation("workspace-disjoint", text)


@_rule("KV caches of different layers are disjoint, aligned and inside the cache; one layer has one")
def kv_disjoint(program: Program) -> Iterator[Diagnostic]:
    places: dict[int, tuple[int, int]] = {}
    for row in program.rows:
        need = kv_bytes(program, row)
        if need == 0:
            continue
        if row.kv_offset % ALIGN or row.kv_offset < 0:
            yield violation(
                "kv-disjoint", f"the cache of layer {row.layer} is at {row.kv_offset}, not on {ALIGN} B"
            )
        mine = (row.kv_offset, row.kv_offset + need)
        if places.setdefault(row.layer, mine) != mine:
            text = f"ops of layer {row.layer} disagree on its cache: bytes {places[row.layer]} and {mine}"
            yield violation("kv-disjoint", text)
    end, last = 0, -1
    for layer, (first, stop) in sorted(places.items(), key=lambda item: item[1]):
        if first < end:
            yield violation("kv-disjoint", f"the cache of layer {layer} begins inside that of layer {last}")
        if stop > end:
            end, last = stop, layer
    if end > program.kv_bytes:
        yield violation("kv-disjoint", f"the caches end at {end}, there are {program.kv_bytes} B")


def kv_bytes(program: Program, row: OpRowSpec) -> int:
    """Bytes of the KV cache that a row uses (KvCache in attn_common.cuh), 0 for ops without one."""
    op = next((c for c in program.classes if c.name == row.op), None)
    if op is None or "tile_kv_blocks" not in op.constants:
        return 0
    c = {k: int(op.constants[k]) for k in ("kv_heads", "head_dim", "v_head_dim", "tile_kv_blocks")}
    block = block_bytes(c["head_dim"], c["v_head_dim"], str(op.constants["kv"]))
    return program.max_seqs * c["kv_heads"] * c["tile_kv_blocks"] * block


# ------------------------------------------------------------------------------------------------- machine


@_rule("the results that each CTA leaves have room for the largest grid")
def grid_limit(program: Program) -> Iterator[Diagnostic]:
    need = MAX_GRID * program.max_rows * ARGMAX_BYTES
    have = sum(r.nbytes for r in program.workspace if r.name == "argmax")
    if have < need:
        yield violation("grid-limit", f"`argmax` has {have} B, {MAX_GRID} CTAs need {need} B")


@_rule("rows, warp roles and rings are those of a CTA that can be launched")
def machine(program: Program) -> Iterator[Diagnostic]:
    if program.max_rows not in ROW_COUNTS:
        yield violation("machine", f"a step of {program.max_rows} rows, none of {list(ROW_COUNTS)}")
    for problem in (*role_problems(program.roles), *ring_problems(program.rings)):
        yield violation("machine", problem)


PROGRAM_RULES: tuple[Rule[Program], ...] = tuple(_CHECKS)
"""The rules, in the order in which they are checked."""
