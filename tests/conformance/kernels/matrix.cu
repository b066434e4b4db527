// ldmatrix, stmatrix, mma.sync: one warp per problem, n problems per CTA-loop.
// Shared memory per warp: 1024 bytes.
#include "conformance.h"

using namespace tk;

constexpr u32 kWarps = 4, kPerWarp = 1024;

// in: 512 bytes (4 matrices, one row of 16 bytes after another) per problem; out: 512 bytes: 4 registers a lane.
TK_FN void load(u32 op, smem_t tile, u32 (&r)[4]) {
  const smem_t row = tile + 16u * lane();
  u32 one[1], two[2];
  if (op == 0) {
    ldmatrix_x1(one, row);
    r[0] = one[0];
  } else if (op == 1) {
    ldmatrix_x2(two, row);
    r[0] = two[0], r[1] = two[1];
  } else if (op == 2) {
    ldmatrix_x4(r, row);
  } else if (op == 3) {
    ldmatrix_trans_x1(one, row);
    r[0] = one[0];
  } else if (op == 4) {
    ldmatrix_trans_x2(two, row);
    r[0] = two[0], r[1] = two[1];
  } else {
    ldmatrix_trans_x4(r, row);
  }
}

TK_FN void store(u32 op, smem_t tile, const u32x4& v) {
  const smem_t row = tile + 16u * lane();
  const u32 one[1] = {v.x}, two[2] = {v.x, v.y}, four[4] = {v.x, v.y, v.z, v.w};
  if (op == 8) stmatrix_x1(row, one);
  else if (op == 9) stmatrix_x2(row, two);
  else if (op == 10) stmatrix_x4(row, four);
  else if (op == 11) stmatrix_trans_x1(row, one);
  else if (op == 12) stmatrix_trans_x2(row, two);
  else stmatrix_trans_x4(row, four);
}

// in: per lane a[4], b[2], 2 words unused, c[4], 4 words unused (64 bytes); out: c[4].
TK_FN void multiply(u32 op, const uint8_t* in, uint8_t* out) {
  const u32x4 a4 = ldg_nc128(in + 64 * lane()), c4 = ldg_nc128(in + 64 * lane() + 32);
  const u32x2 b2 = ldg_nc64(in + 64 * lane() + 16), d2 = ldg_nc64(in + 64 * lane() + 24);
  const u32 a[4] = {a4.x, a4.y, a4.z, a4.w}, b[2] = {b2.x, b2.y};
  float c[4] = {u2f(c4.x), u2f(c4.y), u2f(c4.z), u2f(c4.w)};
  if (op == 16) {
    mma_bf16(c, a, b);
  } else if (op == 17) {
    const u32 steps_a[2][4] = {{a4.x, a4.y, a4.z, a4.w}, {a4.w, a4.z, a4.y, a4.x}}, steps_b[2][2] = {{b2.x, b2.y}, {d2.x, d2.y}};
    mma_bf16_n(c, steps_a, steps_b);
  } else if (op == 18) {
    mma_f16(c, a, b);
  } else if (op == 19) {
    mma_e4m3(c, a, b);
  } else {
    mma_e5m2(c, a, b);
  }
  stg128(out + 16 * lane(), u32x4{f2u(c[0]), f2u(c[1]), f2u(c[2]), f2u(c[3])});
}

TK_KERNEL(conformance_matrix, 128)(TK_GRID_CONST ConformanceParams p) {
  const smem_t tile = smem_base() + warp() * kPerWarp;
  smem_region("tiles", smem_base(), kWarps * kPerWarp);
  for (u32 i = cta() * kWarps + warp(); i < p.n; i += ncta() * kWarps) {
    if (p.op < 8) {
      sts128(tile + 16u * lane(), ldg_nc128(p.in + 512 * i + 16 * lane()));
      syncwarp();
      u32 r[4] = {1u, 2u, 3u, 4u};
      load(p.op, tile, r);
      stg128(p.out + 512 * i + 16 * lane(), u32x4{r[0], r[1], r[2], r[3]});
    } else if (p.op < 16) {
      sts128(tile + 16u * lane(), u32x4{5u, 6u, 7u, 8u});
      syncwarp();
      store(p.op, tile, ldg_nc128(p.in + 512 * i + 16 * lane()));
      syncwarp();
      stg128(p.out + 512 * i + 16 * lane(), lds128(tile + 16u * lane()));
    } else {
      multiply(p.op, p.in + 2048 * i, p.out + 512 * i);
    }
    syncwarp();
  }
}
TK_EMU_ENTRY(conformance_matrix, ConformanceParams)
