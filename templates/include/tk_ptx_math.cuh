// Tensor cores, conversions and fast math in PTX.
#pragma once

namespace tk {

TK_FN u32 f2u(float f) { return __float_as_uint(f); }
TK_FN float u2f(u32 u) { return __uint_as_float(u); }

// C[16][8] += A[16][16] B[16][8], bf16 in, f32 accumulate. Fragments as in the PTX manual: with
// g = lane / 4 and t = lane % 4, a = (g,2t..) (g+8,2t..) (g,2t+8..) (g+8,2t+8..), b = (2t..,g) (2t+8..,g),
// c = (g,2t) (g,2t+1) (g+8,2t) (g+8,2t+1).
TK_FN void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// N steps of K into one accumulator, in order.
template <int N>
TK_FN void mma_bf16_n(float (&c)[4], const u32 (&a)[N][4], const u32 (&b)[N][2]) {
  TK_UNROLL for (int i = 0; i < N; i++) mma_bf16(c, a[i], b[i]);
}

TK_FN u32 bf16x2_mul(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
TK_FN u32 bf16x2_add(u32 a, u32 b) {
  u32 r;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
TK_FN u32 bf16x2_fma(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
TK_FN u32 cvt_bf16x2(float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
TK_FN u32 f2bf(float f) {
  u32 r;
  asm("{\n.reg .b16 h;\ncvt.rn.bf16.f32 h, %1;\ncvt.u32.u16 %0, h;\n}" : "=r"(r) : "f"(f));
  return r;
}
TK_FN float bf2f(u32 low16) { return __uint_as_float(low16 << 16); }
TK_FN float bf_lo(u32 v) { return __uint_as_float(v << 16); }
TK_FN float bf_hi(u32 v) { return __uint_as_float(v & 0xffff0000u); }
// NaNs as the conversions make them: what data-as-flag words carry.
TK_FN float canonical(float x) { return x != x ? u2f(0x7fffffffu) : x; }
TK_FN u32 canonical_bf16x2(u32 v) {
  if ((v & 0x7fffu) > 0x7f80u) v = (v & 0xffff0000u) | 0x7fffu;
  if ((v & 0x7fff0000u) > 0x7f800000u) v = (v & 0xffffu) | 0x7fff0000u;
  return v;
}

TK_FN float exp2_(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
TK_FN float lg2_(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
TK_FN float rcp_(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
TK_FN float rsqrt_(float x) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
TK_FN float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TK_FN float fmin_(float a, float b) { return fminf(a, b); }
TK_FN float fmax_(float a, float b) { return fmaxf(a, b); }
TK_FN u32 popc(u32 v) { return static_cast<u32>(__popc(v)); }
TK_FN u32 prmt(u32 a, u32 b, u32 sel) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sel));
  return r;
}

}  // namespace tk

// Names that generated bodies call as plain C functions.
TK_FN float tk_shfl_xor_f32(float v, int mask) { return tk::shfl_xor(v, static_cast<tk::u32>(mask)); }
TK_FN int tk_shfl_xor_i32(int v, int mask) { return tk::shfl_xor(v, static_cast<tk::u32>(mask)); }
TK_FN float tk_exp2(float x) { return tk::exp2_(x); }
TK_FN float tk_rcp(float x) { return tk::rcp_(x); }
TK_FN float tk_rsqrt(float x) { return tk::rsqrt_(x); }
