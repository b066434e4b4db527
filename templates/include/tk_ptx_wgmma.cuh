// wgmma in PTX (sm_90a alone): matrix products of a warpgroup, 64 rows, operands in shared memory.
#pragma once

namespace tk {

// Descriptors of K-major matrices (each row's K elements adjacent in 16-byte pieces). Without swizzle a core matrix is 8
// rows of 16 bytes, 128 bytes in a row; `lbo` bytes lead to the next one along K, `sbo` to the next 8 rows. With the
// 128-byte swizzle, rows are 128 bytes and piece j of row r lies at piece j ^ (r % 8) of an area aligned to 1024, `sbo`
// leads to the next 8 rows; 32 bytes are added to `a` for each further step of K.
TK_FN u64 wgmma_desc(smem_t a, u32 lbo, u32 sbo) {
  return static_cast<u64>((a & 0x3ffffu) >> 4) | static_cast<u64>(lbo >> 4) << 16 | static_cast<u64>(sbo >> 4) << 32;
}
TK_FN u64 wgmma_desc_128b(smem_t a, u32 sbo = 1024) {
  return static_cast<u64>((a & 0x3ffffu) >> 4) | 1ull << 16 | static_cast<u64>(sbo >> 4) << 32 | 1ull << 62;
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TK_HAS_WGMMA 1
#else
#define TK_HAS_WGMMA 0
#endif

// Before the first wgmma, and whenever a register of one was used otherwise since.
TK_FN void wgmma_fence() {
#if TK_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
TK_FN void wgmma_commit() {
#if TK_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// All but the newest N groups are complete: their accumulators may be read, their shared memory reused.
template <int N>
TK_FN void wgmma_wait() {
#if TK_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}
// Keeps the compiler from moving uses of accumulators across a wait: call it after the wait, before the first use.
template <int M>
TK_FN void wgmma_hold(float (&d)[M]) {
  TK_UNROLL for (int i = 0; i < M; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// D[64][N] = A[64][K] B[N][K]^T (+ D), float32. Warp w of the group has rows 16w to 16w+15; with g = lane / 4, t = lane % 4,
// d[4j .. 4j+3] = (g, 8j+2t) (g, 8j+2t+1) (g+8, 8j+2t) (g+8, 8j+2t+1). The accumulators are fixed local arrays, not
// touched between issue and wait. _rs: A in registers, as in mma_bf16. K = 16 (bf16) or 32 (e4m3).
#define TK_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TK_D8(i) TK_D4(i), TK_D4(i + 4)
#define TK_D16(i) TK_D8(i), TK_D8(i + 8)
#define TK_D32(i) TK_D16(i), TK_D16(i + 16)
#define TK_L8 "{%0,%1,%2,%3}"
#define TK_L16 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define TK_L32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define TK_L64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

#define TK_WGMMA(N, shape, types, tail, a, b, p, constraint, D)                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p ", 0;\n"                                         \
               "wgmma.mma_async.sync.aligned." shape ".f32." types " " TK_L##N ", " a ", %" b ", p, 1, 1" tail ";\n}" \
               : D                                                                                      \
               : constraint, "l"(b_desc), "r"(static_cast<u32>(accumulate)))
#define TK_A_DESC "l"(a)
#define TK_A_REGS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
template <int N>
TK_FN void wgmma_bf16(float (&d)[N / 2], u64 a, u64 b_desc, bool accumulate = true) {
#if TK_HAS_WGMMA
  static_assert(N == 8 || N == 16 || N == 32 || N == 64, "wgmma_bf16 takes 8, 16, 32 or 64 columns");
  if constexpr (N == 8) TK_WGMMA(8, "m64n8k16", "bf16.bf16", ", 0, 0", "%4", "5", "6", TK_A_DESC, TK_D4(0));
  else if constexpr (N == 16) TK_WGMMA(16, "m64n16k16", "bf16.bf16", ", 0, 0", "%8", "9", "10", TK_A_DESC, TK_D8(0));
  else if constexpr (N == 32) TK_WGMMA(32, "m64n32k16", "bf16.bf16", ", 0, 0", "%16", "17", "18", TK_A_DESC, TK_D16(0));
  else if constexpr (N == 64) TK_WGMMA(64, "m64n64k16", "bf16.bf16", ", 0, 0", "%32", "33", "34", TK_A_DESC, TK_D32(0));
#else
  static_assert(N < 0, "wgmma_bf16 exists on sm_90a alone");
#endif
}
template <int N>
TK_FN void wgmma_bf16_rs(float (&d)[N / 2], const u32 (&a)[4], u64 b_desc, bool accumulate = true) {
#if TK_HAS_WGMMA
  static_assert(N == 8 || N == 16 || N == 32 || N == 64, "wgmma_bf16_rs takes 8, 16, 32 or 64 columns");
  if constexpr (N == 8) TK_WGMMA(8, "m64n8k16", "bf16.bf16", ", 0", "{%4,%5,%6,%7}", "8", "9", TK_A_REGS, TK_D4(0));
  else if constexpr (N == 16) TK_WGMMA(16, "m64n16k16", "bf16.bf16", ", 0", "{%8,%9,%10,%11}", "12", "13", TK_A_REGS, TK_D8(0));
  else if constexpr (N == 32) TK_WGMMA(32, "m64n32k16", "bf16.bf16", ", 0", "{%16,%17,%18,%19}", "20", "21", TK_A_REGS, TK_D16(0));
  else if constexpr (N == 64) TK_WGMMA(64, "m64n64k16", "bf16.bf16", ", 0", "{%32,%33,%34,%35}", "36", "37", TK_A_REGS, TK_D32(0));
#else
  static_assert(N < 0, "wgmma_bf16_rs exists on sm_90a alone");
#endif
}
template <int N>
TK_FN void wgmma_e4m3(float (&d)[N / 2], u64 a, u64 b_desc, bool accumulate = true) {
#if TK_HAS_WGMMA
  static_assert(N == 8 || N == 16 || N == 32 || N == 64, "wgmma_e4m3 takes 8, 16, 32 or 64 columns");
  if constexpr (N == 8) TK_WGMMA(8, "m64n8k32", "e4m3.e4m3", "", "%4", "5", "6", TK_A_DESC, TK_D4(0));
  else if constexpr (N == 16) TK_WGMMA(16, "m64n16k32", "e4m3.e4m3", "", "%8", "9", "10", TK_A_DESC, TK_D8(0));
  else if constexpr (N == 32) TK_WGMMA(32, "m64n32k32", "e4m3.e4m3", "", "%16", "17", "18", TK_A_DESC, TK_D16(0));
  else if constexpr (N == 64) TK_WGMMA(64, "m64n64k32", "e4m3.e4m3", "", "%32", "33", "34", TK_A_DESC, TK_D32(0));
#else
  static_assert(N < 0, "wgmma_e4m3 exists on sm_90a alone");
#endif
}
#undef TK_WGMMA
#undef TK_A_DESC
#undef TK_A_REGS
#undef TK_D4
#undef TK_D8
#undef TK_D16
#undef TK_D32
#undef TK_L8
#undef TK_L16
#undef TK_L32
#undef TK_L64
#undef TK_HAS_WGMMA

}  // namespace tk
