// exp2, log2, bf16 and the tensor-core product, the same on every machine.
#include <math.h>
#include <string.h>

#include "engine.h"

namespace tk_emu {

// 2^x as ex2.approx.ftz: subnormal results are zero. Taylor series of 2^f on [-1/2, 1/2] in double; the
// truncation error is below 1e-12, so the float is nearly always the correctly rounded one.
float exp2_approx(float x) {
  if (x != x) return tk::u2f(0x7fffffffu);
  if (x >= 128.0f) return INFINITY;
  if (x < -126.0f) return 0.0f;
  const double n = floor(static_cast<double>(x) + 0.5);
  const double f = (static_cast<double>(x) - n) * 0.693147180559945309417;
  double term = 1.0, sum = 1.0;
  for (int i = 1; i <= 12; i++) {
    term = term * f / i;
    sum = sum + term;
  }
  return static_cast<float>(ldexp(sum, static_cast<int>(n)));
}

// log2 as lg2.approx.ftz: subnormals count as zero. atanh series of the mantissa in [1/sqrt(2), sqrt(2)).
float log2_approx(float x) {
  if (x != x || x <= -1.17549435e-38f) return tk::u2f(0x7fffffffu);
  if (x < 1.17549435e-38f) return -INFINITY;
  if (x == INFINITY) return INFINITY;
  int exponent;
  double m = frexp(static_cast<double>(x), &exponent);
  if (m < 0.70710678118654752) m *= 2.0, exponent--;
  const double z = (m - 1.0) / (m + 1.0), z2 = z * z;
  double power = z, sum = 0.0;
  for (int i = 1; i <= 27; i += 2) {
    sum = sum + power / i;
    power = power * z2;
  }
  return static_cast<float>(exponent + sum * 2.88539008177792681472);
}

// A double holds the exact product of two bf16; adding the third rounds at most in bit 53. Rounding to odd
// there keeps the final rounding to bf16 correct.
uint32_t bf16_fma(uint32_t a, uint32_t b, uint32_t c) {
  const double product = static_cast<double>(tk::bf2f(a)) * static_cast<double>(tk::bf2f(b));
  const double addend = static_cast<double>(tk::bf2f(c));
  double sum = product + addend;
  if (sum != sum) return 0x7fffu;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (addend - back);
  if (error != 0.0 && !isinf(sum)) {
    uint64_t bits;
    memcpy(&bits, &sum, 8);
    if (!(bits & 1)) {
      const bool away = (error > 0.0) == (sum > 0.0);
      bits = away ? bits | 1 : bits - 1;
      memcpy(&sum, &bits, 8);
    }
  }
  // The same trick to reach float, then the ordinary conversion.
  float f = static_cast<float>(sum);
  if (static_cast<double>(f) != sum && !isinf(f)) {
    uint32_t u = tk::f2u(f);
    if (!(u & 1)) {
      const bool too_small = fabs(static_cast<double>(f)) < fabs(sum);
      u = too_small ? u | 1u : u - 1u;
      f = tk::u2f(u);
    }
  }
  return tk::f2bf(f);
}

// ---- mma ------------------------------------------------------------------------------------------------

typedef float Row __attribute__((vector_size(32), may_alias));      // one row of C or B: 8 columns
typedef uint32_t RowBits __attribute__((vector_size(32), may_alias));

// One m16n8k16 step for a warp whose fragments lie in the slots. c is kept as 16 rows.
static inline void gather_c(Warp* w, Row (&c)[16]) {
  for (int lane = 0; lane < kLanes; lane++) {
    const float* from = static_cast<MmaSlot*>(w->slot[lane])->c;
    const int g = lane >> 2, t = lane & 3;
    memcpy(reinterpret_cast<float*>(&c[g]) + 2 * t, from, 8);
    memcpy(reinterpret_cast<float*>(&c[g + 8]) + 2 * t, from + 2, 8);
  }
}

static inline void scatter_c(Warp* w, Row (&c)[16]) {
  for (int r = 0; r < 16; r++) {
    const RowBits nan = reinterpret_cast<RowBits>(c[r] != c[r]);
    c[r] = reinterpret_cast<Row>((reinterpret_cast<RowBits>(c[r]) & ~nan) | (nan & 0x7fffffffu));
  }
  for (int lane = 0; lane < kLanes; lane++) {
    float* to = static_cast<MmaSlot*>(w->slot[lane])->c;
    const int g = lane >> 2, t = lane & 3;
    memcpy(to, reinterpret_cast<float*>(&c[g]) + 2 * t, 8);
    memcpy(to + 2, reinterpret_cast<float*>(&c[g + 8]) + 2 * t, 8);
  }
}

static void bf16_step(Warp* w, int step, Row (&c)[16]) {
  alignas(32) uint32_t pairs[16][8];  // A: row, pair of k
  alignas(32) uint32_t b[16][8];      // B: k, column, as float bits
  for (int lane = 0; lane < kLanes; lane++) {
    const MmaSlot* s = static_cast<MmaSlot*>(w->slot[lane]);
    const int g = lane >> 2, t = lane & 3;
    const uint32_t* a = s->a[step];
    pairs[g][t] = a[0];
    pairs[g + 8][t] = a[1];
    pairs[g][t + 4] = a[2];
    pairs[g + 8][t + 4] = a[3];
    const uint32_t b0 = s->b[step][0], b1 = s->b[step][1];
    b[2 * t][g] = b0 << 16;
    b[2 * t + 1][g] = b0 & 0xffff0000u;
    b[2 * t + 8][g] = b1 << 16;
    b[2 * t + 9][g] = b1 & 0xffff0000u;
  }
  alignas(32) float low[16][8], high[16][8];  // A at even and odd k
  for (int r = 0; r < 16; r++) {
    const RowBits p = *reinterpret_cast<RowBits*>(pairs[r]);
    *reinterpret_cast<RowBits*>(low[r]) = p << 16;
    *reinterpret_cast<RowBits*>(high[r]) = p & 0xffff0000u;
  }
  const Row* bk = reinterpret_cast<const Row*>(b);
  for (int r = 0; r < 16; r += 4) {
    Row c0 = c[r], c1 = c[r + 1], c2 = c[r + 2], c3 = c[r + 3];
    for (int k = 0; k < 8; k++) {
      c0 += low[r][k] * bk[2 * k];
      c1 += low[r + 1][k] * bk[2 * k];
      c2 += low[r + 2][k] * bk[2 * k];
      c3 += low[r + 3][k] * bk[2 * k];
      c0 += high[r][k] * bk[2 * k + 1];
      c1 += high[r + 1][k] * bk[2 * k + 1];
      c2 += high[r + 2][k] * bk[2 * k + 1];
      c3 += high[r + 3][k] * bk[2 * k + 1];
    }
    c[r] = c0, c[r + 1] = c1, c[r + 2] = c2, c[r + 3] = c3;
  }
}

void mma_bf16_warp(Warp* warp, int steps) {
  warp->counts[kMma] += static_cast<uint64_t>(steps);
  Row c[16];
  gather_c(warp, c);
  for (int i = 0; i < steps; i++) bf16_step(warp, i, c);
  scatter_c(warp, c);
}

}  // namespace tk_emu
