// One warp, one primitive: out[lane] = op(in[lane][0..3]). The operation is chosen by a parameter.
#include "tk_prim.cuh"

struct LanesParams {
  const uint32_t* in;  // [32][4]
  uint32_t* out;       // [32][2]
  uint32_t op, arg;
};

using namespace tk;

TK_FN u32x2 apply(u32 op, u32 arg, u32x4 v) {
  const float f = u2f(v.x), g = u2f(v.y);
  switch (op) {
    case 0: return u32x2{f2u(shfl_xor(f, arg)), shfl_xor(v.y, arg)};
    case 1: return u32x2{f2u(shfl_idx(f, v.y)), shfl_idx(v.x, arg)};
    case 2: return u32x2{f2u(shfl_up(f, arg)), shfl_up(v.x, arg)};
    case 3: return u32x2{f2u(shfl_down(f, arg)), shfl_down(v.x, arg)};
    case 4: return u32x2{tk::ballot(v.x & 1u), popc(v.y)};
    case 5: return u32x2{prmt(v.x, v.y, v.z), 0u};
    case 6: return u32x2{cvt_bf16x2(f, g), f2bf(f)};
    case 7: return u32x2{bf16x2_mul(v.x, v.y), bf16x2_add(v.x, v.y)};
    case 8: return u32x2{bf16x2_fma(v.x, v.y, v.z), f2u(bf2f(v.x & 0xffffu))};
    case 9: return u32x2{f2u(exp2_(f)), f2u(lg2_(f))};
    case 10: return u32x2{f2u(rcp_(f)), f2u(rsqrt_(f))};
    case 11: return u32x2{f2u(fmin_(f, g)), f2u(fmax_(f, g))};
    case 12: return u32x2{f2u(bf_lo(v.x)), f2u(bf_hi(v.x))};
    case 13: return u32x2{f2u(tk_shfl_xor_f32(f, 1)), static_cast<u32>(tk_shfl_xor_i32(static_cast<int>(v.y), 16))};
    case 14: return u32x2{f2u(tk_exp2(f)), f2u(tk_rcp(f) + tk_rsqrt(f))};
    case 15: return u32x2{static_cast<u32>(shfl_xor(static_cast<i32>(v.x), arg)), f2u(bf_hi(v.y))};
    case 16: return u32x2{static_cast<u32>(shfl_idx(static_cast<i32>(v.x), arg)), static_cast<u32>(shfl_up(static_cast<i32>(v.y), arg))};
    default: return u32x2{static_cast<u32>(shfl_down(static_cast<i32>(v.x), arg)), elect() ? 1u : 0u};
  }
}

TK_KERNEL(lanes_kernel, 32)(TK_GRID_CONST LanesParams p) {
  const u32x4 v = ldg_nc128(p.in + 4 * lane());
  stg64(p.out + 2 * lane(), apply(p.op, p.arg, v));
}
TK_EMU_ENTRY(lanes_kernel, LanesParams)
