// State of the emulator that the inline primitives touch. Everything else lives in templates/emulator.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <source_location>

namespace tk_emu {

using Site = std::source_location;

// Shared memory starts here, so that an offset used without smem_base() is out of bounds.
constexpr uint32_t kSmemBase = 1024;
constexpr int kLanes = 32;

// Per-warp counts, summed per role at the end. Names: kCountNames in report.cpp, same order.
enum Count : int {
  kMma, kShfl, kSyncwarp, kBarrier, kMbarWait, kMbarArrive, kCounterWait, kCounterSignal,
  kLds, kSts, kLdsBytes, kStsBytes, kLdg, kStg, kLdgBytes, kStgBytes,
  kBulkLoad, kBulkStore, kBulkLoadBytes, kBulkStoreBytes, kFenceProxy, kMath, kBankConflicts, kMatrixMove,
  kWgmma, kTma, kCpAsync, kSmemWavefronts, kPrefetch, kPrefetchBytes, kWordPoll, kWordPush,
  kFenceCta, kFenceGpu, kFenceSystem, kFenceWgmma, kCpAsyncBytes,
  kCounts
};

struct WatchCopy {
  uint32_t role = 0, op = 0, layer = 0, item = 0;
  uint32_t* status = nullptr;
  bool known = false;
};

struct Cta {
  uint8_t* smem = nullptr;         // [smem_bytes]
  uint16_t* granule = nullptr;     // region id of each 8-byte granule; 0 = undeclared, >= kBarrierId = mbarrier
  uint32_t smem_bytes = 0;
  uint32_t index = 0;              // blockIdx.x within its rank
  uint32_t rank = 0;
  uint32_t number = 0;             // over all ranks
  uint32_t cluster_rank = 0;       // within its cluster
  uint32_t cluster_size = 1;
};
constexpr uint16_t kBarrierId = 0x8000;

struct Warp {
  uint32_t ready = 0;              // lanes that can run
  uint32_t arrived = 0;            // lanes inside the current collective
  uint32_t exited = 0;
  uint32_t turn = 0;               // next lane to run starts from here
  void* slot[kLanes];              // arguments of the collective, one per lane
  const char* what = nullptr;      // name of the collective
  Site site;
  Cta* cta = nullptr;
  uint32_t index = 0;              // within the CTA
  uint32_t number = 0;             // over all CTAs
  WatchCopy watch;                 // of the latest wait
  uint64_t counts[kCounts] = {};
};

struct Fiber {
  void* sp = nullptr;
  Warp* warp = nullptr;
  Cta* cta = nullptr;
  uint32_t lane = 0;
};

// A span of global memory that an inline check last hit: offset < bytes, and no shadow work to do.
struct Window {
  uintptr_t lo = 0;
  uintptr_t bytes = 0;
};
enum WindowKind : int { kReadWindow, kReadOnlyWindow, kWriteWindow, kUniformWindow, kWindows };

#define TK_HIDDEN __attribute__((visibility("hidden")))
extern TK_HIDDEN Fiber* cur;             // running fiber
extern TK_HIDDEN bool preempt_on;
extern TK_HIDDEN bool shadow_on;         // some detector wants to see every access
extern TK_HIDDEN bool banks_on;          // bank conflicts are counted
extern TK_HIDDEN Window window[kWindows];

TK_HIDDEN void preempt_slow();
TK_HIDDEN void next_lane(Warp* warp);    // current lane is not ready any more: run another fiber
TK_HIDDEN void add_to_ready(Warp* warp);
[[noreturn]] TK_HIDDEN void diverged(Warp* warp, const char* what, Site site);
TK_HIDDEN void smem_slow(uint32_t addr, uint32_t bytes, const char* what, Site site);
TK_HIDDEN void global_slow(WindowKind kind, const void* p, uint32_t bytes, const char* what, Site site);
TK_HIDDEN void bank_access(uint32_t addr, uint32_t bytes, const char* what, Site site);
TK_HIDDEN void bank_flush(Warp* warp);   // the lanes have met: what is not complete never will be
TK_HIDDEN void shadow_smem(uint32_t addr, uint32_t bytes, bool write, const char* what, Site site);
TK_HIDDEN void shadow_global(WindowKind kind, const void* p, uint32_t bytes, const char* what, Site site);

#define TK_ALWAYS inline __attribute__((always_inline))
#define TK_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define TK_LIKELY(x) __builtin_expect(!!(x), 1)

TK_ALWAYS void preempt_point() {
  if (TK_UNLIKELY(preempt_on)) preempt_slow();
}
TK_ALWAYS void count(Count what, uint64_t by = 1) { cur->warp->counts[what] += by; }

// A warp-wide operation. The last lane to arrive runs `work(slots)` for all, the others sleep. Every lane
// must come from the same place of the source: anything else is divergence, undefined on a GPU.
template <class Work>
TK_ALWAYS void collective(void* argument, const char* what, Site site, Work&& work) {
  preempt_point();
  Fiber* self = cur;
  Warp* warp = self->warp;
  if (TK_UNLIKELY(warp->arrived | warp->exited)) {
    if (TK_UNLIKELY(warp->exited || warp->site.line() != site.line() || warp->site.column() != site.column() ||
                    warp->what != what))
      diverged(warp, what, site);
  } else {
    warp->site = site;
    warp->what = what;
  }
  warp->slot[self->lane] = argument;
  warp->arrived |= 1u << self->lane;
  if (warp->arrived == 0xffffffffu) {
    if (TK_UNLIKELY(banks_on)) bank_flush(warp);
    work(warp);
    return;
  }
  warp->ready &= ~(1u << self->lane);
  next_lane(warp);
}
TK_ALWAYS void release_all(Warp* warp) {
  warp->arrived = 0;
  warp->ready = 0xffffffffu;
}

}  // namespace tk_emu
