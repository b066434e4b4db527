// Vector clocks of the race detector.
//
// Agents, in the order of their numbers: for warp w, 4w = its lanes by epoch (a syncwarp ends an epoch), 4w+1 = its
// lane 0 by releases, 4w+2 = its bulk stores reading shared memory, 4w+3 = its bulk stores writing global memory
// (both by group); then one per mbarrier (copies into it, by phase).
#pragma once
#include <stdint.h>

#include <vector>

namespace tk_emu {

struct Clock {
  std::vector<uint32_t> at;
  uint32_t get(uint32_t agent) const { return agent < at.size() ? at[agent] : 0; }
  void raise(uint32_t agent, uint32_t to) {
    if (at.size() <= agent) at.resize(agent + 1, 0);
    if (at[agent] < to) at[agent] = to;
  }
  void join(const Clock& other) {
    const size_t n = other.at.size();
    if (at.size() < n) at.resize(n, 0);
    uint32_t* to = at.data();
    const uint32_t* from = other.at.data();
    for (size_t i = 0; i < n; i++) to[i] = to[i] < from[i] ? from[i] : to[i];
  }
};

// What happened before, and the part of it that the async proxy is sure to see (only fence.proxy.async moves
// generic writes into it).
struct Clocks {
  Clock seen, proxied;
  uint64_t version = 0;  // of what barriers and counters hold: never twice the same for different contents
  void join(const Clocks& other) {
    seen.join(other.seen);
    proxied.join(other.proxied);
  }
  void clear() {
    seen.at.clear();
    proxied.at.clear();
  }
};

// Knowledge of one warp. Lane 0, which waits and signals for the others, has its own; a syncwarp unites the two.
struct WarpClocks {
  Clocks lane0, rest;
  uint32_t epoch = 1;     // ended by syncwarp and barriers
  uint32_t releases = 1;  // of lane 0; a proxy fence of lane 0 counts too
  uint32_t unfenced = 0;  // lanes with generic writes of this epoch after their last proxy fence
  uint64_t rest_joined = 0;  // version that lanes 1-31 acquired last: the next lane learns nothing new from it
  bool rest_fenced = false;  // ... fenced, and nothing was learnt since
  Clocks fenced;          // published by a relaxed signal after fence_gpu
  bool has_fenced = false;
};

inline uint32_t lanes_agent(uint32_t warp) { return 4 * warp; }
inline uint32_t lane0_agent(uint32_t warp) { return 4 * warp + 1; }
inline uint32_t store_read_agent(uint32_t warp) { return 4 * warp + 2; }
inline uint32_t store_write_agent(uint32_t warp) { return 4 * warp + 3; }

}  // namespace tk_emu
