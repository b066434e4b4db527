// Host stand-in for tk_prim.cuh in the tests of tile bodies: a warp is 32 contexts on one thread, switched at every
// shuffle. Deliberately independent of the emulator, so that a fault there does not hide one here.
#pragma once
#include <math.h>
#include <stdint.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define TK_FN static inline
#define TK_UNROLL

constexpr int kLanes = 32;
constexpr int kStack = 64 << 10;

struct Warp {
  ucontext_t main, lane[kLanes];
  std::vector<char> stacks = std::vector<char>(kLanes * kStack);
  std::function<void(int)> work;
  uint32_t word[2][kLanes];  // exchanged values, by parity of the shuffle's number
  int shuffles[kLanes];
  bool done[kLanes];
  int now = 0;
  bool diverged = false;
};
static Warp warp;

static void lane_main() {
  warp.work(warp.now);
  warp.done[warp.now] = true;
  swapcontext(&warp.lane[warp.now], &warp.main);
}

// Run `work(lane)` for 32 lanes. False if the lanes did not all take part in the same number of shuffles.
static bool run_warp(std::function<void(int)> work) {
  warp.work = std::move(work);
  warp.diverged = false;
  for (int i = 0; i < kLanes; ++i) {
    warp.done[i] = false;
    warp.shuffles[i] = 0;
    getcontext(&warp.lane[i]);
    warp.lane[i].uc_stack.ss_sp = &warp.stacks[i * kStack];
    warp.lane[i].uc_stack.ss_size = kStack;
    warp.lane[i].uc_link = nullptr;
    makecontext(&warp.lane[i], lane_main, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (int i = 0; i < kLanes; ++i) {
      if (warp.done[i]) continue;
      warp.now = i;
      swapcontext(&warp.main, &warp.lane[i]);
      running = running || !warp.done[i];
    }
    for (int i = 1; i < kLanes; ++i) warp.diverged = warp.diverged || warp.shuffles[i] != warp.shuffles[0];
  }
  return !warp.diverged;
}

static uint32_t exchange(uint32_t v, int mask) {
  const int me = warp.now, parity = warp.shuffles[me]++ % 2;
  warp.word[parity][me] = v;
  swapcontext(&warp.lane[me], &warp.main);
  return warp.word[parity][me ^ mask];
}

TK_FN float tk_shfl_xor_f32(float v, int mask) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  bits = exchange(bits, mask);
  __builtin_memcpy(&v, &bits, 4);
  return v;
}
TK_FN int tk_shfl_xor_i32(int v, int mask) { return static_cast<int>(exchange(static_cast<uint32_t>(v), mask)); }

// Approximate instructions: correctly rounded here, with a relative error the tests can set, and flushing like .ftz.
static float estimate_error = 0.0f;
TK_FN float flush(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
TK_FN float tk_exp2(float x) { return flush(static_cast<float>(exp2(static_cast<double>(flush(x))))); }
TK_FN float tk_rcp(float x) { return flush(1.0f / flush(x)); }
TK_FN float tk_rsqrt(float x) {
  return static_cast<float>((1.0 + static_cast<double>(estimate_error)) / sqrt(static_cast<double>(flush(x))));
}
