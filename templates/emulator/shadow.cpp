// Checks every access against the accesses it may conflict with.
#include "race.h"

#include <algorithm>

namespace tk_emu {

namespace {

// The current access, and how far the one who makes it can see.
struct Current {
  Access access;
  const Clocks* knows;
  bool by_proxy;            // an asynchronous access
  bool observes;            // a wait that takes the datum it reads
  bool uses;                // needs what it reads; other copies carry unwritten bytes on
  const WarpState* warp;
  uint32_t agent;           // of the warp's lanes
  uint32_t lane;            // mask
  const char* what;
  Site site;
};

uint32_t site_index(const char* what, Site site) {
  Engine& e = *engine;
  const uint64_t key = reinterpret_cast<uint64_t>(what) * 31 + (static_cast<uint64_t>(site.line()) << 32) +
                       reinterpret_cast<uint64_t>(site.file_name()) + site.column();
  std::pair<uint64_t, uint32_t>& recent = e.recent_sites[(key ^ key >> 32) % 1024];
  if (recent.first == key) return recent.second;
  // Beyond 65535 places all share one entry.
  const uint32_t next = std::min<uint32_t>(static_cast<uint32_t>(e.sites.size()), 0xffff);
  auto [it, fresh] = e.site_indices.try_emplace(key, next);
  if (fresh && e.sites.size() <= 0xffff) e.sites.push_back({what, site, cur ? cur->warp->watch : WatchCopy{}});
  recent = {key, it->second};
  return it->second;
}

// Lanes that touched some of these bytes.
inline uint32_t touching(const Access& old, uint32_t bytes) {
  if (!old.striped) return old.lanes;
  const int width = __builtin_popcount(old.bytes) / __builtin_popcount(old.lanes);
  const int begin = __builtin_ctz(old.bytes), first = __builtin_ctz(old.lanes);
  bytes &= old.bytes;
  const int low = (__builtin_ctz(bytes) - begin) / width, high = (31 - __builtin_clz(bytes) - begin) / width;
  return ((2u << high) - (1u << low)) << first;
}

// What a clock says of single lanes: lane 0 by its releases, others by their fences in the running epoch. `narrow`: as
// if every scope had been wide enough.
__attribute__((noinline)) bool covers_lanes(const Clocks& k, const Access& old, uint32_t bytes, bool narrow) {
  const uint32_t lanes = touching(old, bytes);
  if (lanes == 1) return (narrow ? k.narrow : k.seen).get(old.agent + kLane0Part) >= old.release;
  uint32_t past = 0;
  for (const LanePast& p : k.past)
    if (p.agent == old.agent && p.epoch == old.time && old.release < p.fences && p.narrow <= narrow) past |= p.lanes;
  return !(lanes & ~past);
}

TK_ALWAYS bool covers(const Clocks& k, const Access& old, uint32_t bytes, bool narrow = false) {
  if ((narrow ? k.narrow : k.seen).get(old.agent) >= old.time) return true;
  return !old.async && covers_lanes(k, old, bytes, narrow);
}

__attribute__((noinline)) bool covered_apart(const Access& old, const Current& now) {
  for (const LaneClocks& a : now.warp->clocks.apart)
    if ((a.lanes & now.lane) && covers(a.clocks, old, now.access.bytes)) return true;
  return false;
}

TK_ALWAYS bool happened_before(const Access& old, const Current& now) {
  if (old.agent == now.agent && !old.async)
    return old.time < now.warp->clocks.epoch || !(touching(old, now.access.bytes) & ~now.lane);
  return TK_LIKELY(covers(*now.knows, old, now.access.bytes)) || (now.lane != 1 && covered_apart(old, now));
}

bool proxied(const Access& old, const Current& now) {
  const Clock& k = now.knows->proxied;
  return k.get(old.agent) >= old.time ||
         (touching(old, now.access.bytes) == 1 && k.get(old.agent + kLane0Part) >= old.release);
}

const CtaState* cta_of(const Access& a) { return &engine->ctas[a.agent >> kCtaShift]; }

const WarpState* warp_of(const Access& a) {
  return cta_of(a)->warps[(a.agent & ((1u << kCtaShift) - 1u)) / kWarpAgents];
}

std::string author(const Access& a, uint32_t bytes) {
  if (a.async) return "an asynchronous copy";
  return who(warp_of(a), static_cast<uint32_t>(__builtin_ctz(touching(a, bytes) | 0x80000000u)));
}

// Two atomic accesses need no order where each lies in the scope of the other.
inline bool strong(const Access& old, const Current& now) {
  if (!old.atomic || !now.access.atomic) return false;
  const tk::Scope scope = static_cast<tk::Scope>(std::min(old.scope, now.access.scope));
  return in_scope(scope, cta_of(old), cur->cta);
}

// Words for the edge that would have ordered the two, had its scope been wide enough or had it not been relaxed; empty if
// there is none.
std::string narrow_edge(const Access& old, const Current& now, Lost& why) {
  why = Lost::kScope;
  if (old.atomic && now.access.atomic)
    return text("both are atomic, but at %s and %s scope, and the other side is on another %s",
                scope_name(static_cast<tk::Scope>(old.scope)), scope_name(static_cast<tk::Scope>(now.access.scope)),
                cta_of(old)->rank == cur->cta->rank ? "CTA" : "rank");
  const auto reaches = [&](const Clocks& k) { return covers(k, old, now.access.bytes, true); };
  if (!reaches(*now.knows)) return "";
  const NarrowEdge* n = nullptr;
  for (const NarrowEdge& each : engine->narrow_edges)  // a scope explains more: the same wait may have been relaxed, too
    if ((!n || (n->why != Lost::kScope && each.why == Lost::kScope)) && reaches(each.lost)) n = &each;
  if (n) {
    why = n->why;
    return text("ordered only by %s at %s scope (", n->from_what, scope_name(n->from_scope)) + place(n->from) +
           text(") and %s at %s scope (", n->what, scope_name(n->scope)) + place(n->to) +
           (why == Lost::kRelaxedSignal ? "), but a relaxed signal publishes only what a fence before it closed"
            : why == Lost::kRelaxedWait ? "), but a relaxed wait acquires only at a fence after it"
                                        : text("), and the other side is on another %s", n->other_rank ? "rank" : "CTA"));
  }
  return "ordered only at a scope that does not reach the other side";
}

enum class Order { kNone, kNoFence };

template <class Name>
__attribute__((noinline)) void report_race(const Access& old, const Current& now, Order order, Name&& name) {
  Engine& e = *engine;
  const uint64_t pair = static_cast<uint64_t>(old.site) << 32 | now.access.site;
  if (!e.reported_pairs.insert(pair).second) return;
  const SiteEntry& other = e.sites[old.site];
  Lost why = Lost::kScope;
  const std::string narrow = order == Order::kNone ? narrow_edge(old, now, why) : "";
  std::vector<std::string> notes = {
      text("the other access is a %s by %s: %s at ", old.write ? "write" : "read", author(old, now.access.bytes).c_str(), other.what) +
      place(other.site)};
  if (order == Order::kNoFence)
    notes.push_back("they are ordered, but no fence_proxy_async lies between the generic write and the asynchronous access");
  else
    notes.push_back(narrow.empty() ? "no chain of releases and acquires orders the two" : narrow);
  finding(order == Order::kNoFence ? "TC0914" : narrow.empty() || why != Lost::kScope ? "TC0912" : "TC0918",
          text("%s: %s %s %s without being ordered after an earlier %s", who_now().c_str(), now.what,
               now.access.write ? "writes" : "reads", name().c_str(), old.write ? "write" : "read"),
          now.site, notes);
}

// The read-only path keeps what it read: order does not help.
template <class Name>
__attribute__((noinline)) void report_constant(const Access& old, const Current& now, Name&& name) {
  Engine& e = *engine;
  if (!e.reported_pairs.insert(1ull << 63 | static_cast<uint64_t>(old.site) << 32 | now.access.site).second) return;
  const SiteEntry& other = e.sites[old.site];
  finding("TC0943",
          text("%s: %s %s %s, which the same launch %s", who_now().c_str(), now.what, now.access.write ? "writes" : "reads",
               name().c_str(), now.access.write ? "reads as read-only memory" : "has written"),
          now.site,
          {text("the other access is a %s by %s: %s at ", old.write ? "write" : "read", author(old, now.access.bytes).c_str(),
                other.what) + place(other.site)});
}

// Both accesses touch some of the same bytes.
template <class Name>
inline void check_pair(const Access& old, const Current& now, Name&& name) {
  if (!(old.write || now.access.write) || strong(old, now)) return;
  if (TK_UNLIKELY(old.constant | now.access.constant)) return report_constant(old, now, name);
  if (TK_UNLIKELY(!happened_before(old, now)))
    report_race(old, now, Order::kNone, name);
  else if (now.by_proxy && old.write && !old.async && TK_UNLIKELY(!proxied(old, now)))
    report_race(old, now, Order::kNoFence, name);
}

// True if the bytes that both touch need not be remembered of `old` once the current access is.
inline bool superseded(const Access& old, const Current& now) {
  const Access& a = now.access;
  if (a.write) return !(old.atomic && a.atomic) || happened_before(old, now);
  if (old.write) return now.observes && old.atomic;
  return old.agent == a.agent && old.time < a.time && (a.constant || !old.constant);
}

// Forgets some bytes of an access; false if none are left.
inline bool shrink(Access& old, uint32_t bytes) {
  const uint32_t rest = old.bytes & ~bytes;
  if (!rest) return false;
  if (old.striped) {
    // What is left must be one run of lanes.
    const uint32_t run = rest / (rest & -rest);
    const uint32_t lanes = old.lanes & ~touching(old, bytes);
    if ((run & (run + 1)) || __builtin_popcount(rest) * __builtin_popcount(old.lanes) !=
                                 __builtin_popcount(old.bytes) * __builtin_popcount(lanes))
      return true;
    old.lanes = lanes;
    old.striped = (lanes & (lanes - 1)) != 0;
  }
  old.bytes = static_cast<uint16_t>(rest);
  return true;
}

// Joins an access to the lanes that each touched the next bytes.
bool stripe(Access& old, const Access& a) {
  if (old.release != a.release || (old.lanes & 1) || a.lanes == 1) return false;
  if (old.striped && !(a.bytes & ~old.bytes)) return touching(old, a.bytes) == a.lanes;  // again
  if (old.bytes & a.bytes) return false;
  if (!old.striped && (old.lanes & (old.lanes - 1))) return false;
  const int width = __builtin_popcount(old.bytes) / __builtin_popcount(old.lanes);
  if (__builtin_popcount(a.bytes) != width) return false;
  const uint32_t lane_above = 2u << (31 - __builtin_clz(old.lanes)), byte_above = 2u << (31 - __builtin_clz(old.bytes));
  const uint32_t low_byte = a.bytes & -a.bytes;
  const bool above = a.lanes == lane_above && low_byte == byte_above;
  const bool below = a.lanes << 1 == (old.lanes & -old.lanes) && low_byte << width == static_cast<uint32_t>(old.bytes & -old.bytes);
  if (!above && !below) return false;
  // Stripes are gapless.
  const uint32_t bytes = static_cast<uint32_t>(old.bytes | a.bytes);
  if ((bytes / (bytes & -bytes) & (bytes / (bytes & -bytes) + 1)) != 0) return false;
  old.bytes = static_cast<uint16_t>(bytes);
  old.lanes |= a.lanes;
  old.striped = true;
  return true;
}

// One entry stands for several lanes of a warp that do the same in one epoch: to the same bytes, or each to the next.
TK_ALWAYS bool merge(Access& old, const Access& a) {
  if (old.agent != a.agent || old.time != a.time || old.write != a.write || (old.async | a.async | old.atomic | a.atomic)) return false;
  if (old.constant != a.constant) return false;
  if (old.bytes == a.bytes && !old.striped) {
    if (old.write && old.lanes != a.lanes) return false;
    old.lanes |= a.lanes;
    old.release = a.release > old.release ? a.release : old.release;
    return true;
  }
  return stripe(old, a);
}

enum Fate { kKeep, kDrop, kMerged };

template <class Name>
TK_ALWAYS Fate meet(Access& old, const Current& now, bool merged, Name&& name) {
  // Reads of others: most of what piles up in an activation that every warp reads.
  if (!(old.write | now.access.write) && old.agent != now.access.agent) return kKeep;
  if (old.bytes & now.access.bytes) {
    check_pair(old, now, name);
    if (!merged && merge(old, now.access)) return kMerged;
    return superseded(old, now) && !shrink(old, now.access.bytes) ? kDrop : kKeep;
  }
  return !merged && merge(old, now.access) ? kMerged : kKeep;
}

// Reads of many warps pile up until the next write: those that happened before the current one may go.
void prune(std::vector<Access>& list, const Current& now) {
  list.erase(std::remove_if(list.begin(), list.end(),
                            [&](const Access& o) {
                              return !o.write && !now.access.write && (now.access.constant || !o.constant) && !(o.bytes & ~now.access.bytes) && happened_before(o, now);
                            }),
             list.end());
}

template <class Name>
__attribute__((noinline)) bool visit_more(Granule* g, const Current& now, bool merged, Name&& name) {
  Engine& e = *engine;
  std::vector<Access>& list = e.more_accesses[g->more - 1];
  size_t left = 0;
  for (size_t i = 0; i < list.size(); i++) {
    const Fate fate = meet(list[i], now, merged, name);
    if (fate == kDrop) continue;
    merged |= fate == kMerged;
    if (TK_UNLIKELY(left != i)) list[left] = list[i];
    left++;
  }
  if (left == list.size()) return merged;
  list.resize(left);
  if (list.empty()) {
    e.free_lists.push_back(g->more - 1);
    g->more = 0;
  }
  return merged;
}

__attribute__((noinline)) void add_more(Granule* g, const Current& now) {
  Engine& e = *engine;
  if (!g->more) {
    if (e.free_lists.empty()) {
      e.more_accesses.emplace_back();
      e.free_lists.push_back(static_cast<uint32_t>(e.more_accesses.size() - 1));
    }
    g->more = e.free_lists.back() + 1;
    e.free_lists.pop_back();
  }
  std::vector<Access>& list = e.more_accesses[g->more - 1];
  if (list.size() >= 16 && !(list.size() & (list.size() - 1))) prune(list, now);
  list.push_back(now.access);
}

template <class Name>
TK_ALWAYS void visit(Granule* g, const Current& now, Name&& name) {
  Engine& e = *engine;
  const Access& a = now.access;
  if (now.uses && TK_UNLIKELY((g->written & a.bytes) != a.bytes) && e.uninitialised &&
      e.reported_pairs.insert(0xffffffff00000000ull | a.site).second)
    finding("TC0913", text("%s: %s reads %s, which nothing has written", who_now().c_str(), now.what, name().c_str()),
            now.site);
  if (a.write) g->written |= a.bytes;
  if (!e.races) return;
  bool merged = false;
  uint8_t kept = 0;
  for (uint8_t i = 0; i < g->used; i++) {
    const Fate fate = meet(g->slot[i], now, merged, name);
    if (fate == kDrop) continue;
    merged |= fate == kMerged;
    if (kept != i) g->slot[kept] = g->slot[i];
    kept++;
  }
  g->used = kept;
  if (TK_UNLIKELY(g->more)) merged = visit_more(g, now, merged, name);
  if (merged) return;
  if (g->used < 2) g->slot[g->used++] = a;
  else add_more(g, now);
}

// Calls visit for each granule of [start, start + bytes), with the bytes of it that are touched.
template <class Name>
void sweep(ShadowSpace& space, uint64_t start, uint64_t bytes, Current& now, Name&& name) {
  Granule* g = nullptr;
  const uint64_t stop = start + bytes;
  for (uint64_t b = start; b < stop;) {
    const uint64_t granule = b / 16, end = std::min(granule * 16 + 16, stop);
    const uint32_t low = static_cast<uint32_t>(b & 15), high = static_cast<uint32_t>(end - granule * 16);
    now.access.bytes = static_cast<uint16_t>((1u << high) - (1u << low));
    g = g && granule % ShadowSpace::kPage ? g + 1 : space.at(granule);
    visit(g, now, [&] { return name(b); });
    b = end;
  }
}

Current generic(bool write, const char* what, Site site) {
  WarpState* warp = my_warp();
  WarpClocks& k = warp->clocks;
  Current now{};
  now.warp = warp;
  now.agent = k.agent + kLanesPart;
  now.lane = 1u << cur->lane;
  now.what = what;
  now.site = site;
  now.knows = cur->lane == 0 ? &k.lane0 : &k.rest;
  now.access.agent = now.agent;
  now.access.time = k.epoch;
  now.access.release = cur->lane == 0 ? k.releases : k.fences[cur->lane];
  now.access.lanes = now.lane;
  now.access.write = write;
  now.uses = !write;
  now.access.site = static_cast<uint16_t>(site_index(what, site));
  if (write) k.unfenced |= now.lane;
  return now;
}

Current asynchronous(bool write, AsyncAccess by, const char* what, Site site) {
  WarpState* warp = my_warp();
  Current now{};
  now.warp = warp;
  now.agent = warp->clocks.agent + kLanesPart;
  now.lane = 1u << cur->lane;
  now.what = what;
  now.site = site;
  now.knows = &warp->clocks.lane0;
  now.by_proxy = true;
  now.uses = by.uses;
  now.access.agent = by.agent;
  now.access.time = by.time;
  now.access.async = true;
  now.access.atomic = by.reduce;
  now.access.scope = static_cast<uint8_t>(tk::Scope::kGpu);
  now.access.write = write;
  now.access.site = static_cast<uint16_t>(site_index(what, site));
  return now;
}

void sweep_smem(CtaState* cta, uint32_t addr, uint32_t bytes, Current& now) {
  sweep(cta->shadow, addr - kSmemBase, bytes, now, [&](uint64_t o) { return smem_name(cta, static_cast<uint32_t>(o) + kSmemBase); });
}

void sweep_global(const void* p, uint64_t bytes, Current& now) {
  Buffer* b = const_cast<Buffer*>(buffer_of(p));
  if (!b || b->shadow.empty()) return;  // read-only
  sweep(b->shadow, reinterpret_cast<uintptr_t>(p) - b->lo, bytes, now,
        [&](uint64_t o) { return global_name(reinterpret_cast<const void*>(b->lo + o)); });
}

}  // namespace

void shadow_smem(uint32_t addr, uint32_t bytes, bool write, const char* what, Site site) {
  Current now = generic(write, what, site);
  sweep_smem(my_cta(), addr, bytes, now);
}

void shadow_global(WindowKind kind, const void* p, uint32_t bytes, const char* what, Site site) {
  Current now = generic(kind == kWriteWindow, what, site);
  now.access.constant = kind == kReadOnlyWindow || kind == kUniformWindow;
  sweep_global(p, bytes, now);
}

// A generic access to the shared memory of another CTA of the cluster.
void shadow_peer_smem(CtaState* cta, uint32_t addr, uint32_t bytes, bool write, const char* what, Site site) {
  Current now = generic(write, what, site);
  sweep_smem(cta, addr, bytes, now);
}

void shadow_async_smem(CtaState* cta, uint32_t addr, uint32_t bytes, bool write, AsyncAccess by, const char* what,
                       Site site) {
  Current now = asynchronous(write, by, what, site);
  sweep_smem(cta, addr, bytes, now);
}

void shadow_async_global(const void* p, uint64_t bytes, bool write, AsyncAccess by, const char* what, Site site) {
  Current now = asynchronous(write, by, what, site);
  sweep_global(p, bytes, now);
}

void shadow_atomic(const void* p, uint32_t bytes, bool write, bool observes, tk::Scope scope, const char* what,
                   Site site) {
  Current now = generic(write, what, site);
  now.access.atomic = true;
  now.access.scope = static_cast<uint8_t>(scope);
  now.observes = observes;
  sweep_global(p, bytes, now);
}

Span smem_span(CtaState* cta, uint32_t addr) { return {&cta->shadow, addr - kSmemBase}; }

Span global_span(const void* p) {
  Buffer* b = const_cast<Buffer*>(buffer_of(p));
  return b && !b->shadow.empty() ? Span{&b->shadow, reinterpret_cast<uintptr_t>(p) - b->lo} : Span{};
}

void carry_written(Span from, Span to, uint64_t bytes) {
  if (!from.shadow || !to.shadow) return;  // read-only memory is written
  for (uint64_t o = 0; o < bytes;) {
    const uint64_t f = from.at + o, t = to.at + o;
    const uint64_t n = std::min({bytes - o, 16 - f % 16, 16 - t % 16});
    const uint32_t mask = (1u << n) - 1u;
    const uint32_t written = from.shadow->at(f / 16)->written >> f % 16 & mask;
    uint16_t& w = to.shadow->at(t / 16)->written;
    w = static_cast<uint16_t>((w & ~(mask << t % 16)) | written << t % 16);
    o += n;
  }
}

void forget_written(CtaState* cta, uint32_t addr, uint32_t bytes) {
  for (uint32_t b = addr - kSmemBase; b < addr - kSmemBase + bytes; b++)
    cta->shadow.at(b / 16)->written &= static_cast<uint16_t>(~(1u << b % 16));
}

}  // namespace tk_emu
