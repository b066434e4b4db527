// What the micro-benchmarks share: one parameter struct for all three kernels, and the data pattern. The host's view is
// `Params` in device.py.
#pragma once
#include "tk_prim.cuh"

struct MicroParams {
  const uint8_t* data;  // pattern words (see pattern()); read-only but in the mode that fills it
  uint8_t* work;        // written during the launch
  uint32_t* counters;   // lines of 128 bytes, zero at launch
  uint32_t* times;      // [grid][samples] clocks
  uint32_t* sums;       // [grid][8]: what the kernel saw of the data, for the host to check
  uint32_t* spans;      // [grid][8]: global timer at begin and end, two u64; then the clock at both
  uint32_t* status;
  uint64_t offset, bytes;  // region of `data`
  uint32_t mode, rounds, samples;
  uint32_t size, stages;   // bytes of one copy; copies in flight
  uint32_t a, b, c;        // by mode
};

namespace micro {
using namespace tk;

#if defined(__CUDACC__)
#define MICRO_ROLLED _Pragma("unroll 1")
#define MICRO_UNROLL_8 _Pragma("unroll 8")
#else
#define MICRO_ROLLED
#define MICRO_UNROLL_8
#endif

// Word i of the data: never constant, never zero for long, and any run of it has a sum in closed form.
TK_FN u32 pattern(u32 i) { return i * 0x9e3779b1u + 0x7f4a7c15u; }

TK_FN bool first_thread() { return warp() == 0 && elect(); }
TK_FN u32* line(const MicroParams& p, u32 i) { return p.counters + i * 32u; }
TK_FN void record(const MicroParams& p, u32 sample, u32 clocks) { stg32(p.times + cta() * p.samples + sample, clocks); }
TK_FN void sum_out(const MicroParams& p, u32 k, u32 v) { stg32(p.sums + cta() * 8u + k, v); }
// k: 0 at the begin, 1 at the end.
TK_FN void span_out(const MicroParams& p, u32 k) {
  if (!first_thread()) return;
  const u64 t = global_timer();
  stg64(p.spans + cta() * 8u + k * 2u, u32x2{static_cast<u32>(t), static_cast<u32>(t >> 32)});
  stg32(p.spans + cta() * 8u + 4u + k, clock32());
}
}  // namespace micro
