// Shared and global memory accesses of the emulation: alignment, bounds and, if asked, shadow memory.
#pragma once
#include <string.h>

namespace tk_emu {

// An access of `bytes` (a power of two up to 16) is fine when it is aligned and all its granules belong to
// one declared region that is not an mbarrier.
TK_ALWAYS uint8_t* smem_at(uint32_t addr, uint32_t bytes, bool write, const char* what, Site site) {
  Cta* cta = cur->cta;
  const uint32_t o = addr - kSmemBase;
  const bool misaligned = (addr & (bytes - 1)) != 0;
  if (TK_UNLIKELY(misaligned || o >= cta->smem_bytes || cta->smem_bytes - o < bytes)) {
    smem_slow(addr, bytes, what, site);
  } else {
    const uint16_t id = cta->granule[o >> 3];
    if (TK_UNLIKELY(static_cast<uint16_t>(id - 1) >= kBarrierId - 1 ||
                    (bytes > 8 && cta->granule[(o >> 3) + 1] != id)))
      smem_slow(addr, bytes, what, site);
  }
  if (TK_UNLIKELY(shadow_on)) shadow_smem(addr, bytes, write, what, site);
  if (TK_UNLIKELY(banks_on)) bank_access(addr, bytes, what, site);
  return cta->smem + o;
}

TK_ALWAYS void global_check(WindowKind kind, const void* p, uint32_t bytes, uint32_t align, const char* what,
                            Site site) {
  const Window& w = window[kind];
  const uintptr_t o = reinterpret_cast<uintptr_t>(p) - w.lo;
  if (TK_UNLIKELY((reinterpret_cast<uintptr_t>(p) & (align - 1)) || o >= w.bytes || w.bytes - o < bytes))
    global_slow(kind, p, bytes, what, site);
  if (TK_UNLIKELY(shadow_on)) shadow_global(kind, p, bytes, what, site);
}

template <class T>
TK_ALWAYS T smem_load(uint32_t addr, uint32_t bytes, const char* what, Site site) {
  T v;
  memcpy(&v, smem_at(addr, bytes, false, what, site), sizeof(T));
  uint64_t* c = cur->warp->counts;
  c[kLds]++;
  c[kLdsBytes] += bytes;
  return v;
}
template <class T>
TK_ALWAYS void smem_store(uint32_t addr, T v, const char* what, Site site) {
  memcpy(smem_at(addr, sizeof(T), true, what, site), &v, sizeof(T));
  uint64_t* c = cur->warp->counts;
  c[kSts]++;
  c[kStsBytes] += sizeof(T);
}
template <class T>
TK_ALWAYS T global_load(WindowKind kind, const void* p, const char* what, Site site) {
  global_check(kind, p, sizeof(T), sizeof(T), what, site);
  T v;
  memcpy(&v, p, sizeof(T));
  uint64_t* c = cur->warp->counts;
  c[kLdg]++;
  c[kLdgBytes] += sizeof(T);
  return v;
}
template <class T>
TK_ALWAYS void global_store(void* p, T v, const char* what, Site site) {
  global_check(kWriteWindow, p, sizeof(T), sizeof(T), what, site);
  memcpy(p, &v, sizeof(T));
  uint64_t* c = cur->warp->counts;
  c[kStg]++;
  c[kStgBytes] += sizeof(T);
}

}  // namespace tk_emu

namespace tk {

#define TK_LDS(T, name, Memory)                            \
  TK_FN T name(smem_t a, TK_SITE) {                        \
    tk_emu::preempt_point();                               \
    return tk_emu::smem_load<Memory>(a, sizeof(Memory), #name, site); \
  }
TK_LDS(u32, lds32, u32)
TK_LDS(u32x2, lds64, u32x2)
TK_LDS(u32x4, lds128, u32x4)
TK_LDS(float, lds_f32, float)
TK_LDS(u32, lds_u8, uint8_t)
TK_LDS(u32, lds_u16, uint16_t)
#undef TK_LDS

#define TK_STS(T, name, Memory)                                        \
  TK_FN void name(smem_t a, T v, TK_SITE) {                            \
    tk_emu::preempt_point();                                           \
    tk_emu::smem_store<Memory>(a, static_cast<Memory>(v), #name, site); \
  }
TK_STS(u32, sts32, u32)
TK_STS(u32x2, sts64, u32x2)
TK_STS(u32x4, sts128, u32x4)
TK_STS(float, sts_f32, float)
TK_STS(u32, sts_u8, uint8_t)
TK_STS(u32, sts_u16, uint16_t)
#undef TK_STS

#define TK_LDG(T, name, Memory, window)                                  \
  TK_FN T name(const void* p, TK_SITE) {                                 \
    tk_emu::preempt_point();                                             \
    return tk_emu::global_load<Memory>(tk_emu::window, p, #name, site);  \
  }
TK_LDG(u32, ldg32, u32, kReadWindow)
TK_LDG(u32x2, ldg64, u32x2, kReadWindow)
TK_LDG(u32x4, ldg128, u32x4, kReadWindow)
TK_LDG(float, ldg_f32, float, kReadWindow)
TK_LDG(i32, ldg_i32, i32, kReadWindow)
TK_LDG(u32, ldg_u8, uint8_t, kReadWindow)
TK_LDG(u32, ldg_u16, uint16_t, kReadWindow)
TK_LDG(u32, ldg_nc32, u32, kReadOnlyWindow)
TK_LDG(u32x2, ldg_nc64, u32x2, kReadOnlyWindow)
TK_LDG(u32x4, ldg_nc128, u32x4, kReadOnlyWindow)
TK_LDG(float, ldg_nc_f32, float, kReadOnlyWindow)
#undef TK_LDG

#define TK_STG(T, name, Memory)                                           \
  TK_FN void name(void* p, T v, TK_SITE) {                                \
    tk_emu::preempt_point();                                              \
    tk_emu::global_store<Memory>(p, static_cast<Memory>(v), #name, site); \
  }
TK_STG(u32, stg_u8, uint8_t)
TK_STG(u32, stg_u16, uint16_t)
TK_STG(u32, stg32, u32)
TK_STG(u32x2, stg64, u32x2)
TK_STG(u32x4, stg128, u32x4)
TK_STG(float, stg_f32, float)
TK_STG(i32, stg_i32, i32)
#undef TK_STG

// A POD struct of 4-byte words that every lane reads from read-only memory.
template <class T>
TK_FN T ld_uniform(const T* p, TK_SITE) {
  static_assert(sizeof(T) % 4 == 0, "ld_uniform reads whole 4-byte words");
  tk_emu::global_check(tk_emu::kUniformWindow, p, sizeof(T), 4, "ld_uniform", site);
  T v;
  memcpy(&v, p, sizeof(T));
  return v;
}

}  // namespace tk
