// Conversions between number formats, two-lane arithmetic and bit operations of the emulation.
#pragma once
#include <math.h>
#include <string.h>

namespace tk_emu {
TK_HIDDEN uint32_t float_to_half(float f);  // nearest even; NaN becomes 0x7fff
TK_HIDDEN float half_to_float(uint32_t bits);
TK_HIDDEN uint32_t half_fma(uint32_t a, uint32_t b, uint32_t c);
TK_HIDDEN uint32_t float_to_e4m3(float f);  // saturating to the largest finite
TK_HIDDEN uint32_t float_to_e5m2(float f);
TK_HIDDEN uint32_t e4m3_to_half(uint32_t code);
TK_HIDDEN uint32_t e5m2_to_half(uint32_t code);
TK_HIDDEN float tanh_approx(float x);
}  // namespace tk_emu

namespace tk {

TK_FN u32 f2h(float f) { return tk_emu::float_to_half(f); }
TK_FN float h2f(u32 low16) { return tk_emu::half_to_float(low16 & 0xffffu); }
TK_FN float h_lo(u32 v) { return h2f(v & 0xffffu); }
TK_FN float h_hi(u32 v) { return h2f(v >> 16); }
TK_FN u32 cvt_f16x2(float lo, float hi) { return f2h(lo) | f2h(hi) << 16; }
// A float holds the product exactly, and is wide enough for a sum to round as if once.
TK_FN u32 f16x2_mul(u32 a, u32 b) { return cvt_f16x2(h_lo(a) * h_lo(b), h_hi(a) * h_hi(b)); }
TK_FN u32 f16x2_add(u32 a, u32 b) { return cvt_f16x2(h_lo(a) + h_lo(b), h_hi(a) + h_hi(b)); }
TK_FN u32 f16x2_fma(u32 a, u32 b, u32 c) {
  return tk_emu::half_fma(a & 0xffffu, b & 0xffffu, c & 0xffffu) | tk_emu::half_fma(a >> 16, b >> 16, c >> 16) << 16;
}

TK_FN u32 cvt_e4m3x2(float lo, float hi) { return tk_emu::float_to_e4m3(lo) | tk_emu::float_to_e4m3(hi) << 8; }
TK_FN u32 cvt_e5m2x2(float lo, float hi) { return tk_emu::float_to_e5m2(lo) | tk_emu::float_to_e5m2(hi) << 8; }
TK_FN u32 f16x2_to_e4m3x2(u32 v) { return cvt_e4m3x2(h_lo(v), h_hi(v)); }
TK_FN u32 f16x2_to_e5m2x2(u32 v) { return cvt_e5m2x2(h_lo(v), h_hi(v)); }
TK_FN u32 e4m3x2_to_f16x2(u32 pair) {
  return tk_emu::e4m3_to_half(pair & 0xffu) | tk_emu::e4m3_to_half((pair >> 8) & 0xffu) << 16;
}
TK_FN u32 e5m2x2_to_f16x2(u32 pair) {
  return tk_emu::e5m2_to_half(pair & 0xffu) | tk_emu::e5m2_to_half((pair >> 8) & 0xffu) << 16;
}
TK_FN u32 e2m1x2_to_f16x2(u32 byte) {
  const u32 nibbles = (byte & 0x0fu) | (byte & 0xf0u) << 12;
  return f16x2_mul((nibbles & 0x00080008u) << 12 | (nibbles & 0x00070007u) << 9, 0x74007400u);
}
TK_FN u32 e8m0x2_to_bf16x2(u32 pair) {
  const u32 lo = pair & 0xffu, hi = (pair >> 8) & 0xffu;
  const u32 bits_lo = lo == 255u ? 0x7fffu : lo ? lo << 7 : 0x40u;
  const u32 bits_hi = hi == 255u ? 0x7fffu : hi ? hi << 7 : 0x40u;
  return bits_lo | bits_hi << 16;
}

template <u32 TABLE>
TK_FN u32 lop3(u32 a, u32 b, u32 c) {
  static_assert(TABLE < 256, "lop3 takes a table of 8 bits");
  u32 r = 0;
  for (u32 i = 0; i < 8; i++)
    if (TABLE >> i & 1u) r |= (i & 4u ? a : ~a) & (i & 2u ? b : ~b) & (i & 1u ? c : ~c);
  return r;
}
TK_FN u32 bfe_u32(u32 v, u32 pos, u32 len) {
  pos &= 0xffu, len &= 0xffu;
  if (pos > 31u || !len) return 0u;
  return v >> pos & (len > 31u ? ~0u : (1u << len) - 1u);
}
TK_FN i32 bfe_i32(i32 v, u32 pos, u32 len) {
  pos &= 0xffu, len &= 0xffu;
  if (!len) return 0;
  const u32 last = pos + len - 1u > 31u ? 31u : pos + len - 1u;  // its bit fills what lies above
  const u32 sign = static_cast<u32>(v) >> last & 1u ? ~0u : 0u;
  u32 r = 0;
  for (u32 i = 0; i < 32; i++) {
    const bool inside = i < len && pos + i <= 31u;
    r |= (inside ? static_cast<u32>(v) >> (pos + i) & 1u : sign & 1u) << i;
  }
  return static_cast<i32>(r);
}
TK_FN u32 bfi(u32 from, u32 into, u32 pos, u32 len) {
  pos &= 0xffu, len &= 0xffu;
  if (pos > 31u || !len) return into;
  const u32 mask = (len > 31u ? ~0u : (1u << len) - 1u) << pos;
  return (into & ~mask) | (from << pos & mask);
}
TK_FN u32 shf_l_clamp(u32 lo, u32 hi, u32 n) { return n >= 32u ? lo : n ? hi << n | lo >> (32u - n) : hi; }
TK_FN u32 shf_r_clamp(u32 lo, u32 hi, u32 n) { return n >= 32u ? hi : n ? hi << (32u - n) | lo >> n : lo; }
TK_FN u32 shf_l(u32 lo, u32 hi, u32 n) { return shf_l_clamp(lo, hi, n & 31u); }
TK_FN u32 shf_r(u32 lo, u32 hi, u32 n) { return shf_r_clamp(lo, hi, n & 31u); }

TK_FN float tanh_(float x) { return tk_emu::tanh_approx(x); }

}  // namespace tk

namespace tk_emu {

// All lanes get reduce(a, b) over their values.
template <class Reduce>
TK_ALWAYS uint32_t warp_reduce(uint32_t value, const char* what, Site site, Reduce reduce) {
  Exchange mine{value, 0, 0};
  collective(&mine, what, site, [&](Warp* w) {
    w->counts[kShfl]++;
    uint32_t all = static_cast<Exchange*>(w->slot[0])->in;
    for (int i = 1; i < kLanes; i++) all = reduce(all, static_cast<Exchange*>(w->slot[i])->in);
    for (int i = 0; i < kLanes; i++) static_cast<Exchange*>(w->slot[i])->out = all;
    release_all(w);
  });
  return mine.out;
}

}  // namespace tk_emu

namespace tk {

TK_FN u32 redux_add(u32 v, TK_SITE) {
  return tk_emu::warp_reduce(v, "redux_add", site, [](u32 a, u32 b) { return a + b; });
}
TK_FN u32 redux_min(u32 v, TK_SITE) {
  return tk_emu::warp_reduce(v, "redux_min", site, [](u32 a, u32 b) { return a < b ? a : b; });
}
TK_FN u32 redux_max(u32 v, TK_SITE) {
  return tk_emu::warp_reduce(v, "redux_max", site, [](u32 a, u32 b) { return a > b ? a : b; });
}
TK_FN u32 redux_and(u32 v, TK_SITE) {
  return tk_emu::warp_reduce(v, "redux_and", site, [](u32 a, u32 b) { return a & b; });
}
TK_FN u32 redux_or(u32 v, TK_SITE) {
  return tk_emu::warp_reduce(v, "redux_or", site, [](u32 a, u32 b) { return a | b; });
}
TK_FN u32 redux_xor(u32 v, TK_SITE) {
  return tk_emu::warp_reduce(v, "redux_xor", site, [](u32 a, u32 b) { return a ^ b; });
}
TK_FN bool all_lanes(bool pred, TK_SITE) {
  return tk_emu::warp_reduce(pred, "all_lanes", site, [](u32 a, u32 b) { return a & b; }) != 0;
}
TK_FN bool any_lane(bool pred, TK_SITE) {
  return tk_emu::warp_reduce(pred, "any_lane", site, [](u32 a, u32 b) { return a | b; }) != 0;
}
TK_FN u32 match_any(u32 v, TK_SITE) {
  tk_emu::Exchange mine{v, 0, 0};
  tk_emu::collective(&mine, "match_any", site, [](tk_emu::Warp* w) {
    w->counts[tk_emu::kShfl]++;
    for (int i = 0; i < tk_emu::kLanes; i++) {
      tk_emu::Exchange* e = static_cast<tk_emu::Exchange*>(w->slot[i]);
      e->out = 0;
      for (int j = 0; j < tk_emu::kLanes; j++)
        e->out |= (static_cast<tk_emu::Exchange*>(w->slot[j])->in == e->in ? 1u : 0u) << j;
    }
    tk_emu::release_all(w);
  });
  return mine.out;
}

}  // namespace tk
