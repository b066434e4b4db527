// Synchronisation events of the race detector. Model: a release of lane 0 publishes lane 0's own accesses and those of
// the other lanes up to the last syncwarp; an acquire counts for lane 0 or for the other lanes until a syncwarp unites
// them; a generic write is seen by an async access only across fence.proxy.async, at either end of the chain.
#include "race.h"

namespace tk_emu {

static WarpClocks& clocks_of(Warp* warp) { return static_cast<WarpState*>(warp)->clocks; }

static void publish(WarpClocks& k, uint32_t warp, Clocks& to) {
  to.version = ++engine->versions;
  to.join(k.lane0);
  to.seen.raise(lanes_agent(warp), k.epoch - 1);
  to.seen.raise(lane0_agent(warp), k.releases);
  k.releases++;
}

void release_by_lane0(Clocks& to) { publish(clocks_of(cur->warp), cur->warp->number, to); }

void release_relaxed(Clocks& to) {
  WarpClocks& k = clocks_of(cur->warp);
  if (!k.has_fenced) return;
  to.version = ++engine->versions;
  to.join(k.fenced);
}

void fence_for_signals() {
  if (cur->lane != 0) return;
  WarpClocks& k = clocks_of(cur->warp);
  k.fenced.clear();
  publish(k, cur->warp->number, k.fenced);
  k.has_fenced = true;
}

void acquire_by_lane(const Clocks& from) {
  WarpClocks& k = clocks_of(cur->warp);
  if (cur->lane == 0) return k.lane0.join(from);
  if (from.version && from.version == k.rest_joined) return;
  k.rest_joined = from.version;
  k.rest_fenced = false;
  k.rest.join(from);
}

void end_epoch(Warp* warp) {
  WarpClocks& k = clocks_of(warp);
  k.lane0.join(k.rest);
  // Every lane fenced what it wrote: the async proxy sees the whole epoch, if it saw the ones before.
  const uint32_t agent = lanes_agent(warp->number);
  if (!k.unfenced && k.lane0.proxied.get(agent) + 1 >= k.epoch) k.lane0.proxied.raise(agent, k.epoch);
  k.rest = k.lane0;
  k.rest_fenced = false;
  k.unfenced = 0;
  k.epoch++;
}

void release_by_warp(Warp* warp, Clocks& to) {
  end_epoch(warp);
  publish(clocks_of(warp), warp->number, to);
}

void acquire_by_warp(Warp* warp, const Clocks& from) {
  WarpClocks& k = clocks_of(warp);
  k.lane0.join(from);
  k.rest.join(from);
  k.rest_fenced = false;
}

void fence_async_proxy() {
  WarpClocks& k = clocks_of(cur->warp);
  const uint32_t warp = cur->warp->number;
  Clocks& mine = cur->lane == 0 ? k.lane0 : k.rest;
  if (cur->lane == 0 || !k.rest_fenced) {
    mine.proxied.join(mine.seen);
    mine.proxied.raise(lanes_agent(warp), k.epoch - 1);  // a syncwarp put these before the fence
  }
  k.rest_fenced |= cur->lane != 0;
  k.unfenced &= ~(1u << cur->lane);
  if (cur->lane == 0) mine.proxied.raise(lane0_agent(warp), k.releases++);
}

void stores_done(uint32_t agent, uint64_t group) {
  Clocks& mine = clocks_of(cur->warp).lane0;
  mine.seen.raise(agent, static_cast<uint32_t>(group));
  mine.proxied.raise(agent, static_cast<uint32_t>(group));
}

void sync_warp_clocks(Warp* warp) {
  if (engine->races) end_epoch(warp);
}

}  // namespace tk_emu
