// Checks every access against the accesses it may conflict with.
#include "race.h"

namespace tk_emu {

namespace {

// The current access, and how far the one who makes it can see.
struct Current {
  Access access;
  const Clock* seen;
  const Clock* proxied;     // null: a generic access
  const WarpState* warp;
  const char* what;
  Site site;
};

uint32_t site_index(const char* what, Site site) {
  Engine& e = *engine;
  const uint64_t key = reinterpret_cast<uint64_t>(what) * 31 + (static_cast<uint64_t>(site.line()) << 32) +
                       reinterpret_cast<uint64_t>(site.file_name()) + site.column();
  std::pair<uint64_t, uint32_t>& recent = e.recent_sites[(key ^ key >> 32) % 1024];
  if (recent.first == key) return recent.second;
  auto [it, fresh] = e.site_indices.try_emplace(key, static_cast<uint32_t>(e.sites.size()));
  if (fresh) e.sites.push_back({what, site, cur ? cur->warp->watch : WatchCopy{}});
  recent = {key, it->second};
  return it->second;
}

bool happened_before(const Access& old, const Current& now) {
  if (old.async) return now.seen->get(old.who) >= old.time;
  if (old.who == now.warp->number) {
    const bool same_lane = old.lanes == 1u << cur->lane;
    return same_lane || old.time < now.warp->clocks.epoch;
  }
  return now.seen->get(lanes_agent(old.who)) >= old.time ||
         (old.lanes == 1 && now.seen->get(lane0_agent(old.who)) >= old.release);
}

bool proxied(const Access& old, const Current& now) {
  return now.proxied->get(lanes_agent(old.who)) >= old.time ||
         (old.lanes == 1 && now.proxied->get(lane0_agent(old.who)) >= old.release);
}

std::string author(const Access& a) {
  if (a.async) return "an asynchronous copy";
  return who(&engine->warps[a.who], static_cast<uint32_t>(__builtin_ctz(a.lanes | 0x80000000u)));
}

template <class Name>
void report_race(const Access& old, const Current& now, bool fence_missing, Name&& name) {
  Engine& e = *engine;
  const uint64_t pair = static_cast<uint64_t>(old.site) << 32 | now.access.site;
  if (!e.reported_pairs.insert(pair).second) return;
  const SiteEntry& other = e.sites[old.site];
  std::vector<std::string> notes = {
      text("the other access is a %s by %s: %s at ", old.write ? "write" : "read", author(old).c_str(), other.what) +
          place(other.site),
      fence_missing ? "they are ordered, but no fence_proxy_async lies between the generic write and the asynchronous access"
                    : "no chain of releases and acquires orders the two"};
  finding(fence_missing ? "TC0914" : "TC0912",
          text("%s: %s %s %s without being ordered after an earlier %s", who_now().c_str(), now.what,
               now.access.write ? "writes" : "reads", name().c_str(), old.write ? "write" : "read"),
          now.site, notes);
}

// Returns false if `old` conflicts with the current access.
template <class Name>
inline void check_pair(const Access& old, const Current& now, Name&& name) {
  if (!(old.write || now.access.write) || !(old.bytes & now.access.bytes)) return;
  if (old.reduce && now.access.reduce) return;
  if (TK_UNLIKELY(!happened_before(old, now)))
    report_race(old, now, false, name);
  else if (now.proxied && old.write && !old.async && TK_UNLIKELY(!proxied(old, now)))
    report_race(old, now, true, name);
}

// True if `old` need not be remembered once the current access is.
inline bool superseded(const Access& old, const Current& now) {
  const Access& a = now.access;
  if (a.write && old.reduce && a.reduce) return !(old.bytes & ~a.bytes) && happened_before(old, now);
  if (a.write) return !(old.bytes & ~a.bytes);
  return !old.write && !(old.bytes & ~a.bytes) && happened_before(old, now);
}

// Another lane of a warp reads or writes in the same epoch: one entry stands for all of them.
inline bool merge(Access& old, const Access& a) {
  if (old.async || a.async || old.write || a.write || old.who != a.who || old.time != a.time || old.bytes != a.bytes) return false;
  old.lanes |= a.lanes;
  old.release = a.release > old.release ? a.release : old.release;
  return true;
}

template <class Name>
void visit(Cell* cell, const Current& now, Name&& name) {
  Engine& e = *engine;
  const Access& a = now.access;
  if (e.uninitialised && !a.write && !a.async && TK_UNLIKELY((cell->written & a.bytes) != a.bytes) &&
      e.reported_pairs.insert(0xffffffff00000000ull | a.site).second)
    finding("TC0913", text("%s: %s reads %s, which nothing has written", who_now().c_str(), now.what, name().c_str()),
            now.site);
  if (a.write) cell->written |= a.bytes;
  if (!e.races) return;
  bool merged = false;
  uint8_t kept = 0;
  for (uint8_t i = 0; i < cell->used; i++) {
    Access& old = cell->slot[i];
    check_pair(old, now, name);
    if (!merged && merge(old, a)) merged = true;
    else if (superseded(old, now)) continue;
    if (kept != i) cell->slot[kept] = old;
    kept++;
  }
  cell->used = kept;
  if (TK_UNLIKELY(cell->more)) {
    std::vector<Access>& list = e.more_accesses[cell->more - 1];
    size_t left = 0;
    for (size_t i = 0; i < list.size(); i++) {
      check_pair(list[i], now, name);
      if (!merged && merge(list[i], a)) merged = true;
      else if (superseded(list[i], now)) continue;
      list[left++] = list[i];
    }
    list.resize(left);
    if (list.empty()) {
      e.free_lists.push_back(cell->more - 1);
      cell->more = 0;
    }
  }
  if (merged) return;
  if (cell->used < 2) {
    cell->slot[cell->used++] = a;
    return;
  }
  if (!cell->more) {
    if (e.free_lists.empty()) {
      e.more_accesses.emplace_back();
      e.free_lists.push_back(static_cast<uint32_t>(e.more_accesses.size() - 1));
    }
    cell->more = e.free_lists.back() + 1;
    e.free_lists.pop_back();
  }
  e.more_accesses[cell->more - 1].push_back(a);
}

// Calls visit for each word of [start, start + bytes), with the bytes of it that are touched.
template <class Name>
void sweep(ShadowSpace& space, uint64_t start, uint64_t bytes, Current& now, Name&& name) {
  Cell* cell = nullptr;
  for (uint64_t b = start; b < start + bytes;) {
    const uint64_t word = b / 4, end = word * 4 + 4 < start + bytes ? word * 4 + 4 : start + bytes;
    now.access.bytes = ((1u << (end - word * 4)) - 1u) & ~((1u << (b - word * 4)) - 1u) & 15u;
    cell = cell && word % ShadowSpace::kPageCells ? cell + 1 : space.at(word);
    visit(cell, now, [&] { return name(word * 4); });
    b = end;
  }
}

Current generic(bool write, const char* what, Site site) {
  WarpState* warp = my_warp();
  WarpClocks& k = warp->clocks;
  Current now{};
  now.warp = warp;
  now.what = what;
  now.site = site;
  now.seen = &(cur->lane == 0 ? k.lane0 : k.rest).seen;
  now.access.who = warp->number;
  now.access.time = k.epoch;
  now.access.release = k.releases;
  now.access.lanes = 1u << cur->lane;
  now.access.write = write;
  now.access.site = site_index(what, site);
  if (write) k.unfenced |= 1u << cur->lane;
  return now;
}

Current asynchronous(bool write, AsyncAccess by, const char* what, Site site) {
  WarpState* warp = my_warp();
  Current now{};
  now.warp = warp;
  now.what = what;
  now.site = site;
  now.seen = &warp->clocks.lane0.seen;
  now.proxied = &warp->clocks.lane0.proxied;
  now.access.who = by.agent;
  now.access.time = by.time;
  now.access.async = 1;
  now.access.reduce = by.reduce;
  now.access.write = write;
  now.access.site = site_index(what, site);
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

void shadow_global(const void* p, uint32_t bytes, bool write, const char* what, Site site) {
  Current now = generic(write, what, site);
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

}  // namespace tk_emu
