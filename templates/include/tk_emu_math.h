// Arithmetic of the emulation. Results depend neither on the compiler nor on the CPU: no contraction
// (-ffp-contract=off), own exp2 and log2. The GPU's approximations differ in the last places.
#pragma once
#include <math.h>
#include <string.h>

namespace tk {

TK_FN u32 f2u(float f) {
  u32 u;
  memcpy(&u, &f, 4);
  return u;
}
TK_FN float u2f(u32 u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// Round to nearest even; NaN becomes the canonical 0x7fff as the GPU's conversion makes it.
TK_FN u32 f2bf(float f) {
  const u32 u = f2u(f);
  if (TK_UNLIKELY((u & 0x7fffffffu) > 0x7f800000u)) return 0x7fffu;
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
TK_FN float bf2f(u32 low16) { return u2f(low16 << 16); }
TK_FN float bf_lo(u32 v) { return u2f(v << 16); }
TK_FN float bf_hi(u32 v) { return u2f(v & 0xffff0000u); }
TK_FN u32 cvt_bf16x2(float lo, float hi) { return f2bf(lo) | f2bf(hi) << 16; }
TK_FN u32 bf16x2_mul(u32 a, u32 b) { return cvt_bf16x2(bf_lo(a) * bf_lo(b), bf_hi(a) * bf_hi(b)); }

}  // namespace tk

namespace tk_emu {
TK_HIDDEN float exp2_approx(float x);
TK_HIDDEN float log2_approx(float x);
TK_HIDDEN uint32_t bf16_fma(uint32_t a, uint32_t b, uint32_t c);  // low halves, one rounding
TK_HIDDEN void mma_bf16_warp(Warp* warp, int steps);

// Addresses of one lane's fragments; `steps` consecutive K steps.
struct MmaSlot {
  float* c;
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};
}  // namespace tk_emu

namespace tk {

TK_FN u32 bf16x2_fma(u32 a, u32 b, u32 c) {
  return tk_emu::bf16_fma(a & 0xffffu, b & 0xffffu, c & 0xffffu) |
         tk_emu::bf16_fma(a >> 16, b >> 16, c >> 16) << 16;
}
TK_FN u32 bf16x2_add(u32 a, u32 b) { return bf16x2_fma(a, 0x3f803f80u, b); }

// NaNs as the conversions make them: what data-as-flag words carry.
TK_FN float canonical(float x) { return x != x ? u2f(0x7fffffffu) : x; }
TK_FN u32 canonical_bf16x2(u32 v) {
  if ((v & 0x7fffu) > 0x7f80u) v = (v & 0xffff0000u) | 0x7fffu;
  if ((v & 0x7fff0000u) > 0x7f800000u) v = (v & 0xffffu) | 0x7fff0000u;
  return v;
}
TK_FN float exp2_(float x) { return tk_emu::exp2_approx(x); }
TK_FN float lg2_(float x) { return tk_emu::log2_approx(x); }
TK_FN float flush(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
TK_FN float rcp_(float x) { return canonical(flush(1.0f / flush(x))); }
TK_FN float rsqrt_(float x) { return canonical(static_cast<float>(1.0 / sqrt(static_cast<double>(flush(x))))); }
TK_FN float fma_(float a, float b, float c) { return canonical(fmaf(a, b, c)); }
TK_FN float fmin_(float a, float b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  return (a < b || (a == b && (f2u(a) >> 31))) ? a : b;
}
TK_FN float fmax_(float a, float b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  return (a > b || (a == b && (f2u(b) >> 31))) ? a : b;
}
TK_FN u32 popc(u32 v) { return static_cast<u32>(__builtin_popcount(v)); }
// Byte permute: selector nibble bits 0-2 pick a byte of {b,a}, bit 3 replicates its sign.
TK_FN u32 prmt(u32 a, u32 b, u32 sel) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    const u32 s = sel >> (4 * i);
    u32 byte = static_cast<u32>(bytes >> (8 * (s & 7u))) & 0xffu;
    if (s & 8u) byte = (byte & 0x80u) ? 0xffu : 0u;
    r |= byte << (8 * i);
  }
  return r;
}

// C[16][8] += A[16][16] B[16][8] in float32, k ascending, products exact, one rounding per addition.
TK_FN void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], TK_SITE) {
  tk_emu::MmaSlot slot{c, &a, &b};
  tk_emu::collective(&slot, "mma_bf16", site, [](tk_emu::Warp* w) {
    tk_emu::mma_bf16_warp(w, 1);
    tk_emu::release_all(w);
  });
}
template <int N>
TK_FN void mma_bf16_n(float (&c)[4], const u32 (&a)[N][4], const u32 (&b)[N][2], TK_SITE) {
  tk_emu::MmaSlot slot{c, a, b};
  tk_emu::collective(&slot, "mma_bf16_n", site, [](tk_emu::Warp* w) {
    tk_emu::mma_bf16_warp(w, N);
    tk_emu::release_all(w);
  });
}

}  // namespace tk

TK_FN float tk_shfl_xor_f32(float v, int mask, TK_SITE) {
  return tk_emu::exchange_as<float>(v, tk::lane() ^ static_cast<tk::u32>(mask), "tk_shfl_xor_f32", site);
}
TK_FN int tk_shfl_xor_i32(int v, int mask, TK_SITE) {
  return tk_emu::exchange_as<int>(v, tk::lane() ^ static_cast<tk::u32>(mask), "tk_shfl_xor_i32", site);
}
TK_FN float tk_exp2(float x) { return tk::exp2_(x); }
TK_FN float tk_rcp(float x) { return tk::rcp_(x); }
TK_FN float tk_rsqrt(float x) { return tk::rsqrt_(x); }
