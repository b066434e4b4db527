// Number formats below float32: f16, e4m3, e5m2; and tanh.
#include <math.h>
#include <string.h>

#include "engine.h"

namespace tk_emu {

// Nearest even to `mantissa` bits behind the point, smallest normal 2^(1 - bias). Infinity and everything that rounds
// beyond `largest` give `overflow`.
static uint32_t round_to(float f, int mantissa, int bias, uint32_t largest, uint32_t overflow) {
  const double a = fabs(static_cast<double>(f));
  if (a == 0.0) return 0;
  if (isinf(a)) return overflow;
  const int lowest = 1 - bias;
  int e;
  frexp(a, &e);
  e = e - 1 < lowest ? lowest : e - 1;
  // The leading one of a normal number adds one to the exponent field.
  const double units = nearbyint(ldexp(a, mantissa - e));
  const uint64_t code = static_cast<uint64_t>(units) + (static_cast<uint64_t>(e - lowest) << mantissa);
  return code > largest ? overflow : static_cast<uint32_t>(code);
}

uint32_t float_to_half(float f) {
  if (f != f) return 0x7fffu;
  return (tk::f2u(f) >> 31) << 15 | round_to(f, 10, 15, 0x7bffu, 0x7c00u);
}
float half_to_float(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31u) return tk::u2f(mantissa ? 0x7fffffffu : sign | 0x7f800000u);
  if (exponent) return tk::u2f(sign | (exponent + 112u) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -magnitude : magnitude;
}

// Rounded to odd in double and float, so that the last rounding is right.
uint32_t half_fma(uint32_t a, uint32_t b, uint32_t c) {
  const double product = static_cast<double>(half_to_float(a)) * static_cast<double>(half_to_float(b));
  const double addend = static_cast<double>(half_to_float(c));
  double sum = product + addend;
  if (sum != sum) return 0x7fffu;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (addend - back);
  if (error != 0.0 && !isinf(sum)) {
    uint64_t bits;
    memcpy(&bits, &sum, 8);
    if (!(bits & 1)) {
      bits = (error > 0.0) == (sum > 0.0) ? bits | 1 : bits - 1;
      memcpy(&sum, &bits, 8);
    }
  }
  float f = static_cast<float>(sum);
  if (static_cast<double>(f) != sum && !isinf(f)) {
    uint32_t u = tk::f2u(f);
    if (!(u & 1)) u = fabs(static_cast<double>(f)) < fabs(sum) ? u | 1u : u - 1u;
    f = tk::u2f(u);
  }
  return float_to_half(f);
}

uint32_t float_to_e4m3(float f) {
  if (f != f) return 0x7fu;
  return (tk::f2u(f) >> 31) << 7 | round_to(f, 3, 7, 0x7eu, 0x7eu);
}
uint32_t float_to_e5m2(float f) {
  if (f != f) return 0x7fu;
  return (tk::f2u(f) >> 31) << 7 | round_to(f, 2, 15, 0x7bu, 0x7bu);
}

uint32_t e4m3_to_half(uint32_t code) {
  const uint32_t sign = (code & 0x80u) << 8, exponent = code >> 3 & 15u, mantissa = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return 0x7fffu;
  if (exponent) return sign | (exponent + 8u) << 10 | mantissa << 7;
  return sign | float_to_half(static_cast<float>(mantissa) * 0.001953125f);  // 2^-9
}
uint32_t e5m2_to_half(uint32_t code) {
  return (code & 0x7fu) > 0x7cu ? 0x7fffu : code << 8;
}

float tanh_approx(float x) {
  if (x != x) return tk::u2f(0x7fffffffu);
  // (1 - t) / (1 + t) with t = 2^(-2 |x| log2 e): the same on every machine.
  const double a = fabs(static_cast<double>(x));
  double result = 1.0;
  if (a < 1e-3) {
    result = a - a * a * a / 3.0;
  } else if (a < 12.0) {
    const double t = exp2_approx(static_cast<float>(-2.0 * 1.44269504088896340736 * a));
    result = (1.0 - t) / (1.0 + t);
  }
  const float magnitude = static_cast<float>(result);
  return tk::f2u(x) >> 31 ? -magnitude : magnitude;
}

}  // namespace tk_emu
