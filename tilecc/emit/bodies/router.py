"""Expert selection of one token row by one warp (mimo.md 2.5)."""

from typing import Any

from tvm.script import tirx as T

from tilecc.diag import InternalError
from tilecc.emit.bodies.common import NEG_INF, rcp, shfl_f32, shfl_i32, sigma

# An expert competes as (score, key): larger score, then lower key. The key is its id. Classes that must stand
# behind every true -inf get the score -inf and one of these added to, or in place of, the id.
NAN_KEY = 1 << 16
NOT_AN_EXPERT = 2 << 16
TAKEN = 3 << 16


def router_topk(experts: int, top_k: int) -> Any:
    """Top-k of sigmoid(logit) + bias, ties to the lower id, NaN last.

    Weights are the sigmoids without the bias, over (their sum + 1e-20) if ``norm``, times ``scaling``. Ids
    and weights come in descending order of the biased score.
    """
    if not 1 <= top_k <= experts < NAN_KEY:
        raise InternalError(f"a router cannot choose {top_k} of {experts} experts")
    per_lane = (experts + 31) // 32

    # Lane l holds expert i * 32 + l in slot i. Each of the k rounds: best of the own slots, then a butterfly
    # over the lanes that carries the sigmoid along. Every lane ends with all ids and weights; the sum runs in
    # selection order. Slots past the last expert may hold anything.
    @T.prim_func
    def body(
        logits_ptr: T.handle("float32", "local"),
        bias_ptr: T.handle("float32", "local"),
        lane: T.int32,
        scaling: T.float32,
        norm: T.int32,
        ids_ptr: T.handle("int32", "local"),
        weights_ptr: T.handle("float32", "local"),
    ):
        logits = T.decl_buffer((per_lane,), "float32", data=logits_ptr, scope="local")
        bias = T.decl_buffer((per_lane,), "float32", data=bias_ptr, scope="local")
        ids = T.decl_buffer((top_k,), "int32", data=ids_ptr, scope="local")
        weights = T.decl_buffer((top_k,), "float32", data=weights_ptr, scope="local")
        sig = T.alloc_local((per_lane,), "float32")
        score = T.alloc_local((per_lane,), "float32")
        key = T.alloc_local((per_lane,), "int32")
        total = T.alloc_local((1,), "float32")
        for i in T.serial(per_lane, unroll=True):
            choice = T.alloc_local((1,), "float32")
            sig[i] = sigma(logits[i])
            choice[0] = sig[i] + bias[i]
            score[i] = T.Select(choice[0] >= T.float32(NEG_INF), choice[0], T.float32(NEG_INF))
            key[i] = T.Select(choice[0] >= T.float32(NEG_INF), i * 32 + lane, i * 32 + lane + NAN_KEY)
        if T.bool(experts % 32 != 0) and (per_lane - 1) * 32 + lane >= experts:
            score[per_lane - 1] = T.float32(NEG_INF)
            key[per_lane - 1] = NOT_AN_EXPERT
        total[0] = T.float32(0)
        for k in T.serial(top_k, unroll=True):
            best_score = T.alloc_local((1,), "float32")
            best_key = T.alloc_local((1,), "int32")
            best_sig = T.alloc_local((1,), "float32")
            best_score[0] = score[0]
            best_key[0] = key[0]
            best_sig[0] = sig[0]
            for i in T.serial(per_lane - 1, unroll=True):
                if score[i + 1] > best_score[0] or (
                    score[i + 1] == best_score[0] and key[i + 1] < best_key[0]
                ):
                    best_score[0] = score[i + 1]
                    best_key[0] = key[i + 1]
                    best_sig[0] = sig[i + 1]
            for step in T.serial(5, unroll=True):
                other_score = T.alloc_local((1,), "float32")
                other_key = T.alloc_local((1,), "int32")
                other_sig = T.alloc_local((1,), "float32")
                other_score[0] = shfl_f32(best_score[0], T.shift_right(16, step))
                other_key[0] = shfl_i32(best_key[0], T.shift_right(16, step))
                other_sig[0] = shfl_f32(best_sig[0], T.shift_right(16, step))
                if other_score[0] > best_score[0] or (
                    other_score[0] == best_score[0] and other_key[0] < best_key[0]
                ):
                    best_score[0] = other_score[0]
                    best_key[0] = other_key[0]
                    best_sig[0] = other_sig[0]
            for i in T.serial(per_lane, unroll=True):
                if key[i] == best_key[0]:
                    score[i] = T.float32(NEG_INF)
                    key[i] = TAKEN
            ids[k] = T.bitwise_and(best_key[0], NAN_KEY - 1)
            weights[k] = best_sig[0]
            total[0] = total[0] + best_sig[0]
        inverse = T.alloc_local((1,), "float32")
        inverse[0] = T.Select(norm != 0, rcp(total[0] + T.float32(1e-20)), T.float32(1))
        for k in T.serial(top_k, unroll=True):
            weights[k] = weights[k] * inverse[0] * scaling

    return body
