// Ids, barriers, async copies, counters and warp collectives of the emulation.
#pragma once
#include <string.h>

namespace tk_emu {

TK_HIDDEN void smem_region(const char* name, uint32_t addr, uint32_t bytes, Site site);
TK_HIDDEN void mbar_name(uint32_t bar, const char* name, uint32_t index, Site site);
TK_HIDDEN void name_role(uint32_t id, const char* name);
TK_HIDDEN void name_op(uint32_t id, const char* name);
TK_HIDDEN uint32_t grid_ctas();
TK_HIDDEN uint64_t read_clock();

TK_HIDDEN void mbar_init(uint32_t bar, uint32_t count, Site site);
TK_HIDDEN void fence_mbar_init();
TK_HIDDEN void mbar_arrive(uint32_t bar, uint32_t tx_bytes, bool expect, Site site);
TK_HIDDEN void mbar_wait(uint32_t bar, uint32_t parity, const tk::Watch& watch, Site site);

TK_HIDDEN void bulk_g2s(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, Site site);
TK_HIDDEN void bulk_s2g(void* dst, uint32_t src, uint32_t bytes, Site site);
TK_HIDDEN void bulk_commit(Site site);
TK_HIDDEN void bulk_wait(uint32_t keep, bool read_only, Site site);
TK_HIDDEN void fence_proxy_async(Site site);
TK_HIDDEN void prefetch_l2(const void* src, uint32_t bytes, Site site);

TK_HIDDEN void named_barrier(uint32_t id, uint32_t threads, bool wait, const char* what, Site site);
TK_HIDDEN void cta_sync(Site site);
TK_HIDDEN void set_registers(int count, bool up, Site site);
TK_HIDDEN void sync_warp_clocks(Warp* warp);
TK_HIDDEN void nanosleep(Site site);

TK_HIDDEN void wait_ge(const uint32_t* p, uint32_t target, tk::Scope scope, bool acquire, const tk::Watch& watch,
                       Site site);
TK_HIDDEN uint32_t counter_add(uint32_t* p, uint32_t v, tk::Scope scope, bool acquire, bool release, const char* what,
                               Site site);
TK_HIDDEN uint32_t counter_load(const uint32_t* p, tk::Scope scope, bool acquire, Site site);
TK_HIDDEN void counter_store(uint32_t* p, uint32_t v, tk::Scope scope, bool release, Site site);
TK_HIDDEN void fence(tk::Scope scope, Site site);
TK_HIDDEN uint64_t poll_word(const void* p, uint64_t poison, uint32_t bytes, tk::Scope scope, const tk::Watch& watch,
                             Site site);
TK_HIDDEN void push_word(void* p, uint64_t value, uint32_t bytes, tk::Scope scope, Site site);
TK_HIDDEN void poison_word(void* p, uint64_t value, uint32_t bytes, Site site);

}  // namespace tk_emu

#define TK_SITE ::tk_emu::Site site = ::tk_emu::Site::current()

namespace tk {

TK_FN u32 lane() { return tk_emu::cur->lane; }
TK_FN u32 warp() { return tk_emu::cur->warp->index; }
TK_FN u32 cta() { return tk_emu::cur->cta->index; }
TK_FN u32 ncta() { return tk_emu::grid_ctas(); }
TK_FN void opaque(u32&) {}
TK_FN bool elect() { return tk_emu::cur->lane == 0; }
TK_FN smem_t smem_base() { return tk_emu::kSmemBase; }
// There is no time here: every read of either clock gives one more than the read before.
TK_FN u32 clock32() { return static_cast<u32>(tk_emu::read_clock()); }
TK_FN u64 global_timer() { return tk_emu::read_clock(); }

TK_FN void smem_region(const char* name, smem_t addr, u32 bytes, TK_SITE) {
  tk_emu::smem_region(name, addr, bytes, site);
}
TK_FN void mbar_name(smem_t bar, const char* name, u32 index, TK_SITE) {
  tk_emu::mbar_name(bar, name, index, site);
}
TK_FN void name_role(u32 id, const char* name) { tk_emu::name_role(id, name); }
TK_FN void name_op(u32 id, const char* name) { tk_emu::name_op(id, name); }

TK_FN void mbar_init(smem_t bar, u32 count, TK_SITE) {
  if (elect()) tk_emu::mbar_init(bar, count, site);
}
TK_FN void fence_mbar_init() { tk_emu::fence_mbar_init(); }
TK_FN void mbar_arrive(smem_t bar, TK_SITE) {
  if (elect()) tk_emu::mbar_arrive(bar, 0, false, site);
}
TK_FN void mbar_arrive_expect_tx(smem_t bar, u32 bytes, TK_SITE) {
  if (elect()) tk_emu::mbar_arrive(bar, bytes, true, site);
}
TK_FN void mbar_wait(smem_t bar, u32 parity, const Watch& watch, TK_SITE) {
  tk_emu::mbar_wait(bar, parity, watch, site);
}

TK_FN void bulk_g2s(smem_t dst, const void* src, u32 bytes, smem_t bar, TK_SITE) {
  if (elect()) tk_emu::bulk_g2s(dst, src, bytes, bar, site);
}
TK_FN void bulk_s2g(void* dst, smem_t src, u32 bytes, TK_SITE) {
  if (elect()) tk_emu::bulk_s2g(dst, src, bytes, site);
}
TK_FN void bulk_commit(TK_SITE) {
  if (elect()) tk_emu::bulk_commit(site);
}
template <int N>
TK_FN void bulk_wait(TK_SITE) {
  if (elect()) tk_emu::bulk_wait(N, false, site);
}
template <int N>
TK_FN void bulk_wait_read(TK_SITE) {
  if (elect()) tk_emu::bulk_wait(N, true, site);
}
TK_FN void fence_proxy_async(TK_SITE) { tk_emu::fence_proxy_async(site); }
TK_FN void prefetch_l2(const void* src, u32 bytes, TK_SITE) {
  if (elect()) tk_emu::prefetch_l2(src, bytes, site);
}

TK_FN void syncwarp(TK_SITE) {
  tk_emu::collective(nullptr, "syncwarp", site, [](tk_emu::Warp* w) {
    w->counts[tk_emu::kSyncwarp]++;
    if (TK_UNLIKELY(tk_emu::shadow_on)) tk_emu::sync_warp_clocks(w);
    tk_emu::release_all(w);
  });
}
TK_FN void bar_sync(u32 id, u32 threads, TK_SITE) { tk_emu::named_barrier(id, threads, true, "bar_sync", site); }
TK_FN void bar_arrive(u32 id, u32 threads, TK_SITE) {
  tk_emu::named_barrier(id, threads, false, "bar_arrive", site);
}
TK_FN void cta_sync(TK_SITE) { tk_emu::cta_sync(site); }
template <int N>
TK_FN void setmaxnreg_inc(TK_SITE) {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes a multiple of 8 in [24, 256]");
  tk_emu::set_registers(N, true, site);
}
template <int N>
TK_FN void setmaxnreg_dec(TK_SITE) {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes a multiple of 8 in [24, 256]");
  tk_emu::set_registers(N, false, site);
}
TK_FN void nanosleep(u32, TK_SITE) { tk_emu::nanosleep(site); }

template <Scope S = Scope::kGpu>
TK_FN void wait_ge(const u32* p, u32 target, const Watch& watch, TK_SITE) {
  if (elect()) tk_emu::wait_ge(p, target, S, true, watch, site);
}
template <Scope S = Scope::kGpu>
TK_FN void wait_ge_relaxed(const u32* p, u32 target, const Watch& watch, TK_SITE) {
  if (elect()) tk_emu::wait_ge(p, target, S, false, watch, site);
}
template <Scope S = Scope::kGpu>
TK_FN void red_release(u32* p, u32 v, TK_SITE) {
  if (elect()) tk_emu::counter_add(p, v, S, false, true, "red_release", site);
}
template <Scope S = Scope::kGpu>
TK_FN void red_relaxed(u32* p, u32 v, TK_SITE) {
  if (elect()) tk_emu::counter_add(p, v, S, false, false, "red_relaxed", site);
}
template <Scope S = Scope::kGpu>
TK_FN u32 atom_add_acqrel(u32* p, u32 v, TK_SITE) {
  return elect() ? tk_emu::counter_add(p, v, S, true, true, "atom_add_acqrel", site) : 0u;
}
template <Scope S = Scope::kGpu>
TK_FN u32 ld_acquire(const u32* p, TK_SITE) {
  return tk_emu::counter_load(p, S, true, site);
}
template <Scope S = Scope::kGpu>
TK_FN u32 ld_relaxed(const u32* p, TK_SITE) {
  return tk_emu::counter_load(p, S, false, site);
}
template <Scope S = Scope::kGpu>
TK_FN void st_release(u32* p, u32 v, TK_SITE) {
  if (elect()) tk_emu::counter_store(p, v, S, true, site);
}
template <Scope S = Scope::kGpu>
TK_FN void st_relaxed(u32* p, u32 v, TK_SITE) {
  if (elect()) tk_emu::counter_store(p, v, S, false, site);
}
template <Scope S>
TK_FN void fence(TK_SITE) {
  tk_emu::fence(S, site);
}
TK_FN void fence_gpu(TK_SITE) { tk_emu::fence(Scope::kGpu, site); }

template <Scope S>
TK_FN u32 poll_word(const u32* p, u32 poison, const Watch& watch, TK_SITE) {
  return static_cast<u32>(tk_emu::poll_word(p, poison, 4, S, watch, site));
}
template <Scope S>
TK_FN u64 poll_word(const u64* p, u64 poison, const Watch& watch, TK_SITE) {
  return tk_emu::poll_word(p, poison, 8, S, watch, site);
}
template <Scope S, u32 N, class At, class Word>
TK_FN void poll_words(const At& at, Word poison, const Watch& watch, Word (&v)[N], TK_SITE) {
  for (u32 i = 0; i < N; i++) v[i] = poll_word<S>(at(i), poison, watch, site);
}
template <Scope S>
TK_FN void push_word(u32* p, u32 value, TK_SITE) {
  tk_emu::push_word(p, value, 4, S, site);
}
template <Scope S>
TK_FN void push_word(u64* p, u64 value, TK_SITE) {
  tk_emu::push_word(p, value, 8, S, site);
}
TK_FN void poison_word(u32* p, u32 poison, TK_SITE) { tk_emu::poison_word(p, poison, 4, site); }
TK_FN void poison_word(u64* p, u64 poison, TK_SITE) { tk_emu::poison_word(p, poison, 8, site); }

}  // namespace tk

// ---- lane exchange ----------------------------------------------------------------------------------

namespace tk_emu {

struct Exchange {
  uint32_t in, out, source;
};
// Every lane names the lane it reads from; a source outside the warp means its own value.
TK_ALWAYS uint32_t exchange(uint32_t value, uint32_t source, const char* what, Site site) {
  Exchange mine{value, 0, source};
  collective(&mine, what, site, [](Warp* w) {
    w->counts[kShfl]++;
    for (int i = 0; i < kLanes; i++) {
      Exchange* e = static_cast<Exchange*>(w->slot[i]);
      e->out = e->source < 32u ? static_cast<Exchange*>(w->slot[e->source])->in : e->in;
    }
    release_all(w);
  });
  return mine.out;
}
template <class T>
TK_ALWAYS T exchange_as(T value, uint32_t source, const char* what, Site site) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = exchange(bits, source, what, site);
  T out;
  memcpy(&out, &bits, 4);
  return out;
}

}  // namespace tk_emu

namespace tk {

#define TK_SHUFFLES(T)                                                                               \
  TK_FN T shfl_xor(T v, u32 mask, TK_SITE) {                                                         \
    return tk_emu::exchange_as<T>(v, lane() ^ mask, "shfl_xor", site);                               \
  }                                                                                                  \
  TK_FN T shfl_idx(T v, u32 src, TK_SITE) {                                                          \
    return tk_emu::exchange_as<T>(v, src & 31u, "shfl_idx", site);                                   \
  }                                                                                                  \
  TK_FN T shfl_up(T v, u32 by, TK_SITE) {                                                            \
    return tk_emu::exchange_as<T>(v, lane() >= by ? lane() - by : 32u, "shfl_up", site);             \
  }                                                                                                  \
  TK_FN T shfl_down(T v, u32 by, TK_SITE) {                                                          \
    return tk_emu::exchange_as<T>(v, lane() + by, "shfl_down", site);                                \
  }
TK_SHUFFLES(float)
TK_SHUFFLES(u32)
TK_SHUFFLES(i32)
#undef TK_SHUFFLES

TK_FN u32 ballot(bool pred, TK_SITE) {
  tk_emu::Exchange mine{pred ? 1u : 0u, 0, 0};
  tk_emu::collective(&mine, "ballot", site, [](tk_emu::Warp* w) {
    u32 mask = 0;
    for (int i = 0; i < tk_emu::kLanes; i++) mask |= static_cast<tk_emu::Exchange*>(w->slot[i])->in << i;
    for (int i = 0; i < tk_emu::kLanes; i++) static_cast<tk_emu::Exchange*>(w->slot[i])->out = mask;
    w->counts[tk_emu::kShfl]++;
    tk_emu::release_all(w);
  });
  return mine.out;
}

}  // namespace tk
