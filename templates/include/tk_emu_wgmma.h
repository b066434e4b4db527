// wgmma in the emulation. Each warp multiplies its 16 rows; the warps of a group must issue the same sequence.
#pragma once

namespace tk_emu {

struct WgmmaSlot {
  float* d;
  const uint32_t* a_registers;  // null: a descriptor
  uint64_t a, b;
  bool accumulate;
};
TK_HIDDEN void wgmma_issue(Warp* warp, int columns, bool fp8, const char* what, Site site);
TK_HIDDEN void wgmma_fence(Site site);
TK_HIDDEN void wgmma_commit(Site site);
TK_HIDDEN void wgmma_wait(uint32_t keep, Site site);
TK_HIDDEN uint64_t wgmma_desc(uint32_t a, uint32_t lbo, uint32_t sbo, bool swizzled, Site site);

TK_ALWAYS void wgmma(WgmmaSlot slot, int columns, bool fp8, const char* what, Site site) {
  collective(&slot, what, site, [=](Warp* w) {
    wgmma_issue(w, columns, fp8, what, site);
    release_all(w);
  });
}

}  // namespace tk_emu

namespace tk {

TK_FN u64 wgmma_desc(smem_t a, u32 lbo, u32 sbo, TK_SITE) { return tk_emu::wgmma_desc(a, lbo, sbo, false, site); }
TK_FN u64 wgmma_desc_128b(smem_t a, u32 sbo = 1024, TK_SITE) { return tk_emu::wgmma_desc(a, 16, sbo, true, site); }
TK_FN void wgmma_fence(TK_SITE) { tk_emu::wgmma_fence(site); }
TK_FN void wgmma_commit(TK_SITE) { tk_emu::wgmma_commit(site); }
template <int N>
TK_FN void wgmma_wait(TK_SITE) {
  tk_emu::wgmma_wait(N, site);
}
template <int M>
TK_FN void wgmma_hold(float (&)[M]) {}

template <int N>
TK_FN void wgmma_bf16(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true, TK_SITE) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64, "wgmma_bf16 takes 8, 16, 32 or 64 columns");
  tk_emu::wgmma({d, nullptr, a, b, accumulate}, N, false, "wgmma_bf16", site);
}
template <int N>
TK_FN void wgmma_bf16_rs(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true, TK_SITE) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64, "wgmma_bf16_rs takes 8, 16, 32 or 64 columns");
  tk_emu::wgmma({d, a, 0, b, accumulate}, N, false, "wgmma_bf16_rs", site);
}
template <int N>
TK_FN void wgmma_e4m3(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true, TK_SITE) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64, "wgmma_e4m3 takes 8, 16, 32 or 64 columns");
  tk_emu::wgmma({d, nullptr, a, b, accumulate}, N, true, "wgmma_e4m3", site);
}

}  // namespace tk
