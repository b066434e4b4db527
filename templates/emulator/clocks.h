// Vector clocks of the race detector.
//
// Agents are numbered CTA << kCtaShift | number within the CTA. Warp w of a CTA has agents kWarpAgents * w + Part; each
// mbarrier has one more (copies into it, by phase). Clocks are shared until they are changed: a table of one chunk per
// CTA, both counted. Joining what another warp of the same CTA published touches one chunk, not the whole grid.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "tk_prim.cuh"

namespace tk_emu {

constexpr uint32_t kCtaShift = 12;
// A warp's agents: its lanes by epoch (a syncwarp ends an epoch), its lane 0 by releases, its bulk stores reading shared
// memory and writing global memory (both by group), and four for other asynchronous operations.
enum Part : uint32_t { kLanesPart, kLane0Part, kStoreReadPart, kStoreWritePart, kAsyncPart, kWarpAgents = 8 };

struct Chunk {
  uint32_t refs, size;  // size: multiple of 16
  uint32_t* at() { return reinterpret_cast<uint32_t*>(this + 1); }
  const uint32_t* at() const { return reinterpret_cast<const uint32_t*>(this + 1); }
};
struct ClockTable {
  uint64_t refs;
  Chunk** at() { return reinterpret_cast<Chunk**>(this + 1); }
};

class Clock {
 public:
  Clock() = default;
  Clock(const Clock& o) : table_(o.table_) {
    if (table_) table_->refs++;
  }
  Clock(Clock&& o) noexcept : table_(o.table_) { o.table_ = nullptr; }
  Clock& operator=(Clock o) noexcept {
    ClockTable* t = table_;
    table_ = o.table_;
    o.table_ = t;
    return *this;
  }
  ~Clock() {
    if (table_) drop();
  }
  uint32_t get(uint32_t agent) const {
    if (!table_) return 0;
    const Chunk* c = table_->at()[agent >> kCtaShift];
    const uint32_t i = agent & ((1u << kCtaShift) - 1u);
    return c && i < c->size ? c->at()[i] : 0;
  }
  bool empty() const { return !table_; }
  bool same(const Clock& o) const { return table_ == o.table_; }
  void clear() {
    if (table_) drop();
    table_ = nullptr;
  }
  void raise(uint32_t agent, uint32_t to);
  void join(const Clock& o) {
    if (o.table_ && o.table_ != table_) join_table(o);
  }
  static void set_ctas(uint32_t n);  // before a launch
  static void free_pools();          // after it

 private:
  void join_table(const Clock& o);
  void unshare();
  void drop();
  ClockTable* table_ = nullptr;
};

// Lanes that fenced in the running epoch of their warp: what they did before their first `fences` fences is published.
struct LanePast {
  uint32_t agent, epoch, lanes, fences;
  bool narrow;  // only if every scope had been wide enough
};

// What happened before; the part of it that the async proxy is sure to see (only fence.proxy.async moves generic
// writes into it); and what would have happened before, too, had every scope been wide enough and no signal or wait been
// relaxed without a fence.
struct Clocks {
  Clock seen, proxied, narrow;
  std::vector<LanePast> past;
  void join(const Clocks& other);
  void add(const LanePast& p);
  bool same(const Clocks& o) const {
    return seen.same(o.seen) && proxied.same(o.proxied) && narrow.same(o.narrow) && past.empty() && o.past.empty();
  }
  void clear() {
    seen.clear();
    proxied.clear();
    narrow.clear();
    past.clear();
  }
};

// Knowledge that some lanes of a warp have for themselves.
struct LaneClocks {
  uint32_t lanes;
  uint32_t fenced;  // lanes that crossed a proxy fence after they had it
  tk::Scope scope;
  Clocks clocks;
};

// Knowledge of one warp. Lane 0, which waits and signals for the others, has its own; a syncwarp unites the two.
struct WarpClocks {
  uint32_t agent = 0;     // the first of the warp's
  uint32_t epoch = 1;     // ended by syncwarp and barriers
  uint32_t releases = 1;  // of lane 0; a proxy fence of lane 0 counts too
  uint32_t unfenced = 0;  // lanes with generic writes of this epoch after their last proxy fence
  Clocks lane0, rest;
  Clocks last_joined;               // the last that lanes 1 to 31 all acquired
  bool rest_fenced = false;         // some lane of 1 to 31 crossed a proxy fence, and nothing was learnt since
  bool has_fences = false;
  uint8_t fences[32] = {};          // of each lane in this epoch
  std::vector<LaneClocks> apart;    // acquired by some of lanes 1 to 31, until a syncwarp
  std::vector<LaneClocks> fenced;   // published by a relaxed signal of these lanes, after their fence
  std::vector<LaneClocks> relaxed;  // met by relaxed waits of these lanes: acquired by their next fence of that scope
};

}  // namespace tk_emu
