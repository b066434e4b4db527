// Rates and latencies of the instructions that main loops are made of, per SM. `b` warps of the CTA run `rounds` times
// kUnroll operations; with one chain per lane (c = 1) the time is a latency, with eight chains a rate.
// The results are exact functions of the inputs, and the host computes them too.
#include "params.cuh"

namespace micro {
namespace rates {
constexpr u32 kThreads = 512, kWarps = kThreads / 32, kUnroll = 64, kTable = 1024, kTableBytes = 32768;

enum Op : u32 { kLop3, kShift, kPrmt, kImad, kFfma, kFadd, kBf16Mul, kBf16Fma, kCvt, kLds128, kLds64, kLds32, kMma, kExp2,
                kReadOnly, kOps };

// One step of a chain: x, from its neighbours y and z.
template <u32 O>
TK_FN u32 step(u32 x, u32 y, u32 z) {
  if (O == kShift) return y >> x;  // y < 32, so the value stays a legal count
  if (O == kPrmt) return prmt(x, y, z);
  if (O == kImad) return x * y + z;
  if (O == kFfma) return f2u(u2f(x) * u2f(y) + u2f(z));
  if (O == kFadd) return f2u(u2f(x) + u2f(y));
  if (O == kBf16Mul) return bf16x2_mul(x, y);
  if (O == kBf16Fma) return bf16x2_fma(x, y, z);
  if (O == kCvt) return cvt_bf16x2(u2f(x), u2f(y));
  if (O == kExp2) return f2u(exp2_(-u2f(x)));
  return x;
}

// y and z are loop-invariant and differ by chain, so that nothing folds; the chain's value stays in its domain because the
// host chose them so (times one, selectors, small factors).
template <u32 O, u32 kChains>
TK_FN u32 alu(const MicroParams& p, u32 x0, u32 y, u32 z) {
  u32 x[kChains];
  TK_UNROLL for (u32 i = 0; i < kChains; i++) x[i] = x0 + i;
  MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
    TK_UNROLL for (u32 k = 0; k < kUnroll / kChains; k++) {
      TK_UNROLL for (u32 i = 0; i < kChains; i++) x[i] = step<O>(x[i], y, z);
    }
  }
  u32 v = 0;
  TK_UNROLL for (u32 i = 0; i < kChains; i++) v += x[i];
  return v;
}

// x = (x & y) ^ z with four pairs (y, z) in turn: with one pair two steps fold into none.
template <u32 kChains>
TK_FN u32 logic(const MicroParams& p, u32 x0, u32 y, u32 z) {
  u32 x[kChains];
  const u32 ys[4] = {y, y * 5u, y * 7u, y * 11u}, zs[4] = {z, z * 5u, z * 7u, z * 11u};
  TK_UNROLL for (u32 i = 0; i < kChains; i++) x[i] = x0 + i;
  MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
    TK_UNROLL for (u32 k = 0; k < kUnroll / kChains; k++) {
      TK_UNROLL for (u32 i = 0; i < kChains; i++) x[i] = (x[i] & ys[k % 4]) ^ zs[k % 4];
    }
  }
  u32 v = 0;
  TK_UNROLL for (u32 i = 0; i < kChains; i++) v += x[i];
  return v;
}

// Loads of 32 lanes without bank conflicts; with one chain the next address is what was loaded.
template <u32 O, u32 kChains>
TK_FN u32 shared(const MicroParams& p, smem_t table) {
  constexpr u32 kWidth = O == kLds128 ? 16 : O == kLds64 ? 8 : 4;
  const u32 ln = lane();
  u32 v = 0, at = ln * kWidth;
  MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
    TK_UNROLL for (u32 k = 0; k < kUnroll; k++) {
      const smem_t a = table + (kChains == 1 ? at : (k % 16) * 32 * kWidth + ln * kWidth);
      // Every word is used, or the assembler narrows the load.
      u32x4 x{0, 0, 0, 0};
      if (O == kLds128) x = lds128(a);
      else if (O == kLds64) {
        const u32x2 two = lds64(a);
        x.x = two.x, x.y = two.y;
      }
      else x.x = lds32(a);
      if (kChains == 1) at = x.x;
      else v += x.x;
      v += x.y + x.z + x.w;
    }
  }
  return v + at;
}

template <u32 kChains>
TK_FN u32 tensor(const MicroParams& p) {
  float c[kChains][4];
  TK_UNROLL for (u32 i = 0; i < kChains; i++) TK_UNROLL for (u32 k = 0; k < 4; k++) c[i][k] = 0.0f;
  // A is all ones in even k and twos in odd; B is 2^-3 of column n: each step adds 24 / 8 to every element.
  const u32 a[4] = {0x40003f80u, 0x40003f80u, 0x40003f80u, 0x40003f80u}, b[2] = {0x3e003e00u, 0x3e003e00u};
  MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
    TK_UNROLL for (u32 k = 0; k < kUnroll / kChains; k++) {
      TK_UNROLL for (u32 i = 0; i < kChains; i++) mma_bf16(c[i], a, b);
    }
  }
  float sum = 0.0f;
  TK_UNROLL for (u32 i = 0; i < kChains; i++) TK_UNROLL for (u32 k = 0; k < 4; k++) sum += c[i][k];
  return f2u(sum);
}

template <u32 O, u32 kChains>
TK_FN u32 run(const MicroParams& p, smem_t table, u32 x, u32 y, u32 z) {
  if (O == kMma) return tensor<kChains>(p);
  if (O == kLds128 || O == kLds64 || O == kLds32) return shared<O, kChains>(p, table);
  if (O == kLop3) return logic<kChains>(p, x, y, z);
  return alu<O, kChains>(p, x, y, z);
}

template <u32 O>
TK_FN void measure(const MicroParams& p, smem_t table) {
  const u32 wp = warp(), ln = lane();
  // work: x, y, z of each thread, 16 bytes; then the results, [grid][threads].
  const u32x4 in = ldg128(p.work + (wp * 32u + ln) * 16u);
  u32 v = 0;
  for (u32 s = 0; s < p.samples; s++) {
    cta_sync();
    const u32 t0 = clock32();
    const u32 x = in.x + (v & p.a);  // a is 0, but the compiler does not know that all samples are alike
    if (wp < p.b) v = p.c == 1 ? run<O, 1>(p, table, x, in.y, in.z) : run<O, 8>(p, table, x, in.y, in.z);
    // A warp reads its clock for itself: the slowest of them, which the host takes, ends the sample.
    syncwarp();
    const u32 t = clock32() - t0;
    if (ln == 0) stg32(p.times + ((cta() * kWarps + wp) * p.samples + s), t);
  }
  stg32(p.work + kThreads * 16u + (cta() * kThreads + wp * 32u + ln) * 4u, v);
}

// Read-only 16-byte loads by every thread of every SM: 16 in flight per thread.
TK_FN void read_only(const MicroParams& p) {
  const u64 n = p.bytes / 16, step = static_cast<u64>(ncta()) * kThreads;
  const uint8_t* from = p.data + p.offset;
  u32 sum = 0;
  u64 i = static_cast<u64>(cta()) * kThreads + warp() * 32u + lane();
  MICRO_ROLLED for (; i + 15 * step < n; i += 16 * step) {
    u32x4 v[16];
    TK_UNROLL for (u32 k = 0; k < 16; k++) v[k] = ldg_nc128(from + (i + k * step) * 16);
    TK_UNROLL for (u32 k = 0; k < 16; k++) sum += v[k].x + v[k].y + v[k].z + v[k].w;
  }
  for (; i < n; i += step) {
    const u32x4 v = ldg_nc128(from + i * 16);
    sum += v.x + v.y + v.z + v.w;
  }
  TK_UNROLL for (u32 m = 16; m > 0; m >>= 1) sum += shfl_xor(sum, m);
  if (elect()) red_relaxed(p.sums + cta() * 8u, sum);
}
}  // namespace rates
}  // namespace micro

TK_KERNEL(micro_rates, micro::rates::kThreads)(TK_GRID_CONST MicroParams p) {
  using namespace micro;
  using namespace micro::rates;
  const smem_t table = smem_base() + kTable;
  smem_region("table", table, kTableBytes);
  // Word w of the table holds the offset of the word that a chain of loads takes next: one bank on, same row of 32.
  if (p.mode != kReadOnly) {
    for (u32 i = warp() * 32u + lane(); i < kTableBytes / 4; i += kThreads) {
      const u32 width = p.mode == kLds128 ? 4u : p.mode == kLds64 ? 2u : 1u;
      sts32(table + i * 4, ((i / width + 1) % 32 * width) * 4);
    }
  }
  cta_sync();
  span_out(p, 0);
  switch (p.mode) {
    case kLop3: measure<kLop3>(p, table); break;
    case kShift: measure<kShift>(p, table); break;
    case kPrmt: measure<kPrmt>(p, table); break;
    case kImad: measure<kImad>(p, table); break;
    case kFfma: measure<kFfma>(p, table); break;
    case kFadd: measure<kFadd>(p, table); break;
    case kBf16Mul: measure<kBf16Mul>(p, table); break;
    case kBf16Fma: measure<kBf16Fma>(p, table); break;
    case kCvt: measure<kCvt>(p, table); break;
    case kLds128: measure<kLds128>(p, table); break;
    case kLds64: measure<kLds64>(p, table); break;
    case kLds32: measure<kLds32>(p, table); break;
    case kMma: measure<kMma>(p, table); break;
    case kExp2: measure<kExp2>(p, table); break;
    case kReadOnly: read_only(p); break;
  }
  cta_sync();
  span_out(p, 1);
}
TK_EMU_ENTRY(micro_rates, MicroParams)
