// Bulk copies: issue, landing, groups.
#include <string.h>

#include "race.h"

namespace tk_emu {

uint32_t new_agent(CtaState* cta) {
  const uint32_t number = kWarpAgents * engine->options.threads / 32 + cta->agents++;
  if (number >> kCtaShift)
    fatal("TC0907", text("%s: more than %u asynchronous agents in one CTA", who_now().c_str(), 1u << kCtaShift), Site::current());
  return cta->number << kCtaShift | number;
}

static void land(size_t i) {
  Engine& e = *engine;
  const Load load = std::move(e.loads[i]);
  if (i + 1 < e.loads.size()) e.loads[i] = std::move(e.loads.back());
  e.loads.pop_back();
  e.stats.landings++;
  load.bar->in_flight--;
  uint8_t* to = load.cta->smem + (load.dst - kSmemBase);
  if (load.fill) load.fill(to);
  else memcpy(to, load.src, load.bytes);
  complete_tx(load.bar, load.bytes, load.site);
}

bool land_one() {
  if (engine->loads.empty()) return false;
  land(engine->options.schedule == TK_EMU_ROUND_ROBIN ? 0 : random_bits() % engine->loads.size());
  return true;
}

void issue_load(Load load) {
  load.bar->loads_until = load.bar->phase + 1;
  load.bar->load_site = load.site;
  load.bar->in_flight++;
  engine->loads.push_back(std::move(load));
  if (engine->options.landing == TK_EMU_LAND_AT_ONCE) land(engine->loads.size() - 1);
}

void bulk_g2s(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, Site site) {
  preempt_point();
  CtaState* cta = my_cta();
  MBarrier* m = barrier_at(cta, bar, "bulk_g2s", site);
  if (engine->races) check_init(m, true, "bulk_g2s", site);
  count(kBulkLoad);
  count(kBulkLoadBytes, bytes);
  if (!bytes || bytes % 16)
    fatal("TC0905", text("%s: bulk_g2s of %u bytes; the size must be a multiple of 16", who_now().c_str(), bytes), site);
  smem_range(cta, dst, bytes, 16, "bulk_g2s destination", site);
  global_range(src, bytes, 16, false, "bulk_g2s source", site);
  if (shadow_on) {
    const AsyncAccess by{m->agent, static_cast<uint32_t>(m->phase) + 1};
    shadow_async_smem(cta, dst, bytes, true, by, "bulk_g2s", site);
    shadow_async_global(src, bytes, false, by, "bulk_g2s", site);
    carry_written(global_span(src), smem_span(cta, dst), bytes);
  }
  memset(cta->smem + (dst - kSmemBase), 0xff, bytes);  // nobody may read it before it lands
  issue_load({cta, dst, bytes, static_cast<const uint8_t*>(src), m, site, {}});
}

static void read_source(CtaState* cta, Store& s) {
  if (s.read) return;
  s.read = true;
  const uint8_t* from = cta->smem + (s.src - kSmemBase);
  s.data.assign(from, from + s.bytes);
}

static void write_target(CtaState* cta, Store& s) {
  if (s.written) return;
  read_source(cta, s);
  s.written = true;
  if (s.write) s.write(s.data.data());
  else memcpy(s.dst, s.data.data(), s.bytes);
  engine->stats.landings++;
}

void issue_store(Store s) {
  // The hardware may read and write at any moment from now to the wait: at once, at random, or last.
  const uint32_t landing = engine->options.landing;
  const uint64_t moment = landing == TK_EMU_LAND_RANDOM ? random_bits() % 3 : 0;
  if (landing == TK_EMU_LAND_AT_ONCE || moment == 1) write_target(my_cta(), s);
  if (moment == 2) read_source(my_cta(), s);
  my_warp()->stores.push_back(std::move(s));
}

void bulk_s2g(void* dst, uint32_t src, uint32_t bytes, Site site) {
  preempt_point();
  CtaState* cta = my_cta();
  count(kBulkStore);
  count(kBulkStoreBytes, bytes);
  if (!bytes || bytes % 16)
    fatal("TC0905", text("%s: bulk_s2g of %u bytes; the size must be a multiple of 16", who_now().c_str(), bytes), site);
  smem_range(cta, src, bytes, 16, "bulk_s2g source", site);
  global_range(dst, bytes, 16, true, "bulk_s2g destination", site);
  Store s{static_cast<uint8_t*>(dst), src, bytes, 0, false, false, {}, site, {}};
  if (shadow_on) {
    WarpState* w = my_warp();
    const uint32_t group = static_cast<uint32_t>(w->groups) + 1;
    shadow_async_smem(cta, src, bytes, false, {store_read_agent(w->number), group}, "bulk_s2g", site);
    shadow_async_global(dst, bytes, true, {store_write_agent(w->number), group}, "bulk_s2g", site);
    carry_written(smem_span(cta, src), global_span(dst), bytes);
  }
  issue_store(std::move(s));
}

void bulk_commit(Site) {
  preempt_point();
  WarpState* w = my_warp();
  w->groups++;
  for (Store& s : w->stores)
    if (!s.group) s.group = w->groups;
}

void bulk_wait(uint32_t keep, bool read_only, Site) {
  preempt_point();
  WarpState* w = my_warp();
  CtaState* cta = my_cta();
  size_t kept = 0;
  for (Store& s : w->stores) {
    const bool due = s.group && s.group + keep <= w->groups;
    if (due) read_source(cta, s);
    if (due && !read_only) {
      write_target(cta, s);
      continue;
    }
    if (&w->stores[kept] != &s) w->stores[kept] = std::move(s);
    kept++;
  }
  w->stores.resize(kept);
  if (engine->races && w->groups > keep) {
    stores_done(store_read_agent(w->number), w->groups - keep);
    if (!read_only) stores_done(store_write_agent(w->number), w->groups - keep);
  }
}

void check_exit(WarpState* warp) {
  for (const Store& s : warp->stores)
    finding("TC0909", text("%s returns from the kernel with a bulk store of %u bytes to %s that was not waited for",
                           who_now().c_str(), s.bytes, global_name(s.dst).c_str()),
            s.site, {s.group ? "its group was committed; bulk_wait<0> is missing" : "it was never committed"});
}

// A load that lands after its CTA has gone writes into the shared memory of the next one.
void check_cta_exit(CtaState* cta) {
  for (const MBarrier* b : cta->barriers)
    if (b->loads_until > b->waited_until)
      finding("TC0909", text("%s is the last of its CTA to return, but nobody waited for a load on mbarrier %s", who_now().c_str(),
                             barrier_text(b).c_str()),
              b->load_site, {"mbar_wait by any thread of the CTA, for the phase that the load completes"});
}

void fence_proxy_async(Site) {
  preempt_point();
  count(kFenceProxy);
  if (engine->races) fence_async_proxy();
}

void prefetch_l2(const void* src, uint32_t bytes, Site site) {
  preempt_point();
  count(kPrefetch);
  count(kPrefetchBytes, bytes);
  if (!bytes || bytes % 16)
    fatal("TC0905", text("%s: prefetch_l2 of %u bytes; the size must be a multiple of 16", who_now().c_str(), bytes),
          site);
  global_range(src, bytes, 16, false, "prefetch_l2", site);
}

}  // namespace tk_emu
