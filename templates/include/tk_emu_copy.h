// cp.async, cache hints and bulk reductions of the emulation.
#pragma once

namespace tk_emu {

TK_HIDDEN void cp_async(uint32_t dst, const void* src, uint32_t bytes, const char* what, Site site);
TK_HIDDEN void cp_async_commit();
TK_HIDDEN void cp_async_wait(uint32_t keep);
enum class ReduceType { kF32, kBf16, kU32 };
TK_HIDDEN void bulk_reduce_add(void* dst, uint32_t src, uint32_t bytes, ReduceType type, const char* what, Site site);

}  // namespace tk_emu

namespace tk {

TK_FN void cp_async16(smem_t dst, const void* src, TK_SITE) { tk_emu::cp_async(dst, src, 16, "cp_async16", site); }
TK_FN void cp_async16_zfill(smem_t dst, const void* src, u32 bytes, TK_SITE) {
  tk_emu::cp_async(dst, src, bytes, "cp_async16_zfill", site);
}
TK_FN void cp_async_commit() { tk_emu::cp_async_commit(); }
template <int N>
TK_FN void cp_async_wait() {
  tk_emu::cp_async_wait(N);
}

TK_FN u64 l2_evict_first() { return 1; }
TK_FN u64 l2_evict_last() { return 2; }
#define TK_LDG_NC128(name)                                                      \
  TK_FN u32x4 name(const void* p, TK_SITE) {                                    \
    tk_emu::preempt_point();                                                    \
    return tk_emu::global_load<u32x4>(tk_emu::kReadOnlyWindow, p, #name, site); \
  }
TK_LDG_NC128(ldg_nc128_noalloc)
TK_LDG_NC128(ldg_nc128_stream)
#undef TK_LDG_NC128
TK_FN u32x4 ldg_nc128_hint(const void* p, u64, TK_SITE) {
  tk_emu::preempt_point();
  return tk_emu::global_load<u32x4>(tk_emu::kReadOnlyWindow, p, "ldg_nc128_hint", site);
}
TK_FN void bulk_g2s_hint(smem_t dst, const void* src, u32 bytes, smem_t bar, u64, TK_SITE) {
  if (elect()) tk_emu::bulk_g2s(dst, src, bytes, bar, site);
}

#define TK_BULK_REDUCE(name, type)                                                                \
  TK_FN void name(void* dst, smem_t src, u32 bytes, TK_SITE) {                                    \
    if (elect()) tk_emu::bulk_reduce_add(dst, src, bytes, tk_emu::ReduceType::type, #name, site); \
  }
TK_BULK_REDUCE(bulk_reduce_add_f32, kF32)
TK_BULK_REDUCE(bulk_reduce_add_bf16, kBf16)
TK_BULK_REDUCE(bulk_reduce_add_u32, kU32)
#undef TK_BULK_REDUCE

}  // namespace tk
