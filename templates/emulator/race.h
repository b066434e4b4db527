// Happens-before race detection and uninitialised reads: what the primitives tell the detector.
#pragma once
#include "engine.h"

namespace tk_emu {

// An asynchronous access of a bulk copy: by which agent, and at which of its times it is complete.
struct AsyncAccess {
  uint32_t agent, time;
  bool reduce = false;
};

// Synchronisation (clocks only; call when engine->races).
void release_by_lane0(Clocks& to);               // an arrive or a release of lane 0
void release_relaxed(Clocks& to);                // a relaxed signal: only what a fence before it published
void acquire_by_lane(const Clocks& from);        // a wait of the current lane
void end_epoch(Warp* warp);                      // syncwarp
void release_by_warp(Warp* warp, Clocks& to);    // bar_sync, bar_arrive; ends the epoch
void acquire_by_warp(Warp* warp, const Clocks& from);
void fence_async_proxy();                        // by the current lane
void fence_for_signals();                        // fence_gpu of lane 0
void stores_done(uint32_t agent, uint64_t group);

// Accesses of bulk copies.
void shadow_async_smem(CtaState* cta, uint32_t addr, uint32_t bytes, bool write, AsyncAccess by, const char* what,
                       Site site);
void shadow_peer_smem(CtaState* cta, uint32_t addr, uint32_t bytes, bool write, const char* what, Site site);
void shadow_async_global(const void* p, uint64_t bytes, bool write, AsyncAccess by, const char* what, Site site);

}  // namespace tk_emu
