// cp.async, cache hints and bulk reductions in PTX.
#pragma once

namespace tk {

// ---- cp.async: 16 bytes per lane, global -> shared; each lane waits for its own --------------------------

TK_FN void cp_async16(smem_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(global_address(src)) : "memory");
}
// The first `bytes` (0 to 16) come from src, the rest is zero; src is aligned to 16 all the same.
TK_FN void cp_async16_zfill(smem_t dst, const void* src, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(global_address(src)), "r"(bytes)
               : "memory");
}
TK_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the newest N groups of this lane have landed; other lanes see them after syncwarp() or a barrier.
template <int N>
TK_FN void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- cache hints ------------------------------------------------------------------------------------------

TK_FN u64 l2_evict_first() {
  u64 p;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
  return p;
}
TK_FN u64 l2_evict_last() {
  u64 p;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p));
  return p;
}
// Read-only loads of 16 bytes: kept out of L1; out of L1 with 256 bytes prefetched into L2; with an L2 policy.
#define TK_LDG_NC128(name, modifiers)                           \
  TK_FN u32x4 name(const void* p) {                             \
    u32x4 r;                                                    \
    asm("ld.global.nc" modifiers ".v4.b32 {%0,%1,%2,%3}, [%4];" \
        : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)            \
        : "l"(__cvta_generic_to_global(p)));                    \
    return r;                                                   \
  }
TK_LDG_NC128(ldg_nc128_noalloc, ".L1::no_allocate")
TK_LDG_NC128(ldg_nc128_stream, ".L1::no_allocate.L2::256B")
#undef TK_LDG_NC128
TK_FN u32x4 ldg_nc128_hint(const void* p, u64 policy) {
  u32x4 r;
  asm("ld.global.nc.L2::cache_hint.v4.b32 {%0,%1,%2,%3}, [%4], %5;"
      : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
      : "l"(__cvta_generic_to_global(p)), "l"(policy));
  return r;
}
// bulk_g2s with an L2 policy. (L0)
TK_FN void bulk_g2s_hint(smem_t dst, const void* src, u32 bytes, smem_t bar, u64 policy) {
  if (elect())
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(dst),
        "l"(global_address(src)), "r"(bytes), "r"(bar), "l"(policy)
        : "memory");
}

// ---- bulk reductions: global += shared, element by element, in the bulk groups of lane 0. (L0) --------------

#define TK_BULK_REDUCE(name, type)                                               \
  TK_FN void name(void* dst, smem_t src, u32 bytes) {                            \
    if (elect())                                                                 \
      asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add" type \
                   " [%0], [%1], %2;" ::"l"(global_address(dst)),                \
                   "r"(src), "r"(bytes)                                          \
                   : "memory");                                                  \
  }
TK_BULK_REDUCE(bulk_reduce_add_f32, ".f32")
TK_BULK_REDUCE(bulk_reduce_add_bf16, ".noftz.bf16")
TK_BULK_REDUCE(bulk_reduce_add_u32, ".u32")
#undef TK_BULK_REDUCE

}  // namespace tk
