// Counters, fences and data-as-flag words, with their scopes.
#include <string.h>

#include <algorithm>

#include "race.h"

namespace tk_emu {

static void wake(std::vector<Thread*>& sleeping) {
  std::vector<Thread*> waiters;
  waiters.swap(sleeping);
  for (Thread* t : waiters) make_ready(t);
}

// Once per place of the source.
static bool first_at(Site site, uint32_t kind) {
  return engine->reported_pairs.insert(0xfffffffc00000000ull | kind << 28 | (site.line() * 4096u + site.column()) % (1u << 28)).second;
}

// ---- counters ---------------------------------------------------------------------------------------

static size_t kept_publications() { return 64 + 2 * engine->ctas.size(); }

static void forget_oldest(Counter& c) {
  Publication& p = c.history.front();
  if (c.forgotten >= c.history.back().chain && p.releases) {
    auto same = std::find_if(c.old.begin(), c.old.end(), [&](const Publication& o) { return o.scope == p.scope && o.cta == p.cta; });
    if (same == c.old.end()) c.old.push_back(std::move(p));
    else same->own.join(p.own);
  }
  c.history.pop_front();
  c.forgotten++;
}

// Writes the counter's history: who published what with which value.
static void record(uint32_t* p, uint32_t before, bool store, bool release, tk::Scope scope, const char* what, Site site) {
  Counter& c = engine->counters[p];
  Publication n;
  n.value = *p;
  n.cta = cur->cta;
  n.what = what;
  n.site = site;
  n.releases = publish(release, scope, n);
  // It starts again: from a lower value, or from one that was written without a signal.
  if (!c.history.empty() && (static_cast<int32_t>(n.value - before) < 0 || c.history.back().value != before)) {
    c.forgotten += c.history.size();
    c.history.clear();
  }
  if (c.history.empty()) c.old.clear(), c.initial = before, c.first = c.forgotten;
  n.chain = c.forgotten + c.history.size();
  n.narrowest = n.releases ? n.scope : tk::Scope::kSys;
  n.all_release = n.releases;
  n.rank = n.releases ? static_cast<int>(n.cta->rank) : kNoRank;
  if (store || c.history.empty()) {
    n.all = n.own;
  } else {  // a read-modify-write carries on what the counter published before
    const Publication& last = c.history.back();
    n.chain = last.chain;
    n.narrowest = std::min(n.narrowest, last.narrowest);
    n.all_release = n.releases && last.all_release;
    if (n.rank == kNoRank) n.rank = last.rank;
    else if (last.rank != kNoRank && last.rank != n.rank) n.rank = kSeveralRanks;
    n.all = last.all;
    n.all.join(n.own);
  }
  c.history.push_back(std::move(n));
  if (c.history.size() > kept_publications()) forget_oldest(c);
}

// How many publications a wait for `target` may count on: those up to the first value that satisfies it. It may have read
// a later value, but another schedule would have ended it there.
static size_t entitled(const Counter& c, uint32_t target) {
  if (c.history.empty() || (c.first == c.forgotten && static_cast<int32_t>(c.initial - target) >= 0)) return 0;
  auto reached = std::partition_point(c.history.begin(), c.history.end(),
                                      [&](const Publication& p) { return static_cast<int32_t>(p.value - target) < 0; });
  return std::min(static_cast<size_t>(reached - c.history.begin()) + 1, c.history.size());
}

// Wrap-safe comparison needs counter and target close together; a protocol that loses that is wrong before it hangs.
static void check_distance(const uint32_t* p, uint32_t target, Site site) {
  const int32_t ahead = static_cast<int32_t>(*p - target);
  if ((ahead < (1 << 30) && ahead > -(1 << 30)) || !first_at(site, 1)) return;
  finding("TC0915",
          text("%s: wait_ge compares %s, which holds %u, with a target of %u: they are %u apart and the comparison is near "
               "its turning point",
               who_now().c_str(), global_name(p).c_str(), *p, target,
               ahead < 0 ? 0u - static_cast<uint32_t>(ahead) : static_cast<uint32_t>(ahead)),
          site, {"(int)(counter - target) >= 0 is right across the wrap only while the two stay within 2^30"});
}

void wake_counter(const void* p) {
  auto it = engine->counters.find(p);
  if (it != engine->counters.end()) wake(it->second.waiters);
}

void wait_ge(const uint32_t* p, uint32_t target, tk::Scope scope, bool acquires, const tk::Watch& watch, Site site) {
  preempt_point();
  const char* what = acquires ? "wait_ge" : "wait_ge_relaxed";
  global_range(p, 4, 4, false, what, site);
  count(kCounterWait);
  know_role(watch);
  check_distance(p, target, site);
  while (static_cast<int32_t>(*p - target) < 0) {
    engine->counters[p].waiters.push_back(self());
    block(Wait::kCounter, p, target, &watch, site);
  }
  if (shadow_on) shadow_atomic(p, 4, false, false, scope, what, site);
  if (!engine->races) return;
  const Counter& c = engine->counters[p];
  acquire(c, entitled(c, target), scope, !acquires, what, site);
}

uint32_t counter_add(uint32_t* p, uint32_t v, tk::Scope scope, bool acquires, bool release, const char* what, Site site) {
  preempt_point();
  global_range(p, 4, 4, true, what, site);
  count(kCounterSignal);
  if (shadow_on) shadow_atomic(p, 4, true, false, scope, what, site);
  const uint32_t before = *p;
  *p += v;
  if (engine->races) {
    const Counter& c = engine->counters[p];
    if (acquires) acquire(c, c.history.size(), scope, false, what, site);
    record(p, before, false, release, scope, what, site);
  }
  wake_counter(p);
  return before;
}

uint32_t counter_load(const uint32_t* p, tk::Scope scope, bool acquires, Site site) {
  preempt_point();
  const char* what = acquires ? "ld_acquire" : "ld_relaxed";
  global_range(p, 4, 4, false, what, site);
  if (shadow_on) shadow_atomic(p, 4, false, false, scope, what, site);
  if (engine->races) {
    const Counter& c = engine->counters[p];
    acquire(c, c.history.size(), scope, !acquires, what, site);
  }
  return *p;
}

void counter_store(uint32_t* p, uint32_t v, tk::Scope scope, bool release, Site site) {
  preempt_point();
  const char* what = release ? "st_release" : "st_relaxed";
  global_range(p, 4, 4, true, what, site);
  count(kCounterSignal);
  if (shadow_on) shadow_atomic(p, 4, true, false, scope, what, site);
  const uint32_t before = *p;
  *p = v;
  if (engine->races) record(p, before, true, release, scope, what, site);
  wake_counter(p);
}

void fence(tk::Scope scope, Site site) {
  preempt_point();
  count(scope == tk::Scope::kCta ? kFenceCta : scope == tk::Scope::kGpu ? kFenceGpu : kFenceSystem);
  if (engine->races) fence_threads(scope, site);
}

// ---- data as flag -----------------------------------------------------------------------------------

static uint64_t word_at(const void* p, uint32_t bytes) {
  uint64_t v = 0;
  memcpy(&v, p, bytes);
  return v;
}

static const char* poll_note = "fill the words with poison before anyone may push, and poison each again after it was taken";

uint64_t poll_word(const void* p, uint64_t poison, uint32_t bytes, tk::Scope scope, const tk::Watch& watch, Site site) {
  preempt_point();
  global_range(p, bytes, bytes, false, "poll_word", site);
  count(kWordPoll);
  Word& w = engine->words[p];
  w.poison = poison;
  w.has_poison = true;
  while (word_at(p, bytes) == poison) {
    w.waiters.push_back(self());
    self()->bytes = static_cast<uint8_t>(bytes);
    block(Wait::kWord, p, poison, &watch, site);
  }
  const uint64_t value = word_at(p, bytes);
  if (!shadow_on) return value;
  if (!w.pushes || w.found != poison) {
    // What the first push found tells of a missing prefill in schedules where every push comes in time, too.
    if (first_at(site, 2))
      finding("TC0919", text("%s: poll_word takes 0x%llx from %s, which %s", who_now().c_str(),
                             static_cast<unsigned long long>(value), global_name(p).c_str(),
                             w.pushes ? "was not filled with poison before the first push" : "no push_word wrote"),
              site, {poll_note});
  } else if (w.taken == w.pushes && w.taker == self()) {
    if (first_at(site, 3))
      finding("TC0919", text("%s: poll_word takes the same datum from %s a second time", who_now().c_str(), global_name(p).c_str()),
              site, {poll_note});
  }
  w.taken = w.pushes;
  w.taker = self();
  shadow_atomic(p, bytes, false, true, scope, "poll_word", site);
  if (engine->races && w.last) acquire_one(*w.last, scope, true, "poll_word", site);
  return value;
}

void push_word(void* p, uint64_t value, uint32_t bytes, tk::Scope scope, Site site) {
  preempt_point();
  global_range(p, bytes, bytes, true, "push_word", site);
  count(kWordPush);
  Word& w = engine->words[p];
  const uint64_t flag = bytes == 4 ? tk::kFlagPoison : tk::kFlagPoison64;
  if ((value == flag || (w.has_poison && value == w.poison)) && first_at(site, 4))
    finding("TC0919", text("%s: push_word writes the poison 0x%llx to %s: nobody will take it", who_now().c_str(),
                           static_cast<unsigned long long>(value), global_name(p).c_str()),
            site, {"canonical() keeps the NaNs of data away from it"});
  if (shadow_on) {
    if (!w.pushes) w.found = word_at(p, bytes);
    if (w.pushes && w.has_poison && word_at(p, bytes) != w.poison && first_at(site, 5))
      finding("TC0919", text("%s: push_word overwrites a datum in %s", who_now().c_str(), global_name(p).c_str()), site,
              {w.taken == w.pushes ? "it was taken, but not poisoned again" : "nobody has taken it yet"});
    shadow_atomic(p, bytes, true, false, scope, "push_word", site);
    if (engine->races) {
      Publication n;
      n.cta = cur->cta;
      n.what = "push_word";
      n.site = site;
      n.releases = publish(false, scope, n);
      if (n.releases) w.last = std::make_unique<Publication>(std::move(n));
      else w.last.reset();
    }
  }
  w.pushes++;
  memcpy(p, &value, bytes);
  wake(w.waiters);
}

void poison_word(void* p, uint64_t value, uint32_t bytes, Site site) {
  preempt_point();
  global_range(p, bytes, bytes, true, "poison_word", site);
  count(kStg);
  count(kStgBytes, bytes);
  if (shadow_on) shadow_global(kWriteWindow, p, bytes, "poison_word", site);
  Word& w = engine->words[p];
  w.poison = value;
  w.has_poison = true;
  memcpy(p, &value, bytes);
}

}  // namespace tk_emu
