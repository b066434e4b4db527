// Conversions between number formats, two-lane arithmetic and bit operations in PTX.
#pragma once

namespace tk {

// ---- float32 and f16 --------------------------------------------------------------------------------

TK_FN u32 cvt_f16x2(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
TK_FN u32 f2h(float f) {
  u32 r;
  asm("{\n.reg .b16 h;\ncvt.rn.f16.f32 h, %1;\ncvt.u32.u16 %0, h;\n}" : "=r"(r) : "f"(f));
  return r;
}
TK_FN float h2f(u32 low16) {
  float r;
  asm("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(r) : "r"(low16));
  return r;
}
TK_FN float h_lo(u32 v) { return h2f(v & 0xffffu); }
TK_FN float h_hi(u32 v) { return h2f(v >> 16); }
TK_FN u32 f16x2_mul(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
TK_FN u32 f16x2_add(u32 a, u32 b) {
  u32 r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
TK_FN u32 f16x2_fma(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// ---- fp8: two codes in the low 16 bits, the first in the low byte. Too large becomes the largest finite. ----

#define TK_FROM_F32X2(name, type)                                                          \
  TK_FN u32 name(float lo, float hi) {                                                     \
    u32 r;                                                                                 \
    asm("{\n.reg .b16 h;\ncvt.rn.satfinite." type ".f32 h, %1, %2;\ncvt.u32.u16 %0, h;\n}" \
        : "=r"(r)                                                                          \
        : "f"(hi), "f"(lo));                                                               \
    return r;                                                                              \
  }
TK_FROM_F32X2(cvt_e4m3x2, "e4m3x2")
TK_FROM_F32X2(cvt_e5m2x2, "e5m2x2")
#undef TK_FROM_F32X2

#define TK_FROM_F16X2(name, type)                                                                             \
  TK_FN u32 name(u32 v) {                                                                                     \
    u32 r;                                                                                                    \
    asm("{\n.reg .b16 h;\ncvt.rn.satfinite." type ".f16x2 h, %1;\ncvt.u32.u16 %0, h;\n}" : "=r"(r) : "r"(v)); \
    return r;                                                                                                 \
  }
TK_FROM_F16X2(f16x2_to_e4m3x2, "e4m3x2")
TK_FROM_F16X2(f16x2_to_e5m2x2, "e5m2x2")
#undef TK_FROM_F16X2

#define TK_TO_F16X2(name, type)                                                                        \
  TK_FN u32 name(u32 pair) {                                                                           \
    u32 r;                                                                                             \
    asm("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\ncvt.rn.f16x2." type " %0, h;\n}" : "=r"(r) : "r"(pair)); \
    return r;                                                                                          \
  }
TK_TO_F16X2(e4m3x2_to_f16x2, "e4m3x2")
TK_TO_F16X2(e5m2x2_to_f16x2, "e5m2x2")
#undef TK_TO_F16X2

// ---- fp4 and its scales: conversion instructions on Blackwell, the same bits in integer arithmetic on Hopper ----

// Two e2m1 codes of the low byte, the low nibble first.
TK_FN u32 e2m1x2_to_f16x2(u32 byte) {
#if __CUDA_ARCH__ >= 1000
  u32 r;
  asm("{\n.reg .b8 b;\n.reg .b16 h;\ncvt.u16.u32 h, %1;\nmov.b16 {b, _}, h;\ncvt.rn.f16x2.e2m1x2 %0, b;\n}"
      : "=r"(r)
      : "r"(byte));
  return r;
#else
  // Sign to bit 15, exponent and mantissa to bits 11-9: 2^-14 of the value, subnormal code included.
  const u32 nibbles = (byte & 0x0fu) | (byte & 0xf0u) << 12;
  return f16x2_mul((nibbles & 0x00080008u) << 12 | (nibbles & 0x00070007u) << 9, 0x74007400u);
#endif
}
// Two e8m0 scales of the low 16 bits: 2^(s - 127); 255 is NaN.
TK_FN u32 e8m0x2_to_bf16x2(u32 pair) {
#if __CUDA_ARCH__ >= 1000
  u32 r;
  asm("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\ncvt.rn.bf16x2.ue8m0x2 %0, h;\n}" : "=r"(r) : "r"(pair));
  return r;
#else
  const u32 lo = pair & 0xffu, hi = (pair >> 8) & 0xffu;
  const u32 bits_lo = lo == 255u ? 0x7fffu : lo ? lo << 7 : 0x40u;
  const u32 bits_hi = hi == 255u ? 0x7fffu : hi ? hi << 7 : 0x40u;
  return bits_lo | bits_hi << 16;
#endif
}

// ---- bits -------------------------------------------------------------------------------------------

// Any function of three bits: bit (4a + 2b + c) of TABLE.
template <u32 TABLE>
TK_FN u32 lop3(u32 a, u32 b, u32 c) {
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
  return r;
}
// Bits [pos, pos + len) of v; bfe_i32 extends their sign.
TK_FN u32 bfe_u32(u32 v, u32 pos, u32 len) {
  u32 r;
  asm("bfe.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(v), "r"(pos), "r"(len));
  return r;
}
TK_FN i32 bfe_i32(i32 v, u32 pos, u32 len) {
  i32 r;
  asm("bfe.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(v), "r"(pos), "r"(len));
  return r;
}
// `into` with bits [pos, pos + len) taken from the low bits of `from`.
TK_FN u32 bfi(u32 from, u32 into, u32 pos, u32 len) {
  u32 r;
  asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(from), "r"(into), "r"(pos), "r"(len));
  return r;
}
// Funnel shifts of hi:lo; by n mod 32, the clamp forms by min(n, 32).
TK_FN u32 shf_l(u32 lo, u32 hi, u32 n) { return __funnelshift_l(lo, hi, n); }
TK_FN u32 shf_r(u32 lo, u32 hi, u32 n) { return __funnelshift_r(lo, hi, n); }
TK_FN u32 shf_l_clamp(u32 lo, u32 hi, u32 n) { return __funnelshift_lc(lo, hi, n); }
TK_FN u32 shf_r_clamp(u32 lo, u32 hi, u32 n) { return __funnelshift_rc(lo, hi, n); }

TK_FN float tanh_(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// ---- warp reductions and votes ------------------------------------------------------------------------

TK_FN u32 redux_add(u32 v) { return __reduce_add_sync(0xffffffffu, v); }
TK_FN u32 redux_min(u32 v) { return __reduce_min_sync(0xffffffffu, v); }
TK_FN u32 redux_max(u32 v) { return __reduce_max_sync(0xffffffffu, v); }
TK_FN u32 redux_and(u32 v) { return __reduce_and_sync(0xffffffffu, v); }
TK_FN u32 redux_or(u32 v) { return __reduce_or_sync(0xffffffffu, v); }
TK_FN u32 redux_xor(u32 v) { return __reduce_xor_sync(0xffffffffu, v); }
TK_FN bool all_lanes(bool pred) { return __all_sync(0xffffffffu, pred); }
TK_FN bool any_lane(bool pred) { return __any_sync(0xffffffffu, pred); }
// Lanes that hold the same value.
TK_FN u32 match_any(u32 v) { return __match_any_sync(0xffffffffu, v); }

}  // namespace tk
