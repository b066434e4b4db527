// Happens-before race detection and uninitialised reads: what the primitives tell the detector.
#pragma once
#include "engine.h"

namespace tk_emu {

// An asynchronous access of a bulk copy: by which agent, and at which of its times it is complete. Reductions are
// atomic per element at GPU scope: they may come in any order among themselves.
struct AsyncAccess {
  uint32_t agent, time;
  bool reduce = false;
  bool uses = false;  // of what it reads: a reduction, wgmma
};

// Agents by the number of a warp over all CTAs.
inline uint32_t lanes_agent(uint32_t warp) { return engine->warps[warp].clocks.agent + kLanesPart; }
inline uint32_t lane0_agent(uint32_t warp) { return engine->warps[warp].clocks.agent + kLane0Part; }
inline uint32_t store_read_agent(uint32_t warp) { return engine->warps[warp].clocks.agent + kStoreReadPart; }
inline uint32_t store_write_agent(uint32_t warp) { return engine->warps[warp].clocks.agent + kStoreWritePart; }

inline bool in_scope(tk::Scope scope, const Cta* a, const Cta* b) {
  return scope == tk::Scope::kSys || (scope == tk::Scope::kGpu ? a->rank == b->rank : a == b);
}
const char* scope_name(tk::Scope scope);

// Synchronisation (clocks only; call when engine->races).
void release_by_lane0(Clocks& to);               // an arrive or a release of lane 0
void acquire_by_lane(const Clocks& from);        // a wait of the current lane
void end_epoch(Warp* warp);                      // syncwarp
void release_by_warp(Warp* warp, Clocks& to);    // bar_sync, bar_arrive; ends the epoch
void acquire_by_warp(Warp* warp, const Clocks& from);
void fence_async_proxy();                        // by the current lane
void stores_done(uint32_t agent, uint64_t group);

// Scoped synchronisation through counters and words: what a signal publishes, and whom a wait learns it from.
bool publish(bool release, tk::Scope scope, Publication& to);  // false: a relaxed signal without a fence before it
void acquire(const Counter& counter, size_t count, tk::Scope scope, bool relaxed, const char* what, Site site);
void acquire_one(const Publication& from, tk::Scope scope, bool relaxed, const char* what, Site site);
void fence_threads(tk::Scope scope, Site site);

// Accesses of bulk copies; of counters and words (atomic; a wait that takes a datum `observes` the store it reads).
void shadow_async_smem(CtaState* cta, uint32_t addr, uint32_t bytes, bool write, AsyncAccess by, const char* what,
                       Site site);
void shadow_peer_smem(CtaState* cta, uint32_t addr, uint32_t bytes, bool write, const char* what, Site site);
void shadow_async_global(const void* p, uint64_t bytes, bool write, AsyncAccess by, const char* what, Site site);
void shadow_atomic(const void* p, uint32_t bytes, bool write, bool observes, tk::Scope scope, const char* what,
                   Site site);

// Bytes that a copy brings are written as far as those of its source were.
struct Span {
  ShadowSpace* shadow = nullptr;  // null: read-only memory
  uint64_t at = 0;
};
Span smem_span(CtaState* cta, uint32_t addr);
Span global_span(const void* p);
void carry_written(Span from, Span to, uint64_t bytes);
void forget_written(CtaState* cta, uint32_t addr, uint32_t bytes);  // nobody may read it until it is written again

}  // namespace tk_emu
