"""The router's selection, one warp per row: lane l holds experts l, l + 32, ... (model page, section 2.5)."""

# mypy: ignore-errors
# ruff: noqa: F821
from tvm.script import tirx as T

LOG2E = 1.4426950408889634
NEG_INF = float("-inf")
NONE = 1 << 30


def router_topk(experts, k):
    per_lane = (experts + 31) // 32

    @T.prim_func
    def router_topk(
        logit_ptr: T.handle("float32", "local"), bias_ptr: T.handle("float32", "local"), lane: T.int32, scaling: T.float32,
        norm: T.int32, id_ptr: T.handle("int32", "local"), weight_ptr: T.handle("float32", "local"),
    ):  # fmt: skip
        logit = T.decl_buffer((per_lane,), "float32", data=logit_ptr, scope="local")
        bias = T.decl_buffer((per_lane,), "float32", data=bias_ptr, scope="local")
        ids = T.decl_buffer((k,), "int32", data=id_ptr, scope="local")
        weight = T.decl_buffer((k,), "float32", data=weight_ptr, scope="local")
        sigma = T.alloc_local((per_lane,), "float32")
        score = T.alloc_local((per_lane,), "float32")
        taken = T.alloc_local((per_lane,), "int32")
        best = T.alloc_local((1,), "float32")
        best_id = T.alloc_local((1,), "int32")
        other = T.alloc_local((1,), "float32")
        other_id = T.alloc_local((1,), "int32")
        picked = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        for i in T.serial(per_lane, unroll=True):
            sigma[i] = T.float32(1) / (T.float32(1) + T.call_extern("float32", "tk_exp2", logit[i] * T.float32(-LOG2E)))
            score[i] = sigma[i] + bias[i]
            # NaN is last in the total order: as -inf it still has an id to break ties with.
            if T.call_extern("int32", "tk_is_nan", score[i]) != 0:
                score[i] = T.float32(NEG_INF)
            taken[i] = 0
            if i * 32 + lane >= experts:
                taken[i] = 1
        total[0] = T.float32(0)
        for j in T.serial(k, unroll=True):
            best[0] = T.float32(NEG_INF)
            best_id[0] = NONE
            for i in T.serial(per_lane, unroll=True):
                if taken[i] == 0 and (score[i] > best[0] or best_id[0] == NONE):
                    best[0] = score[i]
                    best_id[0] = i * 32 + lane
            for s in T.serial(5, unroll=True):
                other[0] = T.call_extern("float32", "tk_shfl_xor_f32", best[0], 1 << s)
                other_id[0] = T.call_extern("int32", "tk_shfl_xor_i32", best_id[0], 1 << s)
                if other[0] > best[0] or (other[0] == best[0] and other_id[0] < best_id[0]):
                    best[0] = other[0]
                    best_id[0] = other_id[0]
            picked[0] = T.float32(0)
            for i in T.serial(per_lane, unroll=True):
                if i * 32 + lane == best_id[0]:
                    picked[0] = sigma[i]
                    taken[i] = 1
            # Only one lane holds the expert; the sum hands its value to all.
            for s in T.serial(5, unroll=True):
                picked[0] = picked[0] + T.call_extern("float32", "tk_shfl_xor_f32", picked[0], 1 << s)
            ids[j] = best_id[0]
            weight[j] = picked[0]
            total[0] = total[0] + picked[0]
        for j in T.serial(k, unroll=True):
            if norm != 0:
                weight[j] = weight[j] / (total[0] + T.float32(1e-20)) * scaling
            else:
                weight[j] = weight[j] * scaling

    return router_topk
