// Arithmetic and warp exchange: out[i] = op(in[i]), i < n, n a multiple of the launched threads.
#include "conformance.h"

using namespace tk;

TK_FN u32 u(i32 v) { return static_cast<u32>(v); }
TK_FN i32 s(u32 v) { return static_cast<i32>(v); }

TK_FN u32x2 arithmetic(u32 op, u32x4 v) {
  const float f = u2f(v.x), g = u2f(v.y);
  switch (op) {
    case 0: return u32x2{f2u(exp2_(f)), f2u(tk_exp2(g))};
    case 1: return u32x2{f2u(lg2_(f)), f2u(lg2_(g))};
    case 2: return u32x2{f2u(rcp_(f)), f2u(tk_rcp(g))};
    case 3: return u32x2{f2u(rsqrt_(f)), f2u(tk_rsqrt(g))};
    case 4: return u32x2{f2u(tanh_(f)), f2u(tanh_(g))};
    case 5: return u32x2{f2u(fmin_(f, g)), f2u(fmax_(f, g))};
    case 6: return u32x2{cvt_bf16x2(f, g), f2bf(f)};
    case 7: return u32x2{f2u(bf_lo(v.x)), f2u(bf_hi(v.x))};
    case 8: return u32x2{bf16x2_mul(v.x, v.y), bf16x2_add(v.x, v.y)};
    case 9: return u32x2{bf16x2_fma(v.x, v.y, v.z), f2u(bf2f(v.x & 0xffffu))};
    case 10: return u32x2{cvt_f16x2(f, g), f2h(f)};
    case 11: return u32x2{f2u(h_lo(v.x)), f2u(h_hi(v.x))};
    case 12: return u32x2{f16x2_mul(v.x, v.y), f16x2_add(v.x, v.y)};
    case 13: return u32x2{f16x2_fma(v.x, v.y, v.z), f2u(h2f(v.x & 0xffffu))};
    case 14: return u32x2{cvt_e4m3x2(f, g), cvt_e5m2x2(f, g)};
    case 15: return u32x2{f16x2_to_e4m3x2(v.x), f16x2_to_e5m2x2(v.x)};
    case 16: return u32x2{e4m3x2_to_f16x2(v.x & 0xffffu), e5m2x2_to_f16x2(v.x & 0xffffu)};
    case 17: return u32x2{e2m1x2_to_f16x2(v.x & 0xffu), e8m0x2_to_bf16x2(v.x & 0xffffu)};
    case 18: return u32x2{prmt(v.x, v.y, v.z), popc(v.x)};
    case 19: return u32x2{lop3<0xe8>(v.x, v.y, v.z), lop3<0x96>(v.x, v.y, v.z)};
    case 20: return u32x2{lop3<0xca>(v.x, v.y, v.z), lop3<0x1b>(v.x, v.y, v.z)};
    case 21: return u32x2{bfe_u32(v.x, v.y, v.z), u(bfe_i32(s(v.x), v.y, v.z))};
    case 22: return u32x2{bfi(v.x, v.w, v.y, v.z), v.w};
    case 23: return u32x2{shf_l(v.x, v.y, v.z), shf_r(v.x, v.y, v.z)};
    case 25: return u32x2{f2u(canonical(f)), canonical_bf16x2(v.y)};
    case 26: return u32x2{f2u(fma_(f, g, u2f(v.z))), f2u(fma_(g, u2f(v.z), u2f(v.w)))};
    default: return u32x2{shf_l_clamp(v.x, v.y, v.z), shf_r_clamp(v.x, v.y, v.z)};
  }
}

TK_FN u32x2 exchange(u32 op, u32 arg, u32x4 v) {
  const float f = u2f(v.x);
  switch (op) {
    case 32: return u32x2{f2u(shfl_xor(f, arg)), shfl_xor(v.y, arg)};
    case 33: return u32x2{f2u(shfl_idx(f, v.y)), shfl_idx(v.x, arg)};
    case 34: return u32x2{f2u(shfl_up(f, arg)), shfl_up(v.x, arg)};
    case 35: return u32x2{f2u(shfl_down(f, arg)), shfl_down(v.x, arg)};
    case 36: return u32x2{u(shfl_xor(s(v.x), arg)), u(shfl_idx(s(v.y), arg))};
    case 37: return u32x2{u(shfl_up(s(v.x), arg)), u(shfl_down(s(v.y), arg))};
    case 38: return u32x2{f2u(tk_shfl_xor_f32(f, 1)), u(tk_shfl_xor_i32(s(v.y), 16))};
    case 39: return u32x2{tk::ballot(v.x & 1u), match_any(v.y & 3u)};
    case 40: return u32x2{redux_add(v.x), redux_xor(v.y)};
    case 41: return u32x2{redux_min(v.x), redux_max(v.y)};
    case 42: return u32x2{redux_and(v.x), redux_or(v.y)};
    case 43: return u32x2{all_lanes((v.x & 0xffu) != 0u) ? 1u : 0u, any_lane((v.y & 0xffu) == 0u) ? 1u : 0u};
    default: return u32x2{lane() | warp() << 8 | cta() << 16 | ncta() << 24, elect() ? 1u : 0u};
  }
}

TK_KERNEL(conformance_math, 256)(TK_GRID_CONST ConformanceParams p) {
  const u32 step = ncta() * 256u;
  for (u32 i = cta() * 256u + warp() * 32u + lane(); i < p.n; i += step) {
    const u32x4 v = ldg_nc128(p.in + 16 * i);
    stg64(p.out + 8 * i, p.op < 32u ? arithmetic(p.op, v) : exchange(p.op, p.arg[0], v));
  }
}
TK_EMU_ENTRY(conformance_math, ConformanceParams)
