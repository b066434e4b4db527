// Clusters: the cluster barrier, shared memory and mbarriers of other CTAs.
#include <string.h>

#include "race.h"

namespace tk_emu {

// ---- the cluster barrier ------------------------------------------------------------------------------

void cluster_arrive(Site site) {
  collective(nullptr, "cluster_arrive", site, [&](Warp* arriving) {
    WarpState* warp = static_cast<WarpState*>(arriving);
    ClusterState& c = *my_cta()->cluster;
    warp->counts[kBarrier]++;
    if (warp->cluster_round)
      fatal("TC0908", text("%s arrives twice at the barrier of its cluster without a wait", who_now().c_str()), site);
    warp->cluster_round = c.round + 1;
    c.barrier.threads = static_cast<uint32_t>(c.ctas.size()) * engine->options.threads;
    c.barrier.arrived += 32;
    if (engine->races) release_by_warp(warp, c.barrier.arriving);
    if (c.barrier.arrived == c.barrier.threads) {
      c.barrier.arrived = 0;
      c.round++;
      std::swap(c.done, c.barrier.arriving);
      c.barrier.arriving.clear();
      std::vector<WarpState*> parked;
      parked.swap(c.barrier.parked);
      for (WarpState* w : parked) {
        w->parked_in = nullptr;
        w->ready = 0xffffffffu;
        ready_warp(w);
        if (engine->races) acquire_by_warp(w, c.done);
      }
    }
    release_all(warp);
  });
}

void cluster_wait(Site site) {
  collective(nullptr, "cluster_wait", site, [&](Warp* waiting) {
    WarpState* warp = static_cast<WarpState*>(waiting);
    ClusterState& c = *my_cta()->cluster;
    if (!warp->cluster_round)
      fatal("TC0908", text("%s waits at the barrier of its cluster without having arrived", who_now().c_str()), site);
    const bool complete = c.round >= warp->cluster_round;
    warp->cluster_round = 0;
    if (complete) {
      if (engine->races) acquire_by_warp(warp, c.done);
      release_all(warp);
      return;
    }
    c.barrier.parked.push_back(warp);
    warp->parked_in = &c.barrier;
    warp->parked_id = kClusterBarrier;
    warp->arrived = 0;
    warp->ready = 1u << cur->lane;
    unready_self();
    run_next();
  });
}

// ---- other CTAs -----------------------------------------------------------------------------------------

constexpr uint32_t kRankShift = 24, kOffsetMask = (1u << kRankShift) - 1u;

uint32_t mapa(uint32_t addr, uint32_t rank, Site site) {
  const CtaState* cta = my_cta();
  if (rank >= cta->cluster_size || addr > kOffsetMask)
    fatal("TC0941", text("%s: mapa of %#x to rank %u in a cluster of %u CTAs", who_now().c_str(), addr, rank,
                         cta->cluster_size),
          site);
  return addr + ((rank + 1u) << kRankShift);
}

// The CTA of a cluster address. An address without a rank is one's own.
static CtaState* target_of(uint32_t addr, const char* what, Site site) {
  CtaState* mine = my_cta();
  const uint32_t rank = addr >> kRankShift;
  if (!rank) return mine;
  if (rank > mine->cluster_size)
    fatal("TC0941", text("%s: %s at %#x, which mapa did not make", who_now().c_str(), what, addr), site);
  CtaState* cta = mine->cluster->ctas[rank - 1];
  bool gone = true;
  for (const WarpState* w : cta->warps) gone = gone && w->exited == 0xffffffffu;
  if (gone)
    fatal("TC0941", text("%s: %s in the shared memory of cta %u, which has left the kernel", who_now().c_str(), what,
                         cta->index),
          site, {"a cluster_sync() before the end keeps every CTA until all are done"});
  return cta;
}

uint32_t cluster_load(uint32_t addr, Site site) {
  preempt_point();
  CtaState* cta = target_of(addr, "lds32_cluster", site);
  const uint32_t a = addr & kOffsetMask;
  count(kLds);
  count(kLdsBytes, 4);
  smem_range(cta, a, 4, 4, "lds32_cluster", site);
  if (shadow_on) shadow_peer_smem(cta, a, 4, false, "lds32_cluster", site);
  uint32_t v;
  memcpy(&v, cta->smem + (a - kSmemBase), 4);
  return v;
}

void cluster_store(uint32_t addr, uint32_t value, Site site) {
  preempt_point();
  CtaState* cta = target_of(addr, "sts32_cluster", site);
  const uint32_t a = addr & kOffsetMask;
  count(kSts);
  count(kStsBytes, 4);
  smem_range(cta, a, 4, 4, "sts32_cluster", site);
  if (shadow_on) shadow_peer_smem(cta, a, 4, true, "sts32_cluster", site);
  memcpy(cta->smem + (a - kSmemBase), &value, 4);
}

void cluster_mbar_arrive(uint32_t addr, uint32_t tx_bytes, const char* what, Site site) {
  preempt_point();
  arrive_at(target_of(addr, what, site), addr & kOffsetMask, tx_bytes, what, site);
}

void bulk_s2s(uint32_t dst, uint32_t src, uint32_t bytes, uint32_t bar, Site site) {
  preempt_point();
  CtaState* mine = my_cta();
  CtaState* cta = target_of(dst, "bulk_s2s", site);
  if (target_of(bar, "bulk_s2s", site) != cta)
    fatal("TC0941", text("%s: bulk_s2s to cta %u with an mbarrier of another CTA", who_now().c_str(), cta->index), site);
  MBarrier* m = barrier_at(cta, bar & kOffsetMask, "bulk_s2s", site);
  if (engine->races) check_init(m, true, "bulk_s2s", site);
  count(kBulkStore);
  count(kBulkStoreBytes, bytes);
  if (!bytes || bytes % 16)
    fatal("TC0905", text("%s: bulk_s2s of %u bytes; the size must be a multiple of 16", who_now().c_str(), bytes), site);
  const uint32_t to = dst & kOffsetMask;
  smem_range(mine, src, bytes, 16, "bulk_s2s source", site);
  smem_range(cta, to, bytes, 16, "bulk_s2s destination", site);
  if (shadow_on) {
    const AsyncAccess by{m->agent, static_cast<uint32_t>(m->phase) + 1};
    shadow_async_smem(mine, src, bytes, false, by, "bulk_s2s", site);
    shadow_async_smem(cta, to, bytes, true, by, "bulk_s2s", site);
    carry_written(smem_span(mine, src), smem_span(cta, to), bytes);
  }
  memset(cta->smem + (to - kSmemBase), 0xff, bytes);
  issue_load({cta, to, bytes, mine->smem + (src - kSmemBase), m, site, {}});
}

}  // namespace tk_emu
