"""Emission context of each kind of op: the constexpr members its `.cuh` template reads, and nothing else.

One function per kind; the names on the right are those of templates/include/op_*.cuh and epilogues.cuh.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from tilecc.emit.bodies import BodySpec, router_topk, softmax_merge
from tilecc.ir.graph import AttrValue
from tilecc.ir.program import OpClass, Program
from tilecc.ir.tile import FLAG_TURNS
from tilecc.passes.tile import ceil_div, pad

KV_FORMATS = {"bf16": "kBf16", "fp8": "kFp8"}
FORMATS = {"bf16": "kBf16", "f32": "kF32", "fp8_block": "kFp8", "mxfp4": "kMxfp4"}


@dataclass(frozen=True)
class Member:
    """`static constexpr type name = value;`"""

    type: str
    name: str
    value: str


@dataclass(frozen=True)
class OpContext:
    """What the kernel template needs of one op class."""

    name: str
    template: str
    comment: tuple[str, ...]
    members: tuple[Member, ...]
    extra: tuple[str, ...]
    bodies: tuple[BodySpec, ...]


def constant(name: str) -> str:
    """C++ constant name of a region: attention_partials -> kAttentionPartials."""
    return "k" + "".join(part.capitalize() for part in name.split("_"))


def float_literal(x: float) -> str:
    """Shortest C++ float literal of the float32 nearest to x."""
    text = repr(x)
    return (text if any(c in text for c in ".en") else text + ".0") + "f"


def op_context(op: OpClass, program: Program) -> OpContext:
    """The emission context of one op class."""
    kind = op.kind if op.kind not in _GEMV else "gemv"
    template, members, extra, bodies = _KINDS[kind](op, program)
    members = [*members, Member("u32", "kRotation", str(op.constants["rotation"]))]
    if op.kind != "route":
        members.append(Member("u32", "kCounter", str(op.counter) if op.counter >= 0 else "kNoCounter"))
    comment = [
        *textwrap.wrap(op.doc, 112, subsequent_indent="  "),
        f"  from {op.loc}",
        *(f"  waits for {h}" for h in op.hand_offs),
    ]
    return OpContext(op.name, template, tuple(comment), tuple(members), tuple(extra), tuple(bodies))


Parts = tuple[str, list[Member], list[str], list[BodySpec]]


def _u32(name: str, value: AttrValue) -> Member:
    return Member("u32", name, str(int(value)))


def _f32(name: str, value: AttrValue) -> Member:
    return Member("float", name, float_literal(float(value)))


def _bool(name: str, value: bool) -> Member:
    return Member("bool", name, "true" if value else "false")


def _at(name: str, buffer: str, program: Program) -> Member:
    known = any(r.name == buffer for r in program.workspace)
    return Member("u64", name, f"ws::{constant(buffer)}" if known else "0")


def _polls(op: OpClass, program: Program) -> list[Member]:
    """Members of an op that may be handed words that are their own flags."""
    members = [_bool("kWords", bool(op.polls))]
    if op.polls:
        members.append(_u32("kPollBytes", program.region(op.polls).nbytes // FLAG_TURNS))
        members.append(_u32("kPolls", program.turns(op.polls)))
    return members


def _pushes(op: OpClass, program: Program) -> list[Member]:
    """Members of an op that hands on words that are their own flags."""
    return [
        _at("kPush", op.pushes, program),
        _u32("kPushBytes", program.region(op.pushes).nbytes // FLAG_TURNS),
        _u32("kPushes", program.turns(op.pushes)),
    ]


def _embed(op: OpClass, program: Program) -> Parts:
    members = [
        _at("kX", "x", program), _at("kY", "y", program), _at("kSumSq", "sum_sq", program),
        _u32("kColumns", pad(program.hidden)), _u32("kUnits", op.constants["tile_units"]),
    ]  # fmt: skip
    return "Embed", members, [], []


def _reduce(op: OpClass, program: Program) -> Parts:
    _, members, extra, bodies = _embed(op, program)
    members += [
        _at("kPartials", op.polls or "partials", program), _u32("kSplits", op.constants["tile_splits"]),
        *_polls(op, program), _u32("kSteps", program.hidden // 16),
    ]  # fmt: skip
    return "Reduce", members, extra, bodies


def _commit(op: OpClass, program: Program) -> Parts:
    return "Commit", [_at("kPartials", "argmax", program)], [], []


def _route(op: OpClass, program: Program) -> Parts:
    c = op.constants
    experts, k = int(c["experts"]), int(c["k"])
    body = router_topk(experts, k)
    splits = (int(op.constants["tile_splits"]) for op in program.classes if op.kind == "experts_down")
    members = [
        _u32("kExperts", experts), _u32("kTopK", k), _u32("kPitch", c["tile_pitch"]),
        _u32("kSplits", max(splits, default=1)),
        _at("kLogits", op.polls or "router_logits", program), _at("kRoutes", "routes", program),
        *_polls(op, program),
        _f32("kScaling", c["scaling"]), _bool("kNormTopK", bool(c["norm_topk"])),
    ]  # fmt: skip
    extra = [
        "static TK_FN void topk(float* logits, float* bias, int lane, int* ids, float* weights) {",
        f"  {body.name}(logits, bias, lane, kScaling, kNormTopK ? 1 : 0, ids, weights);",
        "}",
    ]
    return "Route", members, extra, [body]


def _kv(op: OpClass) -> list[str]:
    c = op.constants
    return [
        "struct KvShape {",
        f"  static constexpr KvFormat kFormat = KvFormat::{KV_FORMATS[str(c['kv'])]};",
        f"  static constexpr u32 kKvHeads = {c['kv_heads']};",
        f"  static constexpr u32 kHeadSteps = {ceil_div(int(c['head_dim']), 16)};",
        f"  static constexpr u32 kValueDim = {c['v_head_dim']}, kBlocks = {c['tile_kv_blocks']};",
        "};",
        "using Kv = KvCache<KvShape>;",
    ]


def _merge(name: str, body: BodySpec) -> list[str]:
    return [
        f"static TK_FN void {name}(float* m, float* d, float sink, float* scale) {{",
        f"  {body.name}(m, d, sink, scale);",
        "}",
    ]


def _attention(op: OpClass, program: Program) -> Parts:
    c = op.constants
    members = [
        _u32("kHeads", c["heads"]), _u32("kKvHeads", c["kv_heads"]),
        _u32("kHeadSteps", ceil_div(int(c["head_dim"]), 16)), _u32("kValueDim", c["v_head_dim"]),
        _f32("kScale", c["scale"]), _at("kQueries", "queries", program),
    ]  # fmt: skip
    if not int(c["window"]):
        members += [
            _u32("kSplits", c["tile_splits"]), _u32("kChunkBlocks", c["tile_chunk_blocks"]),
            _u32("kTaskRows", c["tile_task_rows"]), _at("kPartials", "attention_partials", program),
        ]  # fmt: skip
        return "SplitAttention", members, _kv(op), []
    merge = softmax_merge(1)
    members += [
        _u32("kWindow", c["window"]), _u32("kTurns", c["tile_turns"]), _bool("kSink", bool(c["sink"])),
        _at("kOut", "attention", program),
    ]  # fmt: skip
    return "WindowAttention", members, _kv(op) + _merge("merge", merge), [merge]


def _attention_merge(op: OpClass, program: Program) -> Parts:
    c = op.constants
    body = softmax_merge(1)
    members = [
        _u32("kHeads", c["heads"]), _u32("kKvHeads", c["kv_heads"]), _u32("kValueDim", c["v_head_dim"]),
        _u32("kSplits", c["tile_splits"]), _u32("kChunkBlocks", c["tile_chunk_blocks"]),
        _bool("kSink", bool(c["sink"])), _at("kPartials", "attention_partials", program),
        _at("kOut", "attention", program),
    ]  # fmt: skip
    return "AttentionMerge", members, _merge("merge", body), [body]


_SOURCES = {"attention": "attention", "hidden": "hidden"}


def _gemv(op: OpClass, program: Program) -> Parts:
    c = op.constants
    over = {"experts_up": "kExpertsUp", "experts_down": "kExpertsDown"}.get(op.kind, "kDense")
    normed = c["source"] == "norm"
    source = "y" if normed else "expert_hidden" if op.kind == "experts_down" else str(c["input"])
    members = [
        Member("Format", "kFormat", f"Format::{FORMATS[str(c['format'])]}"),
        Member("Over", "kOver", f"Over::{over}"),
        _u32("kTiles", c["tile_tiles"]), _u32("kBlocks", c["tile_blocks"]), _u32("kSplits", c["tile_splits"]),
        _u32("kGroup", c["tile_group"]), _u32("kChunk", c["tile_chunk"]),
        _u32("kActChunk", c["tile_act_chunk"]), _u32("kSlots", c["tile_slots"]),
        _u32("kWarpsK", c["tile_warps_k"]),
        Member("Source", "kSource", "Source::kNorm" if normed else "Source::kFragment"),
        _at("kSourceOffset", source, program), _at("kSumSq", "sum_sq", program),
        _u32("kHidden", program.hidden),
        _f32("kEps", c.get("eps", 0.0)), _bool("kPrefetches", bool(op.prefetch)),
    ]  # fmt: skip
    more, extra = _EPILOGUES[op.kind](op, program)
    name = _EPILOGUE_NAMES[op.kind]
    if op.pushes:
        name = name.replace("Epilogue", "WordsEpilogue")
    epilogue = f"using Epilogue = {name}<{op.name}Op>;"
    if op.prefetch:
        extra = [*extra, "static TK_FN void prefetch(Cx& c);  // below"]
    return "Gemv", members + more, [*extra, epilogue], []


def _partial_epilogue(op: OpClass, program: Program) -> tuple[list[Member], list[str]]:
    place = _pushes(op, program) if op.pushes else [_at("kOffset", "partials", program)]
    return [*place, _u32("kColumns", pad(program.hidden))], []


def _swiglu_epilogue(op: OpClass, program: Program) -> tuple[list[Member], list[str]]:
    routed = op.kind == "experts_up"
    out = "expert_hidden" if routed else "hidden"
    return [
        _at("kOffset", out, program),
        _u32("kColumns", pad(int(op.constants["width"]))),
        _bool("kRouted", routed),
    ], []


def _logits_epilogue(op: OpClass, program: Program) -> tuple[list[Member], list[str]]:
    c = op.constants
    place = _pushes(op, program) if op.pushes else [_at("kOffset", "router_logits", program)]
    return [
        *place,
        _u32("kRowsOut", c["experts"]),
        _u32("kPitch", c["tile_pitch"]),
    ], []


def _argmax_epilogue(op: OpClass, program: Program) -> tuple[list[Member], list[str]]:
    return [_at("kOffset", "argmax", program), _u32("kVocab", program.vocab)], []


def _qkv_epilogue(op: OpClass, program: Program) -> tuple[list[Member], list[str]]:
    c = op.constants
    members = [
        _u32("kHeads", c["heads"]), _u32("kKvHeads", c["kv_heads"]), _u32("kHeadDim", c["head_dim"]),
        _u32("kValueDim", c["v_head_dim"]), _u32("kRotary", c["rotary"]),
        _u32("kRopeTiles", c["tile_rope_tiles"]), _u32("kQkTiles", c["tile_qk_tiles"]),
        _u32("kValueTiles", c["tile_v_tiles"]), _f32("kValueScale", c["value_scale"]),
        _at("kQueries", "queries", program),
        _u32("kHeadSteps", ceil_div(int(c["head_dim"]), 16)),
    ]  # fmt: skip
    return members, _kv(op)


_EPILOGUES: dict[str, Callable[[OpClass, Program], tuple[list[Member], list[str]]]] = {
    "qkv": _qkv_epilogue, "project": _partial_epilogue, "experts_down": _partial_epilogue,
    "gate_up": _swiglu_epilogue, "experts_up": _swiglu_epilogue, "router": _logits_epilogue,
    "head": _argmax_epilogue,
}  # fmt: skip
_EPILOGUE_NAMES = {
    "qkv": "QkvEpilogue", "project": "PartialEpilogue", "experts_down": "PartialEpilogue",
    "gate_up": "SwigluEpilogue", "experts_up": "SwigluEpilogue", "router": "LogitsEpilogue",
    "head": "ArgmaxEpilogue",
}  # fmt: skip
_GEMV = frozenset(_EPILOGUES)
_KINDS: dict[str, Callable[[OpClass, Program], Parts]] = {
    "embed": _embed, "reduce": _reduce, "commit": _commit, "route": _route, "attention": _attention,
    "attention_merge": _attention_merge, "gemv": _gemv,
}  # fmt: skip
