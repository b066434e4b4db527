// Weight formats of the main loop: how one weight block (16 rows x 128 columns) becomes A fragments and enters the
// accumulators. The bytes of a block are laid out for this file by tilecc/weights/image_pack.py; every decode is exact.
//
// What a lane spends on one weight is the budget of the machine (docs/decisions.md, "Main loops"), so codes are stored such
// that a rotation and one mask bring two of them into the two halves of a register:
//
//   mxfp4  a u32 holds one k16 step: with M = 0x81c081c0 (sign, two exponent bits, one mantissa bit of a bf16),
//          a0 = w & M, a1 = rotr(w, 3) & M, a2 = rotr(w, 6) & M; the bits left over are spread by one multiplication.
//   fp8    two u32 hold one k16 step: with M = 0x87f087f0, a0 = u & M, a1 = rotr(v, 4) & M; a2 and a3 take the bits that
//          are left over in both.
#pragma once
#include "op_common.cuh"

namespace tilecc {
enum class Format { kBf16, kF32, kFp8, kMxfp4 };

template <Format F>
struct Block;
template <>
struct Block<Format::kBf16> {
  static constexpr u32 kBytes = 4096, kHalf = 2048;  // kHalf: bytes of 64 columns
};
template <>
struct Block<Format::kF32> {
  static constexpr u32 kBytes = 8192, kHalf = 4096;
};
template <>
struct Block<Format::kFp8> {
  static constexpr u32 kBytes = 2112, kHalf = 1024, kScales = 2048;  // [row g 8][row half 2] f32
};
template <>
struct Block<Format::kMxfp4> {
  static constexpr u32 kBytes = 1088, kHalf = 512, kScales = 1024;  // [row g 8][row half 2] u32
};

// Codes enter the MMA as bf16 fields, subnormal codes included: e2m1 reads 2^-126 too small, e4m3 2^-120. Activations come
// multiplied by 2^96, so that the sums of the products are ordinary float32 numbers, and the rest is in the scale that
// multiplies a sum: 2^(s - 97) for 32 columns of mxfp4, a normal power of two for every legal scale byte s = 0..224;
// scale * 2^24 for 128 columns of fp8. Formats without scales leave 2^-96 to the store warp.

// Through the primitives: left to itself the compiler rewrites a chain of such operations into a longer one.
TK_FN u32 rotr(u32 w, u32 n) { return tk::shf_r(w, w, n); }
TK_FN u32 mix(u32 a, u32 b, u32 mask) { return tk::lop3<0xe4>(a, b, mask); }  // bits of a where the mask is set, of b elsewhere

// The A fragment of one k16 step.
TK_FN void decode_mxfp4(u32 w, u32 (&a)[4]) {
  constexpr u32 kFields = 0x81c081c0u;
  a[0] = w & kFields;
  a[1] = rotr(w, 3) & kFields;
  a[2] = rotr(w, 6) & kFields;
  a[3] = (w & 0x001b001bu) * 0x1084u & kFields;  // bits 0, 1 -> 7, 8; 4 -> 6; 3 -> 15; no two products meet
}
TK_FN void decode_fp8(u32 u, u32 v, u32 (&a)[4]) {
  constexpr u32 kFields = 0x87f087f0u;
  a[0] = u & kFields;
  a[1] = rotr(v, 4) & kFields;
  a[2] = rotr(mix(v, u, 0x00700070u), 28) & kFields;
  a[3] = rotr(mix(u, v, 0x70007000u), 8) & kFields;
}
// Scale 2^(s - 97) of the group `pair` of 32 columns: the byte s + 30 lies at bits 30..23 after a rotation by 8 * pair.
TK_FN float mxfp4_scale(u32 word, u32 pair) { return tk::u2f((pair == 0 ? word : rotr(word, 32 - 8 * pair)) & 0x7f800000u); }

// A float32 weight is the exact sum of three bf16 numbers (8 + 8 + 8 bits), so three bf16 products give an f32 one.
TK_FN void split_f32(const u32 (&bits)[4], u32 (&high)[2], u32 (&mid)[2], u32 (&low)[2]) {
  u32 h[4], m[4], l[4];
  TK_UNROLL
  for (int j = 0; j < 4; ++j) {
    h[j] = bits[j] & 0xffff0000u;
    const float rest = tk::u2f(bits[j]) - tk::u2f(h[j]);
    m[j] = tk::f2u(rest) & 0xffff0000u;
    l[j] = tk::f2u(rest - tk::u2f(m[j]));
  }
  TK_UNROLL
  for (int j = 0; j < 2; ++j) {
    high[j] = tk::prmt(h[2 * j], h[2 * j + 1], 0x7632);
    mid[j] = tk::prmt(m[2 * j], m[2 * j + 1], 0x7632);
    low[j] = tk::prmt(l[2 * j], l[2 * j + 1], 0x7632);
  }
}

// Where a lane finds its part of the blocks that its warp multiplies; offsets between tiles and blocks are constants.
struct BlockAt {
  smem_t codes;   // block + 16 * lane
  smem_t scales;  // block + 8 * (lane / 4)
  smem_t acts;    // activations of the block's columns + 8 * lane
};

// B fragments of steps [first, first + N) of the block: [n tile][step][lane][8 B].
template <int NT, int N>
TK_FN void load_b(smem_t acts, u32 first, u32 (&b)[NT][N][2]) {
  TK_UNROLL
  for (int n = 0; n < NT; ++n) {
    TK_UNROLL
    for (int i = 0; i < N; ++i) {
      const tk::u32x2 v = tk::lds64(acts + n * 2048 + (first + i) * 256);
      b[n][i][0] = v.x, b[n][i][1] = v.y;
    }
  }
}

// The A operands of one k32 pair of one tile. `words`: what the lane loaded for the 64 columns around it.
template <Format F>
struct Fragments {
  static constexpr int kParts = F == Format::kF32 ? 3 : 1;
  u32 a[kParts][2][4];  // f32: low, middle, high bits
  float s[2];           // mxfp4: scales of rows g and g + 8

  TK_FN void decode(const u32 (&words)[Block<F>::kHalf / 128], u32 pair, const tk::u32x2& scales) {
    const u32 p = pair % 2;
    if constexpr (F == Format::kMxfp4) s[0] = mxfp4_scale(scales.x, pair), s[1] = mxfp4_scale(scales.y, pair);
    if constexpr (F == Format::kF32) {
      TK_UNROLL
      for (u32 i = 0; i < 4; ++i) {
        const u32* w = words + (4 * p + i) * 4;
        const u32 bits[4] = {w[0], w[1], w[2], w[3]};
        u32 h[2], m[2], l[2];
        split_f32(bits, h, m, l);
        TK_UNROLL
        for (int j = 0; j < 2; ++j) a[2][i / 2][2 * (i % 2) + j] = h[j], a[1][i / 2][2 * (i % 2) + j] = m[j], a[0][i / 2][2 * (i % 2) + j] = l[j];
      }
    } else {
      TK_UNROLL
      for (u32 i = 0; i < 2; ++i) {
        if constexpr (F == Format::kMxfp4) {
          decode_mxfp4(words[2 * p + i], a[0][i]);
        } else if constexpr (F == Format::kFp8) {
          decode_fp8(words[4 * p + 2 * i], words[4 * p + 2 * i + 1], a[0][i]);
        } else {
          TK_UNROLL
          for (u32 j = 0; j < 4; ++j) a[0][i][j] = words[(2 * p + i) * 4 + j];
        }
      }
    }
  }

  // One row tile: acc or part += the pair times its activations b.
  TK_FN void apply(float (&acc)[4], float (&part)[4], const u32 (&b)[2][2]) const {
    if constexpr (F == Format::kMxfp4) {
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
      tk::mma_bf16_n<2>(sum, a[0], b);
      acc[0] = tk::fma_(s[0], sum[0], acc[0]), acc[1] = tk::fma_(s[0], sum[1], acc[1]);
      acc[2] = tk::fma_(s[1], sum[2], acc[2]), acc[3] = tk::fma_(s[1], sum[3], acc[3]);
    } else {
      // y = sum over blocks of scale * (sum of code * x): FP8 sums a whole block before its scale.
      TK_UNROLL
      for (int i = 0; i < kParts; ++i) tk::mma_bf16_n<2>(F == Format::kFp8 ? part : acc, a[i], b);
    }
  }
};

// One k32 pair of one tile, all row tiles.
template <Format F, int NT, int N>
TK_FN void mma_pair(float (&acc)[NT][4], float (&part)[NT][4], const u32 (&words)[Block<F>::kHalf / 128], u32 pair, const tk::u32x2& scales,
                    const u32 (&b)[NT][N][2], u32 at) {
  Fragments<F> a;
  a.decode(words, pair, scales);
  TK_UNROLL
  for (int n = 0; n < NT; ++n) {
    const u32 bn[2][2] = {{b[n][at][0], b[n][at][1]}, {b[n][at + 1][0], b[n][at + 1][1]}};
    a.apply(acc[n], part[n], bn);
  }
}

// FP8: the sums of one block enter the accumulators with the block's scales.
template <int NT>
TK_FN void add_scaled(float (&acc)[NT][4], const float (&part)[NT][4], const tk::u32x2& scales) {
  const float s0 = tk::u2f(scales.x), s1 = tk::u2f(scales.y);
  TK_UNROLL
  for (int n = 0; n < NT; ++n) {
    acc[n][0] = tk::fma_(s0, part[n][0], acc[n][0]), acc[n][1] = tk::fma_(s0, part[n][1], acc[n][1]);
    acc[n][2] = tk::fma_(s1, part[n][2], acc[n][2]), acc[n][3] = tk::fma_(s1, part[n][3], acc[n][3]);
  }
}

// Several row tiles: a k32 pair of all tiles of the warp is decoded once, then feeds the row tiles one after the other, so
// that activations are read once and the decoded weights stay in registers. Every sum is that of mma_block, term by term.
template <Format F, int NT, int MT, u32 kStride, bool kWhole>
TK_FN void mma_rows(float (&acc)[MT][NT][4], const BlockAt& at, u32 tiles) {
  constexpr bool kScaled = F == Format::kFp8 || F == Format::kMxfp4;
  constexpr u32 kWords = Block<F>::kHalf / 128;  // of a lane, for 64 columns
  tk::u32x2 scales[MT];
  float part[MT][NT][4];
  TK_UNROLL
  for (int m = 0; m < MT; ++m) {
    scales[m] = tk::u32x2{0, 0};
    if constexpr (kScaled) {
      if (kWhole || m < tiles) scales[m] = tk::lds64(at.scales + Block<F>::kScales + m * kStride);
    }
    TK_UNROLL
    for (int n = 0; n < NT; ++n) part[m][n][0] = part[m][n][1] = part[m][n][2] = part[m][n][3] = 0.f;
  }
  // Unrolled, the compiler would keep more sums at once than there are registers.
  constexpr u32 kUnroll = MT * NT > 8 ? 1 : 2;
  TILECC_UNROLL(kUnroll)
  for (u32 half = 0; half < 2; ++half) {
    u32 words[MT][kWords];
    TK_UNROLL
    for (u32 p = 0; p < 2; ++p) {
      // mxfp4: one load holds both pairs.
      constexpr u32 kLoads = kWords == 4 ? 1 : kWords / 8;
      Fragments<F> a[MT];
      TK_UNROLL
      for (int m = 0; m < MT; ++m) {
        if (!kWhole && m >= tiles) continue;
        TK_UNROLL
        for (u32 i = p * kLoads; i < (p + 1) * kLoads && i < kWords / 4; ++i) {
          const tk::u32x4 v = tk::lds128(at.codes + m * kStride + half * Block<F>::kHalf + i * 512);
          words[m][4 * i] = v.x, words[m][4 * i + 1] = v.y, words[m][4 * i + 2] = v.z, words[m][4 * i + 3] = v.w;
        }
        a[m].decode(words[m], 2 * half + p, scales[m]);
      }
      TK_UNROLL
      for (int n = 0; n < NT; ++n) {
        u32 b[1][2][2];
        load_b<1, 2>(at.acts + n * 2048, 4 * half + 2 * p, b);
        TK_UNROLL
        for (int m = 0; m < MT; ++m) {
          if (!kWhole && m >= tiles) continue;
          a[m].apply(acc[m][n], part[m][n], b[0]);
        }
      }
    }
  }
  if constexpr (F == Format::kFp8) {
    TK_UNROLL
    for (int m = 0; m < MT; ++m) {
      if (!kWhole && m >= tiles) continue;
      add_scaled(acc[m], part[m], scales[m]);
    }
  }
}

// acc[m] += W[tile m][16 rows, 128 columns] * x for the MT tiles of a warp, the first `tiles` of which exist. kStride: bytes
// between tiles in shared memory. The order of every sum is fixed by the format alone.
template <Format F, int NT, int MT, u32 kStride, bool kWhole>
TK_FN void mma_block(float (&acc)[MT][NT][4], const BlockAt& at, u32 tiles) {
  constexpr bool kScaled = F == Format::kFp8 || F == Format::kMxfp4;
  constexpr u32 kLoads = Block<F>::kHalf / 512;
  tk::u32x2 scales[MT];
  float part[MT][NT][4];
  TK_UNROLL
  for (int m = 0; m < MT; ++m) {
    scales[m] = tk::u32x2{0, 0};
    if constexpr (kScaled) {
      if (kWhole || m < tiles) scales[m] = tk::lds64(at.scales + Block<F>::kScales + m * kStride);
    }
    TK_UNROLL
    for (int n = 0; n < NT; ++n) part[m][n][0] = part[m][n][1] = part[m][n][2] = part[m][n][3] = 0.f;
  }
  TK_UNROLL
  for (u32 half = 0; half < 2; ++half) {
    // Activations are read once for all tiles of the warp; a single tile reads them as it goes, to save registers.
    constexpr int kHeld = MT == 1 ? 2 : 4;
    u32 b[NT][kHeld][2];
    if constexpr (MT > 1) load_b<NT, kHeld>(at.acts, 4 * half, b);
    TK_UNROLL
    for (int m = 0; m < MT; ++m) {
      if (!kWhole && m >= tiles) continue;
      u32 words[kLoads * 4];
      TK_UNROLL
      for (u32 i = 0; i < kLoads; ++i) {
        const tk::u32x4 v = tk::lds128(at.codes + m * kStride + half * Block<F>::kHalf + i * 512);
        words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
      }
      TK_UNROLL
      for (u32 p = 0; p < 2; ++p) {
        if constexpr (MT == 1) load_b<NT, kHeld>(at.acts, 4 * half + 2 * p, b);
        mma_pair<F, NT, kHeld>(acc[m], part[m], words, 2 * half + p, scales[m], b, MT == 1 ? 0 : 2 * p);
      }
    }
  }
  if constexpr (F == Format::kFp8) {
    TK_UNROLL
    for (int m = 0; m < MT; ++m) {
      if (!kWhole && m >= tiles) continue;
      add_scaled(acc[m], part[m], scales[m]);
    }
  }
}
}  // namespace tilecc
