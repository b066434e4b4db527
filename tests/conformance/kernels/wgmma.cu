// wgmma of one warpgroup: D[64][N] = C + A B^T over four steps of K, E[64][N] = A B^T over the first two. A row of A or B is
// 128 bytes: 64 bf16 or 128 e4m3 numbers. in: per problem A [64][128 bytes], B [N][128 bytes], C [64][N] float32; out: D, E.
#include "conformance.h"

using namespace tk;

enum : u32 { kPlain = 0, kSwizzled = 1, kRegisters = 2, kTma = 3, kFp8 = 4, kFp8Plain = 5 };
constexpr u32 kA = 1024, kB = kA + 64 * 128, kThreads = 128;

TK_FN u32 thread() { return warp() * 32 + lane(); }

// Rows of 128 bytes into shared memory, in 16-byte pieces, by descriptor offsets or swizzled.
TK_FN void place(smem_t to, const uint8_t* from, u32 rows, bool swizzle, u32 lbo, u32 sbo) {
  for (u32 i = thread(); i < rows * 8; i += kThreads) {
    const u32 r = i / 8, j = i % 8;
    const u32 o = swizzle ? r * 128 + ((j ^ (r % 8)) * 16) : r / 8 * sbo + r % 8 * 16 + j * lbo;
    sts128(to + o, ldg_nc128(from + 16 * i));
  }
}

template <int N>
TK_FN void put(uint8_t* out, const float (&d)[N / 2]) {
  const u32 row = warp() * 16 + lane() / 4, column = 2 * (lane() % 4);
  TK_UNROLL for (int i = 0; i < N / 2; i++)
    stg_f32(out + 4 * ((row + 8 * (i >> 1 & 1)) * N + column + 8 * (i >> 2) + (i & 1)), d[i]);
}

enum Kind { kShared, kFragments, kCodes };
template <int N, Kind KIND>
TK_FN void step(float (&d)[N / 2], const u32 (&fragment)[4], u64 a, u64 b, bool accumulate) {
  if constexpr (KIND == kCodes) wgmma_e4m3<N>(d, a, b, accumulate);
  else if constexpr (KIND == kFragments) wgmma_bf16_rs<N>(d, fragment, b, accumulate);
  else wgmma_bf16<N>(d, a, b, accumulate);
}

template <int N, Kind KIND>
TK_FN void problem(const ConformanceParams& p, u32 i, const Watch& w) {
  const u32 bytes = 64 * 128 + N * 128 + 64 * N * 4, mode = p.op;
  const uint8_t* in = p.in + i * bytes;
  const smem_t sb = smem_base(), a = sb + kA, b = sb + kB;
  const bool swizzle = mode != kPlain && mode != kFp8Plain;
  const u32 b_lbo = N / 8 * 128, b_sbo = 128;
  if (mode == kTma) {
    if (warp() == 0) {
      mbar_arrive_expect_tx(sb, 64 * 128 + N * 128);
      tma_load_2d(a, &p.maps[0], 0, static_cast<i32>(i * bytes / 128), sb);
      tma_load_2d(b, &p.maps[1], 0, static_cast<i32>(i * bytes / 128 + 64), sb);
    }
    mbar_wait(sb, i & 1u, w);
  } else {
    place(a, in, 64, swizzle, 128, 1024);
    place(b, in + 64 * 128, N, swizzle, b_lbo, b_sbo);
    fence_proxy_async();
  }
  cta_sync();
  float d[N / 2], e[N / 2];
  const u32 row = warp() * 16 + lane() / 4, column = 2 * (lane() % 4);
  TK_UNROLL for (int r = 0; r < N / 2; r++) {
    d[r] = ldg_nc_f32(in + 64 * 128 + N * 128 + 4 * ((row + 8 * (r >> 1 & 1)) * N + column + 8 * (r >> 2) + (r & 1)));
    e[r] = 12345.0f;
  }
  u32 fragment[4][4] = {};
  if constexpr (KIND == kFragments) {
    TK_UNROLL for (u32 k = 0; k < 4; k++) TK_UNROLL for (u32 r = 0; r < 4; r++)
      fragment[k][r] = ldg_nc32(in + (row + 8 * (r & 1)) * 128 + 32 * k + 4 * (lane() % 4) + 16 * (r >> 1));
  }
  wgmma_fence();
  TK_UNROLL for (u32 k = 0; k < 4; k++)
    step<N, KIND>(d, fragment[k], swizzle ? wgmma_desc_128b(a + 32 * k) : wgmma_desc(a + 256 * k, 128, 1024),
                 swizzle ? wgmma_desc_128b(b + 32 * k) : wgmma_desc(b + 2 * b_lbo * k, b_lbo, b_sbo), true);
  wgmma_commit();
  TK_UNROLL for (u32 k = 0; k < 2; k++)
    step<N, KIND>(e, fragment[k], swizzle ? wgmma_desc_128b(a + 32 * k) : wgmma_desc(a + 256 * k, 128, 1024),
                 swizzle ? wgmma_desc_128b(b + 32 * k) : wgmma_desc(b + 2 * b_lbo * k, b_lbo, b_sbo), k > 0);
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_hold(d);
  put<N>(p.out + i * 2 * 64 * N * 4, d);
  wgmma_wait<0>();
  wgmma_hold(e);
  put<N>(p.out + (i * 2 + 1) * 64 * N * 4, e);
  cta_sync();
}

template <int N>
TK_FN void problems(const ConformanceParams& p, const Watch& w) {
  for (u32 i = 0; i < p.n; i++) {
    if (p.op >= kFp8) problem<N, kCodes>(p, i, w);
    else if (p.op == kRegisters) problem<N, kFragments>(p, i, w);
    else problem<N, kShared>(p, i, w);
  }
}

TK_KERNEL(conformance_wgmma, 128)(TK_GRID_CONST ConformanceParams p) {
  const smem_t sb = smem_base();
  smem_region("bar", sb, 64);
  smem_region("a", sb + kA, 64 * 128);
  smem_region("b", sb + kB, 64 * 128);
  const Watch w{p.status, warp(), p.op, 0, 0};
  if (warp() == 0) {
    mbar_init(sb, 1);
    fence_mbar_init();
  }
  cta_sync();
  if (p.arg[0] == 8) problems<8>(p, w);
  else if (p.arg[0] == 16) problems<16>(p, w);
  else if (p.arg[0] == 32) problems<32>(p, w);
  else problems<64>(p, w);
}
TK_EMU_ENTRY(conformance_wgmma, ConformanceParams)
