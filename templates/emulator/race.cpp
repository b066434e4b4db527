// Synchronisation events of the race detector. Model: a release of lane 0 publishes lane 0's own accesses and those of
// the other lanes up to the last syncwarp; an acquire counts for the lane that made it until a syncwarp unites them; a
// generic write is seen by an async access only across fence.proxy.async, at either end of the chain. An edge from a
// release to an acquire counts only when each lies in the scope of the other.
#include "race.h"

#include <algorithm>

namespace tk_emu {

static constexpr uint32_t kOtherLanes = 0xfffffffeu;

static WarpClocks& clocks_of(Warp* warp) { return static_cast<WarpState*>(warp)->clocks; }

void Clocks::join(const Clocks& other) {
  seen.join(other.seen);
  proxied.join(other.proxied);
  narrow.join(other.narrow);
  for (const LanePast& p : other.past) add(p);
}

void Clocks::add(const LanePast& p) {
  if (seen.get(p.agent) >= p.epoch) return;
  size_t left = 0;
  for (const LanePast& q : past) {
    if (q.agent == p.agent && q.epoch == p.epoch && q.lanes == p.lanes && q.narrow == p.narrow && q.fences <= p.fences) continue;
    if (seen.get(q.agent) < q.epoch) past[left++] = q;
  }
  past.resize(left);
  past.push_back(p);
}

const char* scope_name(tk::Scope scope) {
  return scope == tk::Scope::kCta ? ".cta" : scope == tk::Scope::kGpu ? ".gpu" : ".sys";
}

static void publish_lane0(WarpClocks& k, Clocks& to) {
  // One's own past is part of what one has seen: then the first to publish into `to` shares its tables with it.
  k.lane0.seen.raise(k.agent + kLanesPart, k.epoch - 1);
  k.lane0.seen.raise(k.agent + kLane0Part, k.releases);
  to.join(k.lane0);
  k.releases++;
}

void release_by_lane0(Clocks& to) { publish_lane0(clocks_of(cur->warp), to); }

// ---- acquiring -----------------------------------------------------------------------------------------

static void fold(WarpClocks& k, Clocks& into, const LaneClocks& a) {
  (void)k;
  into.join(a.clocks);
  if (a.fenced) into.proxied.join(a.clocks.seen);
}

void acquire_by_lane(const Clocks& from) {
  WarpClocks& k = clocks_of(cur->warp);
  if (cur->lane == 0) return k.lane0.join(from);
  if (k.last_joined.same(from)) return;
  const uint32_t lane = 1u << cur->lane;
  for (LaneClocks& a : k.apart) {
    if (!a.clocks.same(from)) continue;
    a.lanes |= lane;
    if (a.lanes == kOtherLanes) {
      fold(k, k.rest, a);
      k.rest_fenced = false;
      k.last_joined = std::move(a.clocks);
      a = std::move(k.apart.back());
      k.apart.pop_back();
    }
    return;
  }
  k.apart.push_back({lane, 0, tk::Scope::kSys, from});
}

void end_epoch(Warp* warp) {
  WarpClocks& k = clocks_of(warp);
  k.lane0.join(k.rest);
  for (const LaneClocks& a : k.apart) fold(k, k.lane0, a);
  k.apart.clear();
  // Every lane fenced what it wrote: the async proxy sees the whole epoch, if it saw the ones before.
  const uint32_t agent = k.agent + kLanesPart;
  if (!k.unfenced && k.lane0.proxied.get(agent) + 1 >= k.epoch) k.lane0.proxied.raise(agent, k.epoch);
  k.rest = k.lane0;
  k.rest_fenced = false;
  k.unfenced = 0;
  if (k.has_fences) std::fill(k.fences, k.fences + kLanes, static_cast<uint8_t>(0));
  k.has_fences = false;
  k.epoch++;
}

void release_by_warp(Warp* warp, Clocks& to) {
  end_epoch(warp);
  publish_lane0(clocks_of(warp), to);
}

void acquire_by_warp(Warp* warp, const Clocks& from) {
  WarpClocks& k = clocks_of(warp);
  k.lane0.join(from);
  k.rest.join(from);
  k.rest_fenced = false;
}

void fence_async_proxy() {
  WarpClocks& k = clocks_of(cur->warp);
  const uint32_t lane = 1u << cur->lane;
  k.unfenced &= ~lane;
  if (cur->lane == 0) {
    k.lane0.proxied.join(k.lane0.seen);
    k.lane0.proxied.raise(k.agent + kLanesPart, k.epoch - 1);  // a syncwarp put these before the fence
    k.lane0.proxied.raise(k.agent + kLane0Part, k.releases++);
    return;
  }
  for (LaneClocks& a : k.apart)
    if (a.lanes & lane) a.fenced |= lane;
  if (k.rest_fenced) return;
  k.rest_fenced = true;
  k.rest.proxied.join(k.rest.seen);
  k.rest.proxied.raise(k.agent + kLanesPart, k.epoch - 1);
}

void stores_done(uint32_t agent, uint64_t group) {
  Clocks& mine = clocks_of(cur->warp).lane0;
  mine.seen.raise(agent, static_cast<uint32_t>(group));
  mine.proxied.raise(agent, static_cast<uint32_t>(group));
}

void sync_warp_clocks(Warp* warp) {
  if (engine->races) end_epoch(warp);
}

// ---- scopes --------------------------------------------------------------------------------------------

bool publish(bool release, tk::Scope scope, Publication& to) {
  WarpClocks& k = clocks_of(cur->warp);
  to.scope = scope;
  if (release) {
    publish_lane0(k, to.own);
    return true;
  }
  // A relaxed signal publishes what a fence before it closed, as far as both reach.
  const LaneClocks* best = nullptr;
  for (const LaneClocks& f : k.fenced)
    if ((f.lanes >> cur->lane & 1) && (!best || f.scope > best->scope)) best = &f;
  if (!best) {  // reports of races name it
    if (cur->lane == 0) {
      to.own.narrow = k.lane0.seen;
      to.own.narrow.raise(k.agent + kLane0Part, k.releases++);
    } else {
      to.own.narrow = k.rest.seen;
    }
    to.own.narrow.raise(k.agent + kLanesPart, k.epoch - 1);
    return false;
  }
  to.scope = std::min(scope, best->scope);
  for (const LaneClocks& f : k.fenced)
    if ((f.lanes >> cur->lane & 1) && f.scope >= to.scope) to.own.join(f.clocks);
  return true;
}

static void fence_before_signals(tk::Scope scope) {
  WarpClocks& k = clocks_of(cur->warp);
  const uint32_t lane = 1u << cur->lane;
  k.fenced.erase(std::remove_if(k.fenced.begin(), k.fenced.end(),
                                [&](LaneClocks& f) {
                                  if (f.scope <= scope) f.lanes &= ~lane;
                                  return !f.lanes;
                                }),
                 k.fenced.end());
  k.fenced.push_back({lane, 0, scope, {}});
  Clocks& c = k.fenced.back().clocks;
  if (cur->lane == 0) return publish_lane0(k, c);
  c = k.rest;
  for (const LaneClocks& a : k.apart)
    if (a.lanes & lane) c.join(a.clocks);
  c.seen.raise(k.agent + kLanesPart, k.epoch - 1);
  k.has_fences = true;
  if (k.fences[cur->lane] < 255) k.fences[cur->lane]++;
  c.add({k.agent + kLanesPart, k.epoch, lane, k.fences[cur->lane], false});
}

// Remembers an edge that exists but does not reach: reports of races look here for what should have ordered them.
static void note_narrow(const Publication& from, tk::Scope scope, const char* what, Site site, Lost why = Lost::kScope) {
  Engine& e = *engine;
  WarpClocks& k = clocks_of(cur->warp);
  Clocks lost;
  lost.narrow = from.own.seen;
  lost.narrow.join(from.own.narrow);
  for (LanePast p : from.own.past) {
    p.narrow = true;
    lost.add(p);
  }
  (cur->lane == 0 ? k.lane0 : k.rest).join(lost);
  for (NarrowEdge& n : e.narrow_edges)
    if (n.from.line() == from.site.line() && n.to.line() == site.line() && n.from_scope == from.scope && n.scope == scope &&
        n.why == why) {
      n.lost.join(lost);
      return;
    }
  if (e.narrow_edges.size() < 64)
    e.narrow_edges.push_back({why, from.what, what, from.site, site, from.scope, scope, from.cta->rank != cur->cta->rank, lost});
}

static void hold_for_fence(const Clocks& clocks, tk::Scope needed) {
  WarpClocks& k = clocks_of(cur->warp);
  const uint32_t lane = 1u << cur->lane;
  for (LaneClocks& r : k.relaxed)
    if (r.lanes == lane && r.scope == needed) return r.clocks.join(clocks);
  k.relaxed.push_back({lane, 0, needed, clocks});
}

void acquire_one(const Publication& from, tk::Scope scope, bool relaxed, const char* what, Site site) {
  const Cta* me = cur->cta;
  if (!from.releases) return note_narrow(from, scope, what, site, Lost::kRelaxedSignal);
  if (!in_scope(from.scope, from.cta, me) || !in_scope(scope, from.cta, me)) return note_narrow(from, scope, what, site);
  if (!relaxed) return acquire_by_lane(from.own);
  const tk::Scope needed = from.cta == me ? tk::Scope::kCta : from.cta->rank == me->rank ? tk::Scope::kGpu : tk::Scope::kSys;
  hold_for_fence(from.own, needed);
}

// Learns what the first `count` publications of the counter's history published.
void acquire(const Counter& c, size_t count, tk::Scope scope, bool relaxed, const char* what, Site site) {
  if (!count) return;
  const Publication& last = c.history[count - 1];
  if (relaxed) {  // unless a fence follows
    Publication chain = last;
    chain.own = last.all;
    note_narrow(chain, scope, what, site, Lost::kRelaxedWait);
  }
  const bool everyone = last.narrowest == tk::Scope::kSys && scope == tk::Scope::kSys;
  const bool my_gpu = last.rank == static_cast<int>(cur->cta->rank) && last.narrowest != tk::Scope::kCta && scope != tk::Scope::kCta;
  if ((everyone || my_gpu) && last.all_release) {
    if (!relaxed) return acquire_by_lane(last.all);
    return hold_for_fence(last.all, everyone && !my_gpu ? tk::Scope::kSys : tk::Scope::kGpu);
  }
  for (size_t i = last.chain > c.forgotten ? last.chain - c.forgotten : 0; i < count; i++)
    acquire_one(c.history[i], scope, relaxed, what, site);
  if (last.chain <= c.forgotten)
    for (const Publication& old : c.old) acquire_one(old, scope, relaxed, what, site);
}

void fence_threads(tk::Scope scope, Site site) {
  WarpClocks& k = clocks_of(cur->warp);
  const uint32_t lane = 1u << cur->lane;
  for (size_t i = 0; i < k.relaxed.size();) {
    LaneClocks& r = k.relaxed[i];
    if (r.lanes != lane) {
      i++;
      continue;
    }
    if (r.scope <= scope) {
      acquire_by_lane(r.clocks);
      r = std::move(k.relaxed.back());
      k.relaxed.pop_back();
    } else {
      // A wider fence may still come.
      Publication from{};
      from.what = "signal", from.cta = cur->cta, from.scope = r.scope, from.own = r.clocks, from.site = site;
      note_narrow(from, scope, "fence", site);
      i++;
    }
  }
  fence_before_signals(scope);
}

}  // namespace tk_emu
