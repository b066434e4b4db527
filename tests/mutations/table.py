"""The bug classes injected into the kernel of `mimo_tiny`, one by one, and harmless edits of the same text.

The 24 genuine classes (in this order everywhere below):

 1 consumer does not wait for a full stage      2 loader does not wait for an empty stage
 3 expected bytes 16 too many                   4 ... 16 too few
 5 one arrival at a counter missing             6 wrong start parity
 7 mbarrier count too high                      8 one CTA runs two ops in the other order
 9 no barrier after mbarrier.init              10 named-barrier counts differ
11 misaligned destination of a bulk copy       12 weight pointer past the end
13 activation loader skips the dependence      14 dependence target off by one
15 shared memory read past its stage           16 bulk store not complete when signalled
17 stage released before it is read            18 output slot written without waiting for it
19 relaxed signal                              20 relaxed wait
21 no proxy fence before a bulk store          22 no __syncwarp before an elected arrive
23 no __syncwarp before an elected bulk store  24 whole warp waits without __syncwarp (parity aliasing)

The emitted kernel has no bulk stores: its tiles leave by st.global. For classes 16, 21 and 23 the epilogue
that writes partials is given one (``BULK``, itself a harmless edit): the tile goes back into the exchange
slot and leaves from there. Partials are words that are their own flags, except where the schedule of the
campaign (``SCHEDULE``) asks for a counter: in the dense layer. Bugs of such words are in ``WORDS``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.mutations.inject import Expected, Mutation, Site

RACE, FENCE, UNINIT, PARITY, SCOPE, FLAG = "TC0912", "TC0914", "TC0913", "TC0911", "TC0918", "TC0919"
ENDLESS, DEADLOCK, MBARRIER, NAMED = "TC0902", "TC0901", "TC0907", "TC0908"
BOUNDS, ALIGN = "TC0904", "TC0905"

KERNEL, GEMV, COMMON = "kernels/mimo_tiny.cu", "include/op_gemv.cuh", "include/op_common.cuh"
VECTOR = "include/op_vector.cuh"
EPILOGUES, ATTENTION, FILL, ROUTE, MMA = (
    "include/epilogues.cuh",
    "include/op_attention.cuh",
    "include/attn_common.cuh",
    "include/op_route.cuh",
    "include/mma_formats.cuh",
)

SCHEDULE = """
def schedule(s):
    s.edge("down", "mlp_reduce", kind="counter", why="partial sums that bulk stores may carry")
"""

# ---- sites -----------------------------------------------------------------------------------------------
FULL_WAIT = Site(GEMV, "tk::mbar_wait(c.w_full(c.w.slot), c.w.phase, c.watch);")
ACTS_WAIT = Site(GEMV, "tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);")
EMPTY_WAIT = Site(GEMV, "tk::mbar_wait(c.w_empty(c.w.slot), c.w.phase ^ 1, c.watch);")
EXPECT = Site(
    GEMV, "tk::mbar_arrive_expect_tx(c.w_full(c.w.slot), k.slots * t.n_tiles * k.nb * kBlockBytes);"
)
SIGNAL = Site(COMMON, "tk::red_release(counter(counter_id), 1);\n    tk::syncwarp();")
START = Site(KERNEL, "c.w = c.a = c.x = Ring{0, 0};")
COUNT = Site(KERNEL, "tk::mbar_init(sb + S::kWEmpty + 8 * i, Config::kConsumerWarps);")
ORDER = Site(KERNEL, "run<R, OProj>(c, row + 5, 4);\n    run<R, AttnReduce>(c, row + 6, 5);")
INIT_SYNC = Site(KERNEL, "tk::cta_sync();")
LOADER_LANE = Site(KERNEL, "if (tk::elect()) run_role<Role::kLoader>(p, epoch, turn, 0);")
NAMED_BARRIER = Site(ROUTE, "tk::bar_sync(1, C::kActWarps * 32);")
STAGE_ADDRESS = Site(GEMV, "c.stage(c.w.slot) + at", expression=True)
READ_ADDRESS = Site(GEMV, "stage + lane.codes", expression=True)
DEPEND = Site(GEMV, "c.wait_inputs(r);", 2)  # activation warps and store warp
TARGET = Site(COMMON, "ncta * ((base + step) * w_.per_step + static_cast<u32>(w_.ordinal))", expression=True)
WAIT_INPUT = Site(COMMON, "tk::wait_ge(counter(r.waits[0].counter), target(r.waits[0]), watch);")
FENCES = Site(COMMON, "tk::fence_proxy_async();", 2)
FILL_FENCE = Site(FILL, "tk::fence_proxy_async();\n  tk::syncwarp();")
ATTENTION_FENCES = Site(ATTENTION, "tk::fence_proxy_async();", 2)
RELEASE = Site(GEMV, "tk::syncwarp();\n        tk::mbar_arrive(c.w_empty(c.w.slot));")
OUT_WAIT = Site(GEMV, "tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);")
COPY_SYNC = Site(
    GEMV,
    "tk::syncwarp();  // no lane may still wait for this phase when lane 0 arrives,"
    " or it could miss a whole lap",
)
OUT_SYNC = Site(GEMV, "tk::syncwarp();\n        tk::mbar_arrive(c.x_full(c.x.slot));")
PARTIALS = Site(
    EPILOGUES,
    """tk::stg_f32(out + frag_f32_bytes(n, k), v[0]);
    tk::stg_f32(out + frag_f32_bytes(n + 1, k), v[1]);
    tk::stg_f32(out + frag_f32_bytes(n, k + 8), v[2]);
    tk::stg_f32(out + frag_f32_bytes(n + 1, k + 8), v[3]);""",
)
FILL_WORDS = Site(KERNEL, "tk::poison_word(words + i, tk::kFlagPoison64);")
FILLED = Site(KERNEL, "tk::red_release(&state->filled, 1);")
NEXT_TURN = Site(KERNEL, "c.turn = c.turn + 1 == kTurns ? 0 : c.turn + 1;")
LAST_TURN = Site(KERNEL, "tk::stg32(state + offsetof(State, turn), c.turn);")
TAKEN = Site(VECTOR, "tk::poison_word(at(i), tk::kFlagPoison64);")
POLLED_TURN = Site(VECTOR, "c.slot(R::kPolls, r.polled)", expression=True)
PUSHED_TURN = Site(EPILOGUES, "c.slot(P::kPushes, r.pushed)", 2, expression=True)
NEXT_LOGITS = Site(EPILOGUES, "tk::poison_word(next + j * 8 * P::kPitch + at, tk::kFlagPoison);")
PUSH_LOGIT = Site(
    EPILOGUES, "tk::push_word<tk::Scope::kGpu>(out + row_tile * 8 * P::kPitch + at, tk::f2u(v[i]));"
)
ROUTE_SIGNAL = Site(ROUTE, "build_list(c);\n      tk::syncwarp();\n      tk::mbar_arrive(c.r_full());")

# The partial tile as a bulk store out of the exchange slot.
BULK = """
    const smem_t from = c.exchange(c.x.slot) + (tile - t.tile0) * 512;
    tk::syncwarp();
    tk::sts_f32(from + frag_f32_bytes(n, g), v[0]);
    tk::sts_f32(from + frag_f32_bytes(n + 1, g), v[1]);
    tk::sts_f32(from + frag_f32_bytes(n, g + 8), v[2]);
    tk::sts_f32(from + frag_f32_bytes(n + 1, g + 8), v[3]);
    tk::fence_proxy_async();
    tk::syncwarp();
    tk::bulk_s2g(out + tile * 512, from, 512);
    tk::bulk_commit();
    tk::bulk_wait<0>();
"""


def emitted(site: Site, old: str = "", new: str = "") -> str:
    """The site's own text with one piece of it exchanged."""
    assert not old or site.text.count(old) == 1, (site, old)
    return site.text.replace(old, new) if old else site.text


def without(text: str, piece: str) -> str:
    """``text`` without ``piece``, which it holds exactly once."""
    assert text.count(piece) == 1, piece
    return text.replace(piece, "")


ROWS_BEFORE, ROWS_OF_LAYER = 1, 15  # kPrologueRows, kBodyRows of the kernel
QKV_ROW, OPROJ_ROW = ROWS_BEFORE, ROWS_BEFORE + ROWS_OF_LAYER + 5
QKV_BYTES = 44 * 2 * (2048 + 64)  # tiles, column blocks, bytes of an FP8 block
WEIGHTS, WAIT_ORDINAL = 2, 10  # words of a row


def past_the_end(table: NDArray[np.uint32], image_bytes: int) -> None:
    """The weights of the first op end 256 bytes behind the image."""
    table[QKV_ROW, WEIGHTS] = (image_bytes - QKV_BYTES) // 256 + 1


def ordinal_too_low(table: NDArray[np.uint32], image_bytes: int) -> None:
    """o_proj of layer 1 waits for the attention of the layer before."""
    table[OPROJ_ROW, WAIT_ORDINAL] -= 1


# An op reads its input before the one that writes it has signalled.
EARLY = (Expected(RACE, GEMV, "tk::ldg"), Expected(RACE, GEMV, "tk::bulk_g2s("))

# ---- the 24 classes --------------------------------------------------------------------------------------
GENUINE: dict[str, Mutation] = {
    "full wait dropped": Mutation({FULL_WAIT: ""}, (Expected(RACE, MMA, "tk::lds"),), 1, max_findings=4),
    "empty wait dropped": Mutation(
        {EMPTY_WAIT: ""},
        (Expected(RACE, GEMV, "tk::bulk_g2s("), Expected(MBARRIER, GEMV, "w_full", "one arrival too many")),
        2,
    ),
    "16 bytes too many expected": Mutation(
        {EXPECT: emitted(EXPECT, "kBlockBytes", "kBlockBytes + 16")},
        (
            Expected(
                DEADLOCK,
                GEMV,
                FULL_WAIT.text,
                "weights full[0] (phase 0, 0 of 1 arrivals pending, tx-count 16)",
            ),
        ),
        3,
    ),
    "16 bytes too few expected": Mutation(
        {EXPECT: emitted(EXPECT, "kBlockBytes", "kBlockBytes - 16")},
        (
            Expected(
                DEADLOCK,
                GEMV,
                FULL_WAIT.text,
                "weights full[0] (phase 0, 0 of 1 arrivals pending, tx-count -16)",
            ),
        ),
        4,
    ),
    "one arrival missing": Mutation(
        {SIGNAL: "if (!(cta == 1 && counter_id == 4)) { " + SIGNAL.text + " }"},
        (Expected(DEADLOCK, COMMON, "tk::wait_ge(", "wait_ge on workspace.counters + 512"),),
        5,
    ),
    "wrong start parity": Mutation(
        {START: "c.w = c.a = c.x = Ring{0, 0};\n  if (R == Role::kLoader) c.w.phase = 1;"},
        (Expected(DEADLOCK, GEMV, EMPTY_WAIT.text, "weights empty[0] (phase 0, 4 of 4 arrivals pending"),),
        6,
    ),
    "mbarrier count too high": Mutation(
        {COUNT: emitted(COUNT, "kConsumerWarps", "kConsumerWarps + 1")},
        (Expected(DEADLOCK, GEMV, EMPTY_WAIT.text, "weights empty[0] (phase 0, 1 of 5 arrivals pending"),),
        7,
    ),
    "ops of one CTA in the other order": Mutation(
        {
            ORDER: "if (c.cta == 1) { run<R, AttnReduce>(c, row + 6, 5); run<R, OProj>(c, row + 5, 4); }\n"
            "else { " + ORDER.text + " }"
        },
        (Expected(DEADLOCK, VECTOR, "tk::poll_words<", "op AttnReduce, layer 0"),),
        8,
    ),
    "no barrier after init": Mutation(
        {INIT_SYNC: ""},
        (
            Expected(MBARRIER, "", "mbar_", "where no mbarrier was initialised"),
            Expected(MBARRIER, "", "mbar_", "ordered after its mbar_init"),
        ),
        9,
    ),
    "named-barrier counts differ": Mutation(
        {NAMED_BARRIER: emitted(NAMED_BARRIER, "kActWarps * 32", "kActWarps * 32 + (c.warp == 1 ? 32 : 0)")},
        (Expected(NAMED, ROUTE, "tk::bar_sync("),),
        10,
    ),
    "misaligned destination": Mutation(
        {STAGE_ADDRESS: STAGE_ADDRESS.text + " + 8"},
        (Expected(ALIGN, GEMV, "tk::bulk_g2s(", "weight stage + 8 (shared offset"),),
        11,
    ),
    "weights past their end": Mutation(
        {}, (Expected(BOUNDS, GEMV, "tk::bulk_g2s(", "bytes at image + "),), 12, past_the_end
    ),
    "activations skip the dependence": Mutation({DEPEND: ""}, EARLY, 13),
    "dependence target off by one": Mutation({TARGET: TARGET.text + " - 1"}, EARLY, 14),
    "read past the stage": Mutation(
        {READ_ADDRESS: READ_ADDRESS.text + " + (c.warp + 1 == C::kConsumerWarps ? C::kWStageBytes : 0u)"},
        (Expected(RACE, MMA, "tk::lds"), Expected(UNINIT, MMA, "tk::lds")),
        15,
    ),
    "bulk store not complete when signalled": Mutation(
        {PARTIALS: BULK.replace("bulk_wait<0>", "bulk_wait_read<0>")},
        (Expected(RACE, EPILOGUES, "tk::bulk_s2g("),),
        16,
    ),
    "stage released before it is read": Mutation(
        {
            FULL_WAIT: FULL_WAIT.text + " tk::syncwarp(); tk::mbar_arrive(c.w_empty(c.w.slot));",
            RELEASE: without(RELEASE.text, "tk::mbar_arrive(c.w_empty(c.w.slot));"),
        },
        (Expected(RACE, GEMV, "tk::bulk_g2s("),),
        17,
    ),
    "output slot not waited for": Mutation(
        {OUT_WAIT: ""},
        (Expected(RACE, GEMV, "tk::sts128("), Expected(MBARRIER, GEMV, "x_full", "one arrival too many")),
        18,
        max_findings=4,
    ),
    "relaxed signal": Mutation(
        {SIGNAL: emitted(SIGNAL, "red_release", "red_relaxed")},
        (Expected(RACE, COMMON, "tk::red_relaxed(", "but a relaxed signal publishes"),),
        19,
    ),
    "relaxed wait": Mutation(
        {WAIT_INPUT: emitted(WAIT_INPUT, "wait_ge", "wait_ge_relaxed")},
        (Expected(RACE, COMMON, "tk::wait_ge_relaxed(", "but a relaxed wait acquires"),),
        20,
    ),
    "no proxy fence before the bulk store": Mutation(
        {PARTIALS: without(BULK, "tk::fence_proxy_async();")},
        (Expected(FENCE, EPILOGUES, "tk::bulk_s2g("),),
        21,
    ),
    "no syncwarp before the elected arrive": Mutation(
        {RELEASE: without(RELEASE.text, "tk::syncwarp();")},
        (
            Expected(RACE, GEMV, "tk::bulk_g2s("),
            Expected(RACE, GEMV, "tk::sts64("),
            Expected(RACE, GEMV, "tk::sts128("),
        ),
        22,
    ),
    "no syncwarp before the bulk store": Mutation(
        {PARTIALS: BULK.replace("tk::fence_proxy_async();\n    tk::syncwarp();", "tk::fence_proxy_async();")},
        (Expected(RACE, EPILOGUES, "tk::bulk_s2g("),),
        23,
    ),
    "whole warp loads without syncwarp": Mutation(
        {LOADER_LANE: "run_role<Role::kLoader>(p, epoch, turn, 0);"},
        (Expected(PARITY, GEMV, EMPTY_WAIT.text),),
        24,
    ),
}

# ---- further edits of the same classes -------------------------------------------------------------------
FURTHER: dict[str, Mutation] = {
    "no proxy fence between an op and the next": Mutation(
        {
            FENCES: "",
            FILL_FENCE: "tk::syncwarp();",
            ATTENTION_FENCES: "",
        },
        (Expected(FENCE, GEMV, "tk::bulk_g2s("), Expected(FENCE, FILL, "tk::bulk_g2s(")),
        21,
    ),
    "activation warps wait without syncwarp": Mutation(
        {FILL_FENCE: "tk::fence_proxy_async();", COPY_SYNC: ""},
        (Expected(PARITY, FILL, "tk::mbar_wait("), Expected(PARITY, GEMV, "tk::mbar_wait(")),
        24,
    ),
    "signal of CTA scope": Mutation(
        {SIGNAL: emitted(SIGNAL, "red_release", "red_release<tk::Scope::kCta>")},
        (Expected(SCOPE, COMMON, "tk::red_release<tk::Scope::kCta>(", "at .cta"),),
    ),
    "wait of CTA scope": Mutation(
        {WAIT_INPUT: emitted(WAIT_INPUT, "wait_ge", "wait_ge<tk::Scope::kCta>")},
        (Expected(SCOPE, COMMON, "tk::wait_ge<tk::Scope::kCta>(", "wait_ge at .cta scope"),),
    ),
    "partial sums handed over without syncwarp": Mutation(
        {OUT_SYNC: without(OUT_SYNC.text, "tk::syncwarp();")},
        (Expected(RACE, GEMV, "tk::sts128("),),
        22,
        max_findings=4,
    ),
    "ordinal of a dependence one too low in the op table": Mutation(
        {}, (Expected(RACE, GEMV, "tk::bulk_g2s("),), 14, ordinal_too_low
    ),
}

# A word still holds what was pushed in an earlier launch.
STALE = (
    Expected(FLAG, ROUTE, "tk::poll_word", "no push_word wrote"),
    Expected(FLAG, ROUTE, "tk::poll_word", "was not filled with poison"),
)

# ---- words that are their own flags ----------------------------------------------------------------------
WORDS: dict[str, Mutation] = {
    "words not filled with poison": Mutation(
        {FILL_WORDS: ""},
        (
            Expected(FLAG, VECTOR, "tk::poll_words<", "was not filled with poison before the first push"),
            Expected(FLAG, VECTOR, "tk::poll_words<", "which no push_word wrote"),
        ),
    ),
    # Signals carry the fences: without them nothing orders a word's poisoning before its next push.
    "words pushed again without a fence after their poisoning": Mutation(
        {
            SIGNAL: emitted(SIGNAL, "red_release", "red_relaxed"),
            FILLED: emitted(FILLED, "red_release", "red_relaxed"),
        },
        (Expected(RACE, EPILOGUES, "tk::push_word<", "a relaxed signal publishes"),),
        max_findings=200,
    ),
    "taken words not poisoned": Mutation(
        {TAKEN: ""}, (Expected(FLAG, EPILOGUES, "tk::push_word<", "taken, but not poisoned again"),)
    ),
    "logits of the next turn not poisoned": Mutation(
        {NEXT_LOGITS: ""},
        (
            Expected(FLAG, EPILOGUES, "tk::push_word<", "overwrites a datum"),
            Expected(FLAG, ROUTE, "tk::poll_word", "a second time"),
        ),
    ),
    "words of the next turn polled": Mutation(
        {POLLED_TURN: "c.slot(R::kPolls, r.polled, 1)"},
        (Expected(DEADLOCK, VECTOR, "tk::poll_words<", "op AttnReduce, layer 0"),),
    ),
    "words pushed into the slot of the next turn": Mutation(
        {PUSHED_TURN: "c.slot(P::kPushes, r.pushed, 1)"},
        (Expected(DEADLOCK, VECTOR, "tk::poll_words<", "op AttnReduce, layer 0"),),
    ),
    "turn not advanced with the step": Mutation({NEXT_TURN: ""}, STALE),
    "turn not kept between launches": Mutation({LAST_TURN: ""}, STALE),
    "logits pushed at CTA scope": Mutation(
        {PUSH_LOGIT: emitted(PUSH_LOGIT, "kGpu", "kCta")}, (Expected(SCOPE, ROUTE, "tk::poll_word"),)
    ),
    "logits stored, not pushed": Mutation(
        {PUSH_LOGIT: "tk::stg32(out + row_tile * 8 * P::kPitch + at, tk::f2u(v[i]));"},
        (
            Expected(FLAG, ROUTE, "tk::poll_word", "no push_word wrote"),
            Expected(DEADLOCK, ROUTE, "tk::poll_word", "use push_word"),
        ),
    ),
}

# ---- harmless edits --------------------------------------------------------------------------------------
HARMLESS: dict[str, Mutation] = {
    "tiles leave by bulk stores": Mutation({PARTIALS: BULK}),
    "second syncwarp": Mutation({OUT_SYNC: "tk::syncwarp();\n      " + OUT_SYNC.text}),
    "second proxy fence": Mutation({FILL_FENCE: "tk::fence_proxy_async(); " + FILL_FENCE.text}),
    "syncwarp after a signal dropped": Mutation({SIGNAL: without(SIGNAL.text, "tk::syncwarp();")}),
    "syncwarp after bar_sync": Mutation({NAMED_BARRIER: NAMED_BARRIER.text + " tk::syncwarp();"}),
    # Lanes 1-31 may still write the record's weights; whoever reads those waits for more than this.
    "syncwarp before the routing is published dropped": Mutation(
        {ROUTE_SIGNAL: without(ROUTE_SIGNAL.text, "tk::syncwarp();")}
    ),
    "waits for the same phase twice": Mutation({ACTS_WAIT: ACTS_WAIT.text + " " + ACTS_WAIT.text}),
    "waits for the same counter twice": Mutation({WAIT_INPUT: WAIT_INPUT.text + " " + WAIT_INPUT.text}),
    "signal and wait of system scope": Mutation(
        {
            SIGNAL: emitted(SIGNAL, "red_release", "red_release<tk::Scope::kSys>"),
            WAIT_INPUT: emitted(WAIT_INPUT, "wait_ge", "wait_ge<tk::Scope::kSys>"),
        }
    ),
    # The signals of the ops before the first push order the filling, too.
    "filled without a fence": Mutation({FILLED: emitted(FILLED, "red_release", "red_relaxed")}),
    "words poisoned twice": Mutation({TAKEN: TAKEN.text + " " + TAKEN.text}),
    "logits poisoned after their push": Mutation(
        {NEXT_LOGITS: "", PUSH_LOGIT: PUSH_LOGIT.text + " const u32 j = 0; " + NEXT_LOGITS.text}
    ),
    "fence and relaxed signal": Mutation(
        {SIGNAL: emitted(SIGNAL, "tk::red_release", "tk::fence_gpu();\n    tk::red_relaxed")}
    ),
}

# ---- counters that wrap ----------------------------------------------------------------------------------
WRAP: dict[str, Mutation] = {
    "targets compared as unsigned numbers": Mutation(
        {
            WAIT_INPUT: "if (r.n_waits > 0 && tk::elect())\n      "
            "while (tk::ld_acquire(counter(r.waits[0].counter)) < target(r.waits[0])) tk::nanosleep(20);"
        },
        # Too early if the target has wrapped, never if the counter has.
        (*EARLY, Expected(ENDLESS, COMMON, "tk::nanosleep(")),
    ),
}
