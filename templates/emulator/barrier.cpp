// mbarriers and named barriers.
#include "race.h"

namespace tk_emu {

MBarrier* barrier_at(CtaState* cta, uint32_t addr, const char* what, Site site) {
  const uint32_t o = addr - kSmemBase;
  if ((addr & 7) || o >= cta->smem_bytes || cta->granule[o >> 3] < kBarrierId)
    fatal("TC0907", text("%s: %s at %s, where no mbarrier was initialised", who_now().c_str(), what,
                         smem_name(cta, addr).c_str()),
          site);
  return cta->barriers[cta->granule[o >> 3] - kBarrierId];
}

// An mbar_init is a write of lane 0: whoever uses the barrier must come after it, an asynchronous copy behind a fence.
void check_init(MBarrier* bar, bool async, const char* what, Site site) {
  const WarpState* warp = my_warp();
  const uint32_t bit = warp->cta == bar->cta ? 1u << (warp->index & 31) : 0u;
  if (TK_UNLIKELY(!(bar->init_seen & bit))) {
    const WarpClocks& k = warp->clocks;
    const Clock& seen = (cur->lane == 0 ? k.lane0 : k.rest).seen;
    const bool own = warp->number == bar->init_warp;
    const bool ordered = own ? cur->lane == 0 || k.epoch > bar->init_epoch
                             : seen.get(lanes_agent(bar->init_warp)) >= bar->init_epoch ||
                                   seen.get(lane0_agent(bar->init_warp)) >= bar->init_release;
    if (ordered && !own) bar->init_seen |= bit;
    if (!ordered && engine->reported_pairs.insert(0xfffffffd00000000ull | bar->id).second)
      finding("TC0907", text("%s: %s on mbarrier %s without being ordered after its mbar_init", who_now().c_str(), what,
                             barrier_text(bar).c_str()),
              site, {"initialised at " + place(bar->site)});
  }
  if (async && TK_UNLIKELY(!bar->init_fenced) && engine->reported_pairs.insert(0xfffffffc00000000ull | bar->id).second)
    finding("TC0914", text("%s: %s uses mbarrier %s, but no fence_mbar_init follows its mbar_init", who_now().c_str(), what,
                           barrier_text(bar).c_str()),
            site, {"initialised at " + place(bar->site)});
}

void mbar_init(uint32_t bar, uint32_t count, Site site) {
  preempt_point();
  CtaState* cta = my_cta();
  const uint32_t o = bar - kSmemBase;
  if (o >= cta->smem_bytes || (bar & 7) || !count || count > 0xfffff)
    fatal("TC0907", text("%s: mbar_init at offset %d with count %u", who_now().c_str(), static_cast<int>(o), count),
          site);
  if (cta->granule[o >> 3] >= kBarrierId)
    fatal("TC0907", text("%s initialises mbarrier %s a second time", who_now().c_str(), smem_name(cta, bar).c_str()),
          site, {"first at " + place(cta->barriers[cta->granule[o >> 3] - kBarrierId]->site)});
  smem_range(cta, bar, 8, 8, "mbar_init", site);
  MBarrier* m = new MBarrier;
  m->cta = cta;
  m->addr = bar;
  m->count = m->pending = count;
  m->id = static_cast<uint32_t>(engine->barriers.size());
  m->site = site;
  m->init_warp = cur->warp->number;
  m->init_epoch = my_warp()->clocks.epoch;
  m->init_release = my_warp()->clocks.releases;
  m->agent = new_agent(cta);
  cta->granule[o >> 3] = static_cast<uint16_t>(kBarrierId + cta->barriers.size());
  auto early = cta->early_names.find(bar);
  if (early != cta->early_names.end()) m->name = early->second.first, m->index = early->second.second;
  cta->barriers.push_back(m);
  engine->barriers.push_back(m);
}

void mbar_name(uint32_t bar, const char* name, uint32_t index, Site site) {
  CtaState* cta = my_cta();
  const uint32_t o = bar - kSmemBase;
  // Any thread may name a barrier; one not yet initialised takes its name when it is.
  if (o < cta->smem_bytes && cta->granule[o >> 3] >= kBarrierId) {
    MBarrier* m = cta->barriers[cta->granule[o >> 3] - kBarrierId];
    m->name = name;
    m->index = index;
  } else {
    cta->early_names[bar] = {name, index};
  }
  (void)site;
}

void fence_mbar_init() {
  preempt_point();
  for (MBarrier* m : my_cta()->barriers)
    if (cur->lane == 0 && m->init_warp == cur->warp->number) m->init_fenced = true;
}

static void report_parity(MBarrier* bar, const std::string& message, Site site) {
  if (!engine->reported_pairs.insert(0xfffffffe00000000ull | bar->id).second) return;
  finding("TC0911", message, site,
          {"a lane may pass a wait late only while nobody can complete the next phase but one: add syncwarp() after the "
           "wait, or let one lane wait"});
}

// Phase k+1 has just completed: a wait for phase k that did not happen before that could also have come after it, when
// its parity means the wrong phase.
static void check_lagging(MBarrier* bar) {
  const Clock& seen = bar->arriving.seen;
  for (const PhaseWait& w : bar->waits) {
    if (w.phase + 2 != bar->phase) continue;
    if (seen.get(lanes_agent(w.warp)) >= w.epoch || (w.lanes == 1 && seen.get(lane0_agent(w.warp)) >= w.release)) continue;
    report_parity(bar, text("%s waited for phase %llu of mbarrier %s, but nothing orders that wait before the end of the "
                            "next phase: the parity is ambiguous",
                            who(&engine->warps[w.warp], static_cast<uint32_t>(__builtin_ctz(w.lanes & ~1u ? w.lanes & ~1u : 1u))).c_str(),
                            static_cast<unsigned long long>(w.phase), barrier_text(bar).c_str()),
                  w.site);
  }
  bar->waits.clear();
}

static void note_wait(MBarrier* bar, Site site) {
  const WarpClocks& k = my_warp()->clocks;
  const uint64_t phase = bar->phase - 1;
  const uint32_t lane = 1u << cur->lane;
  for (PhaseWait& w : bar->waits)
    if (w.phase == phase && w.warp == cur->warp->number && w.epoch == k.epoch) {
      w.lanes |= lane;
      if (lane == 1) w.release = k.releases;
      return;
    }
  bar->waits.push_back({phase, cur->warp->number, lane, k.epoch, k.releases, site});
}

static void try_complete(MBarrier* bar) {
  if (bar->pending || bar->tx) return;
  // Its bytes would count in the phase after it, or have done so in another schedule.
  if (TK_UNLIKELY(bar->in_flight) && engine->reported_pairs.insert(0xfffffffb00000000ull | bar->id).second)
    finding("TC0907", text("phase %llu of mbarrier %s is complete, but %u of its loads are still in flight: fewer bytes are "
                           "expected than are copied",
                           static_cast<unsigned long long>(bar->phase), barrier_text(bar).c_str(), bar->in_flight),
            bar->load_site, {"mbar_arrive_expect_tx announces the bytes of every copy that completes on the phase"});
  bar->phase++;
  if (engine->races) {
    if (engine->parity) check_lagging(bar);
    bar->done.clear();
    std::swap(bar->done, bar->arriving);
    bar->done.seen.raise(bar->agent, static_cast<uint32_t>(bar->phase));
    bar->done.proxied.raise(bar->agent, static_cast<uint32_t>(bar->phase));
  }
  bar->pending = bar->count;
  std::vector<Thread*> waiters;
  waiters.swap(bar->waiters);
  for (Thread* t : waiters) make_ready(t);
}

void mbar_arrive(uint32_t addr, uint32_t tx_bytes, bool expect, Site site) {
  preempt_point();
  arrive_at(my_cta(), addr, tx_bytes, expect ? "mbar_arrive_expect_tx" : "mbar_arrive", site);
}

void arrive_at(CtaState* cta, uint32_t addr, uint32_t tx_bytes, const char* what, Site site) {
  MBarrier* bar = barrier_at(cta, addr, what, site);
  count(kMbarArrive);
  if (engine->races) check_init(bar, false, what, site);
  bar->tx += tx_bytes;
  if (bar->tx > 0xfffff)
    fatal("TC0907", text("%s: tx-count of %s exceeds 2^20-1", who_now().c_str(), barrier_text(bar).c_str()), site);
  if (!bar->pending)
    fatal("TC0907", text("%s: one arrival too many on mbarrier %s", who_now().c_str(), barrier_text(bar).c_str()),
          site);
  bar->pending--;
  if (engine->races) release_by_lane0(bar->arriving);
  try_complete(bar);
}

void complete_tx(MBarrier* bar, uint32_t bytes, Site site) {
  bar->tx -= bytes;
  if (bar->tx < -0xfffff)
    fatal("TC0907", text("tx-count of mbarrier %s falls below -(2^20-1)", barrier_text(bar).c_str()), site);
  try_complete(bar);
}

// The k-th wait of a thread on a barrier is for phase k. If the barrier is already further, the parity has come round
// again and the thread waited for the wrong phase; in another schedule it would wait for ever.
static void check_parity(MBarrier* bar, uint32_t parity, Site site) {
  if (bar->waited.empty()) bar->waited.assign(engine->options.threads, -2);
  int64_t& last = bar->waited[cur->warp->index * kLanes + cur->lane];
  int64_t wanted;
  if (last == -2) {
    wanted = parity ? -1 : 0;
  } else if ((last & 1) != static_cast<int64_t>(parity)) {
    wanted = last + 1;
  } else {  // the same phase again, or one left out on purpose
    wanted = static_cast<int64_t>(bar->phase) == last + 3 ? last + 2 : last;
  }
  last = wanted;
  if (static_cast<int64_t>(bar->phase) == wanted + 1) {
    if (engine->races) note_wait(bar, site);
    return;
  }
  report_parity(bar, text("%s waits for phase %lld of mbarrier %s, which is further: the parity is ambiguous",
                          who_now().c_str(), static_cast<long long>(wanted), barrier_text(bar).c_str()),
                site);
  last = static_cast<int64_t>(bar->phase) - 1;
}

void mbar_wait(uint32_t addr, uint32_t parity, const tk::Watch& watch, Site site) {
  preempt_point();
  MBarrier* bar = barrier_at(my_cta(), addr, "mbar_wait", site);
  count(kMbarWait);
  know_role(watch);
  if (engine->races) check_init(bar, false, "mbar_wait", site);
  // A woken thread looks at the parity again: if it comes late, the barrier may be a phase further.
  while ((bar->phase & 1) == (parity & 1)) {
    bar->waiters.push_back(self());
    block(Wait::kMbarrier, bar, parity & 1, &watch, site);
  }
  bar->waited_until = bar->phase;
  if (engine->parity) check_parity(bar, parity & 1, site);
  if (engine->races) acquire_by_lane(bar->done);
}

// ---- named barriers ---------------------------------------------------------------------------------

static void join_named(WarpState* warp, uint32_t id, uint32_t threads, bool wait, Site site) {
  if (id > 15 || !threads || threads % 32 || threads > engine->options.threads)
    fatal("TC0908", text("%s: named barrier %u with %u threads; ids are 0 to 15, counts multiples of 32 up to %u",
                         who_now().c_str(), id, threads, engine->options.threads),
          site);
  NamedBarrier& b = my_cta()->named[id];
  if (b.arrived && b.threads != threads)
    fatal("TC0908", text("%s joins named barrier %u with a count of %u threads, but %u threads wait there with a "
                         "count of %u",
                         who_now().c_str(), id, threads, b.arrived, b.threads),
          site, {"the other count is given at " + place(b.site)});
  for (WarpState* w : b.members)
    if (w == warp)
      fatal("TC0908", text("%s arrives twice at named barrier %u in one round", who_now().c_str(), id), site);
  b.threads = threads;
  b.site = site;
  b.arrived += 32;
  b.members.push_back(warp);
  if (engine->races) release_by_warp(warp, b.arriving);
  if (b.arrived == b.threads) {
    b.arrived = 0;
    b.members.clear();
    std::vector<WarpState*> parked;
    parked.swap(b.parked);
    for (WarpState* w : parked) {
      w->parked_in = nullptr;
      w->ready = 0xffffffffu;
      ready_warp(w);
      if (engine->races) acquire_by_warp(w, b.arriving);
    }
    if (engine->races && wait) acquire_by_warp(warp, b.arriving);
    b.arriving.clear();
    release_all(warp);
  } else if (wait) {
    b.parked.push_back(warp);
    warp->parked_in = &b;
    warp->parked_id = id;
    warp->arrived = 0;
    warp->ready = 1u << cur->lane;
    unready_self();
    run_next();
  } else {
    release_all(warp);
  }
}

void named_barrier(uint32_t id, uint32_t threads, bool wait, const char* what, Site site) {
  collective(nullptr, what, site, [&](Warp* w) {
    w->counts[kBarrier]++;
    join_named(static_cast<WarpState*>(w), id, threads, wait, site);
  });
}

void cta_sync(Site site) { named_barrier(0, engine->options.threads, true, "cta_sync", site); }

void set_registers(int registers, bool up, Site site) {
  collective(nullptr, up ? "setmaxnreg_inc" : "setmaxnreg_dec", site, [&](Warp* w) {
    static_cast<WarpState*>(w)->registers.push_back(registers);
    static_cast<WarpState*>(w)->registers_site = site;
    release_all(w);
  });
}

// setmaxnreg is an operation of a whole warpgroup: the hardware waits for, or mixes up, what differs.
void check_registers_exit(WarpState* warp) {
  for (const WarpState* other : my_cta()->warps) {
    if (other->index / 4 != warp->index / 4 || !(other->exited & 1u) || other->registers == warp->registers) continue;
    finding("TC0944", text("%s and warp %u of its warpgroup executed different sequences of setmaxnreg", who_now().c_str(), other->index),
            warp->registers.empty() ? other->registers_site : warp->registers_site);
    return;
  }
}

// A thread that sleeps lets the others go first, whatever its priority was.
void nanosleep(Site site) {
  engine->slept_at = site;
  my_warp()->priority = random_bits() >> 16;
  run_next();
}

}  // namespace tk_emu
