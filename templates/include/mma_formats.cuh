// Weight formats of the main loop: how 32 columns (two k16 steps, "pair") of a weight block become A fragments and enter
// the accumulator. Block layouts: the weight image (docs/architecture.md). Every decode is exact.
#pragma once
#include "op_common.cuh"

namespace tilecc {
enum class Format { kBf16, kF32, kFp8, kMxfp4 };

template <Format F>
struct Block;
template <>
struct Block<Format::kBf16> {
  static constexpr u32 kBytes = 4096;
};
template <>
struct Block<Format::kF32> {
  static constexpr u32 kBytes = 8192;
};
template <>
struct Block<Format::kFp8> {
  static constexpr u32 kBytes = 2112, kScales = 2048;
};
template <>
struct Block<Format::kMxfp4> {
  static constexpr u32 kBytes = 1088, kScales = 1024;
};

// The B fragments of one pair: columns 16 s .. 16 s + 31 of eight activation rows.
TK_FN void load_b_pair(smem_t acts, u32 step, u32 lane, u32 (&b)[2][2]) {
  TK_UNROLL
  for (int i = 0; i < 2; ++i) {
    const tk::u32x2 v = tk::lds64(acts + (step + i) * 256 + lane * 8);
    b[i][0] = v.x;
    b[i][1] = v.y;
  }
}

// Two e4m3 codes (bytes 0 and 1 of `codes`) as bf16x2: the code's exponent and mantissa moved into the bf16 fields read
// 2^-120 too small, subnormal codes included, so one exact multiplication by 2^120 finishes the conversion.
TK_FN u32 e4m3x2_to_bf16x2(u32 codes) {
  const u32 v = tk::prmt(codes, 0, 0x4140);
  const u32 fields = ((v & 0x00800080u) << 8) | ((v & 0x007f007fu) << 4);
  return tk::bf16x2_mul(fields, 0x7b807b80u);
}

// Two e2m1 codes (low byte of `codes`) as bf16x2: fields are 2^-126 too small (Open Compute MX spec v1.0, e2m1).
TK_FN u32 e2m1x2_to_bf16x2(u32 codes) {
  const u32 fields = ((codes & 0x08u) << 12) | ((codes & 0x07u) << 6) | ((codes & 0x80u) << 24) | ((codes & 0x70u) << 18);
  return tk::bf16x2_mul(fields, 0x7e807e80u);
}

// 2^(code - 127) in both halves; code 0 is the bf16 subnormal 2^-127. Legal codes are 0..252 (the packer refuses others).
TK_FN u32 e8m0_to_bf16x2(u32 code) {
  const u32 v = code == 0 ? 0x0040u : code << 7;
  return v | (v << 16);
}

// acc += W[16 rows, pair] * b for one pair of the block at `block`.
template <Format F>
TK_FN void mma_pair(float (&acc)[4], smem_t block, u32 pair, u32 lane, const u32 (&b)[2][2]) {
  u32 a[2][4];
  if constexpr (F == Format::kBf16) {
    TK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const tk::u32x4 v = tk::lds128(block + (pair * 2 + i) * 512 + lane * 16);
      a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
    }
    tk::mma_bf16_n<2>(acc, a, b);
  } else if constexpr (F == Format::kFp8) {
    // y = sum over blocks of scale * (sum of code * x): the scale is float32, so it multiplies the accumulator.
    const tk::u32x4 v = tk::lds128(block + pair * 512 + lane * 16);
    const u32 w[4] = {v.x, v.y, v.z, v.w};
    TK_UNROLL
    for (int i = 0; i < 2; ++i) {
      TK_UNROLL
      for (int j = 0; j < 2; ++j) {
        a[i][2 * j] = e4m3x2_to_bf16x2(w[2 * i + j]);
        a[i][2 * j + 1] = e4m3x2_to_bf16x2(w[2 * i + j] >> 16);
      }
    }
    float part[4] = {0.f, 0.f, 0.f, 0.f};
    tk::mma_bf16_n<2>(part, a, b);
    const u32 g = lane >> 2;
    const float s0 = tk::lds_f32(block + Block<F>::kScales + g * 4), s1 = tk::lds_f32(block + Block<F>::kScales + (g + 8) * 4);
    acc[0] += s0 * part[0], acc[1] += s0 * part[1], acc[2] += s1 * part[2], acc[3] += s1 * part[3];
  } else if constexpr (F == Format::kMxfp4) {
    const tk::u32x2 v = tk::lds64(block + pair * 256 + lane * 8);
    const u32 w[2] = {v.x, v.y}, g = lane >> 2;
    const u32 s0 = e8m0_to_bf16x2(tk::lds_u8(block + Block<F>::kScales + g * 4 + pair));
    const u32 s1 = e8m0_to_bf16x2(tk::lds_u8(block + Block<F>::kScales + (g + 8) * 4 + pair));
    TK_UNROLL
    for (int i = 0; i < 2; ++i) {
      TK_UNROLL
      for (int j = 0; j < 4; ++j) a[i][j] = tk::bf16x2_mul(e2m1x2_to_bf16x2(w[i] >> (8 * j)), (j & 1) ? s1 : s0);
    }
    tk::mma_bf16_n<2>(acc, a, b);
  } else {
    // A float32 weight is the exact sum of three bf16 numbers (8 + 8 + 8 bits), so three bf16 products give an f32 one.
    u32 mid[2][4], low[2][4];
    TK_UNROLL
    for (int i = 0; i < 2; ++i) {
      TK_UNROLL
      for (int h = 0; h < 2; ++h) {
        const tk::u32x4 v = tk::lds128(block + (((pair * 2 + i) * 2 + h) * 32 + lane) * 16);
        const u32 bits[4] = {v.x, v.y, v.z, v.w};
        u32 hi_[4], mid_[4], low_[4];
        TK_UNROLL
        for (int j = 0; j < 4; ++j) {
          hi_[j] = bits[j] & 0xffff0000u;
          const float r1 = tk::u2f(bits[j]) - tk::u2f(hi_[j]);
          mid_[j] = tk::f2u(r1) & 0xffff0000u;
          low_[j] = tk::f2u(r1 - tk::u2f(mid_[j])) & 0xffff0000u;
        }
        TK_UNROLL
        for (int j = 0; j < 2; ++j) {
          a[i][2 * h + j] = tk::prmt(hi_[2 * j], hi_[2 * j + 1], 0x7632);
          mid[i][2 * h + j] = tk::prmt(mid_[2 * j], mid_[2 * j + 1], 0x7632);
          low[i][2 * h + j] = tk::prmt(low_[2 * j], low_[2 * j + 1], 0x7632);
        }
      }
    }
    tk::mma_bf16_n<2>(acc, low, b);
    tk::mma_bf16_n<2>(acc, mid, b);
    tk::mma_bf16_n<2>(acc, a, b);
  }
}
}  // namespace tilecc
