// Costs of synchronisation: mbarriers, named barriers, hand-offs between two CTAs and among all. Every mode that hands
// over data counts what arrived, and the host checks it. A sample is `rounds` repetitions between two clock reads.
#include "params.cuh"

namespace micro {
namespace sync {
constexpr u32 kThreads = 128, kWarps = kThreads / 32;
constexpr u32 kBars = 0, kBarCount = 16, kData = 128, kDataBytes = 2 * 4096;

enum Mode : u32 {
  kMbarLane,       // one lane: arrive and wait
  kMbarWarp,       // a whole warp: syncwarp, arrive, wait
  kMbarPassed,     // wait on phases that have completed, 16 barriers
  kWarpToWarp,     // store, syncwarp, arrive | wait, load: there and back
  kNamedBarrier,   // bar.sync of two warps
  kCtaSync,        // bar.sync of the CTA
  kSyncwarp,
  kShuffle,        // a dependent chain of shfl.xor
  kFenceGpu,       // fence.acq_rel.gpu after a store
  kFenceProxy,     // fence.proxy.async after a shared store
  kCounter,        // red.release there, wait_ge here: there and back
  kCounterStore,   // the same with st.release
  kCounterData,    // 512 bytes: st, syncwarp, red.release | wait_ge, syncwarp, ld
  kCounterFence,   // 512 bytes: st, syncwarp, fence, red.relaxed | wait_ge, syncwarp, ld
  kCounterBulk,    // `size` bytes: st.shared, fence, bulk store, wait, red.release | wait_ge, fence, bulk load, wait
  kFlag32,         // data as flag: a word of 32 bits per lane, pushed | polled
  kFlag64,         // the same with 64 bits
  kFlag512,        // the same with two words of 64 bits per lane: 512 bytes
  kGrid,           // all CTAs; a: 0 one counter, 1 counter and release flag, 2 tree, 3 tree and flags; b: group; c: pollers
  kGridStored,     // the same with 512 bytes stored before each arrival
  kGridData,       // the same with 512 bytes stored before and another CTA's read after
  kGridFlags,      // every CTA pushes a word and polls the words of all
};

TK_FN void mbar_lane(const MicroParams& p, smem_t bar, const Watch& w) {
  u32 phase = 0;
  if (warp() != 0 || !elect()) return;
  for (u32 s = 0; s < p.samples; s++) {
    const u32 t0 = clock32();
    MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++, phase ^= 1u) {
      mbar_arrive(bar);
      mbar_wait(bar, phase, w);
    }
    record(p, s, clock32() - t0);
  }
  sum_out(p, 0, phase);
}

TK_FN void mbar_warp(const MicroParams& p, smem_t bar, const Watch& w) {
  u32 phase = 0;
  if (warp() != 0) return;
  for (u32 s = 0; s < p.samples; s++) {
    const u32 t0 = clock32();
    MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++, phase ^= 1u) {
      syncwarp();
      mbar_arrive(bar);
      mbar_wait(bar, phase, w);
    }
    syncwarp();
    const u32 t = clock32() - t0;
    if (elect()) record(p, s, t);
  }
  if (elect()) sum_out(p, 0, phase);
}

// rounds counts phases of the 16 barriers: one sample waits 16 * rounds times.
TK_FN void mbar_passed(const MicroParams& p, smem_t bars, const Watch& w) {
  u32 phase = 0;
  if (warp() != 0 || !elect()) return;
  for (u32 s = 0; s < p.samples; s++) {
    u32 t = 0;
    MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++, phase ^= 1u) {
      TK_UNROLL for (u32 i = 0; i < kBarCount; i++) mbar_arrive(bars + 8 * i);
      mbar_wait(bars + 8 * (kBarCount - 1), phase, w);
      const u32 t0 = clock32();
      TK_UNROLL for (u32 i = 0; i + 1 < kBarCount; i++) mbar_wait(bars + 8 * i, phase, w);
      t += clock32() - t0;
    }
    record(p, s, t);
  }
  sum_out(p, 0, phase);
}

TK_FN void warp_to_warp(const MicroParams& p, smem_t sb, const Watch& w) {
  const u32 wp = warp(), ln = lane();
  const smem_t a = sb + kBars, b = a + 8, there = sb + kData + ln * 4, back = there + 128;
  u32 phase = 0, v = pattern(ln);
  if (wp == 0) {
    for (u32 s = 0; s < p.samples; s++) {
      const u32 t0 = clock32();
      MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++, phase ^= 1u) {
        sts32(there, v + 1u);
        syncwarp();
        mbar_arrive(a);
        mbar_wait(b, phase, w);
        v = lds32(back);
      }
      const u32 t = clock32() - t0;
      if (ln == 0) record(p, s, t);
    }
    // Every lane has its own word, every hand-off added one.
    const u32 good = tk::ballot(v == pattern(ln) + 2u * p.samples * p.rounds);
    if (ln == 0) sum_out(p, 0, popc(good));
  } else if (wp == 1) {
    MICRO_ROLLED for (u32 r = 0; r < p.samples * p.rounds; r++, phase ^= 1u) {
      mbar_wait(a, phase, w);
      v = lds32(there);
      sts32(back, v + 1u);
      syncwarp();
      mbar_arrive(b);
    }
  }
}

template <u32 M>
TK_FN void local_chain(const MicroParams& p, smem_t sb) {
  const u32 ln = lane(), wp = warp();
  if (M == kNamedBarrier ? wp > 1 : M == kCtaSync ? false : wp != 0) return;
  u32 v = pattern(ln);
  for (u32 s = 0; s < p.samples; s++) {
    const u32 t0 = clock32();
    MICRO_UNROLL_8 for (u32 r = 0; r < p.rounds; r++) {
      if (M == kNamedBarrier) bar_sync(1, 64);
      if (M == kCtaSync) cta_sync();
      if (M == kSyncwarp) syncwarp();
      if (M == kShuffle) v = shfl_xor(v, 1u + (r & 1u)) + 1u;
      if (M == kFenceGpu) {
        stg32(p.work + cta() * 128u + ln * 4, v++);
        fence_gpu();
      }
      if (M == kFenceProxy) {
        sts32(sb + kData + ln * 4, v++);
        fence_proxy_async();
      }
    }
    const u32 t = clock32() - t0;
    if (wp == 0 && ln == 0) record(p, s, t);
  }
  if (wp == 0) {
    const u32 n = p.samples * p.rounds;
    // rounds is a multiple of 8: the exchanges with lanes 1 and 2 away cancel out.
    const u32 want = pattern(ln) + (M == kShuffle || M == kFenceGpu || M == kFenceProxy ? n : 0u);
    const u32 good = tk::ballot(v == want);
    if (ln == 0) sum_out(p, 0, popc(good));
  }
}

// ---- two CTAs: 0 and p.a ---------------------------------------------------------------------------------------------

template <u32 M>
TK_FN void counters(const MicroParams& p, const Watch& w) {
  if (warp() != 0 || !elect()) return;
  u32 *there = line(p, 0), *back = line(p, 1), n = 0;
  if (cta() == 0) {
    for (u32 s = 0; s < p.samples; s++) {
      const u32 t0 = clock32();
      MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
        n++;
        if (M == kCounter) red_release(there, 1);
        if (M == kCounterStore) st_release(there, n);
        wait_ge(back, n, w);
      }
      record(p, s, clock32() - t0);
    }
    sum_out(p, 0, ld_acquire(back));
  } else if (cta() == p.a) {
    MICRO_ROLLED for (u32 r = 0; r < p.samples * p.rounds; r++) {
      n++;
      wait_ge(there, n, w);
      if (M == kCounter) red_release(back, 1);
      if (M == kCounterStore) st_release(back, n);
    }
  }
}

template <u32 M>
TK_FN void publish(u32* counter) {
  syncwarp();
  if (M == kCounterFence && elect()) fence_gpu();  // the lane that arrives fences for the warp
  if (M == kCounterFence) red_relaxed(counter, 1);
  else red_release(counter, 1);
}
template <u32 M>
TK_FN void counters_data(const MicroParams& p, const Watch& w) {
  const u32 ln = lane();
  if (warp() != 0) return;
  uint8_t *there = p.work + ln * 16, *back = p.work + 4096 + ln * 16;
  u32 n = 0, v = pattern(ln), good = 1;
  if (cta() == 0) {
    for (u32 s = 0; s < p.samples; s++) {
      const u32 t0 = clock32();
      MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
        n++;
        stg128(there, u32x4{v, v + 1u, v + 2u, v + 3u});
        publish<M>(line(p, 0));
        wait_ge(line(p, 1), n, w);
        syncwarp();
        const u32x4 x = ldg128(back);
        good &= x.y - x.x == 1u && x.z - x.x == 2u && x.w - x.x == 3u;
        v = x.x;
      }
      const u32 t = clock32() - t0;
      if (ln == 0) record(p, s, t);
    }
    good = tk::ballot(good && v == pattern(ln) + p.samples * p.rounds);
    if (ln == 0) sum_out(p, 0, popc(good));
  } else if (cta() == p.a) {
    MICRO_ROLLED for (u32 r = 0; r < p.samples * p.rounds; r++) {
      n++;
      wait_ge(line(p, 0), n, w);
      syncwarp();
      const u32x4 x = ldg128(there);
      stg128(back, u32x4{x.x + 1u, x.y + 1u, x.z + 1u, x.w + 1u});
      publish<M>(line(p, 1));
    }
  }
}

// The path of an activation: computed into shared memory, out by a bulk store, in by a bulk load.
TK_FN void counters_bulk(const MicroParams& p, smem_t sb, const Watch& w) {
  const u32 ln = lane(), me = cta(), bytes = p.size;
  if (warp() != 0 || (me != 0 && me != p.a)) return;
  const smem_t bar = sb + kBars, out = sb + kData, in = out + 4096;
  uint8_t* mine = p.work + (me == 0 ? 0 : 4096);
  const uint8_t* theirs = p.work + (me == 0 ? 4096 : 0);
  u32 *ring = line(p, me == 0 ? 0 : 1), *wait = line(p, me == 0 ? 1 : 0);
  u32 n = 0, v = pattern(ln), phase = 0, t0 = 0;
  const u32 total = p.samples * p.rounds;
  MICRO_ROLLED for (u32 r = 0; r < total + (me == 0 ? 0u : 1u); r++) {
    if (me == 0 && r % p.rounds == 0) t0 = clock32();
    // The answering CTA begins by waiting and ends by sending.
    if (me == 0 || r > 0) {
      for (u32 i = ln * 16; i < bytes; i += 512) sts128(out + i, u32x4{v, v, v, v});
      fence_proxy_async();
      syncwarp();
      bulk_s2g(mine, out, bytes);
      bulk_commit();
      bulk_wait<0>();
      fence_proxy_async();
      red_release(ring, 1);
    }
    if (me == 0 || r < total) {
      n++;
      wait_ge(wait, n, w);
      fence_proxy_async();
      syncwarp();
      mbar_arrive_expect_tx(bar, bytes);
      bulk_g2s(in, theirs, bytes, bar);
      mbar_wait(bar, phase, w);
      phase ^= 1u;
      v = lds32(in + ln * 16) + 1u;
      syncwarp();
    }
    if (me == 0 && r % p.rounds == p.rounds - 1) {
      const u32 t = clock32() - t0;
      if (ln == 0) record(p, r / p.rounds, t);
    }
  }
  if (me == 0) {
    const u32 good = tk::ballot(v == pattern(ln) + 2u * total);
    if (ln == 0) sum_out(p, 0, popc(good));
  }
}

// Every round has words of its own, which the host has poisoned: [round][there 512 bytes | back 512 bytes].
template <class Word, u32 kWords>
TK_FN void flags(const MicroParams& p, Word poison, const Watch& w) {
  const u32 ln = lane(), me = cta(), total = p.samples * p.rounds;
  if (warp() != 0 || (me != 0 && me != p.a)) return;
  u32 t0 = 0;
  Word v[kWords];
  TK_UNROLL for (u32 i = 0; i < kWords; i++) v[i] = (i * 32u + ln) << 20;  // far from the poison
  MICRO_ROLLED for (u32 r = 0; r < total; r++) {
    if (me == 0 && r % p.rounds == 0) t0 = clock32();
    Word* there = reinterpret_cast<Word*>(p.work + static_cast<u64>(r) * 1024) + ln;
    Word* back = there + 512 / sizeof(Word);
    if (me == 0) {
      TK_UNROLL for (u32 i = 0; i < kWords; i++) push_word<Scope::kGpu>(there + 32 * i, static_cast<Word>(v[i] + 1));
      TK_UNROLL for (u32 i = 0; i < kWords; i++) v[i] = poll_word<Scope::kGpu>(back + 32 * i, poison, w);
    } else {
      TK_UNROLL for (u32 i = 0; i < kWords; i++) v[i] = poll_word<Scope::kGpu>(there + 32 * i, poison, w);
      TK_UNROLL for (u32 i = 0; i < kWords; i++) push_word<Scope::kGpu>(back + 32 * i, static_cast<Word>(v[i] + 1));
    }
    syncwarp();
    if (me == 0 && ln == 0 && r % p.rounds == p.rounds - 1) record(p, r / p.rounds, clock32() - t0);
  }
  if (me == 0) {
    u32 same = 1;
    TK_UNROLL for (u32 i = 0; i < kWords; i++) same &= v[i] == static_cast<Word>(((i * 32u + ln) << 20) + 2u * total);
    const u32 good = tk::ballot(same != 0u);
    if (ln == 0) sum_out(p, 0, popc(good));
  }
}

// ---- all CTAs --------------------------------------------------------------------------------------------------------

struct Grid {
  u32 kind, group, n, me;
  TK_FN u32 groups() const { return (n + group - 1) / group; }
  TK_FN u32 mine() const { return me / group; }
  TK_FN u32 members() const { return mine() + 1 < groups() ? group : n - (groups() - 1) * group; }
  TK_FN bool leads() const { return me % group == 0; }
};
// Lines: 0 root, 1 release, 2 + g group arrivals, 2 + groups + g group flags. One lane of one warp. A leader also passes on
// what its group published: it acquires before it releases.
TK_FN void arrive_all(const MicroParams& p, const Grid& g, u32 epoch, const Watch& w) {
  if (g.kind < 2) {
    red_release(line(p, 0), 1);
    if (g.kind == 1 && g.me == 0) {
      wait_ge(line(p, 0), epoch * g.n, w);
      st_release(line(p, 1), epoch);
    }
    return;
  }
  red_release(line(p, 2 + g.mine()), 1);
  if (!g.leads()) return;
  wait_ge(line(p, 2 + g.mine()), epoch * g.members(), w);
  red_release(line(p, 0), 1);
  if (g.kind == 3) {
    wait_ge(line(p, 0), epoch * g.groups(), w);
    st_release(line(p, 2 + g.groups() + g.mine()), epoch);
  }
}
TK_FN void wait_all(const MicroParams& p, const Grid& g, u32 epoch, const Watch& w) {
  if (g.kind == 0) wait_ge(line(p, 0), epoch * g.n, w);
  if (g.kind == 1) wait_ge(line(p, 1), epoch, w);
  if (g.kind == 2) wait_ge(line(p, 0), epoch * g.groups(), w);
  if (g.kind == 3) wait_ge(line(p, 2 + g.groups() + g.mine()), epoch, w);
}

// The 16 bytes that this lane of CTA `other` stored in `epoch`.
TK_FN u32 wrong(const uint8_t* slot, u32 other, u32 epoch) {
  const u32 ln = lane(), v = pattern(other * 32u + ln) + epoch;
  const u32x4 x = ldg128(slot + other * 512u + ln * 16);
  return x.x != v || x.y != (v ^ 1u) || x.z != (v ^ 2u) || x.w != (v ^ 3u);
}

template <bool kStored, bool kLoaded>
TK_FN void grid(const MicroParams& p, const Watch& w) {
  const Grid g{p.a, p.b ? p.b : 1u, ncta(), cta()};
  const u32 ln = lane(), wp = warp(), pollers = p.c;
  if (wp >= pollers) return;
  u32 epoch = 0, bad = 0;
  for (u32 s = 0; s < p.samples; s++) {
    const u32 t0 = clock32();
    MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
      epoch++;
      uint8_t* slot = p.work + (epoch & 1u) * g.n * 512u;
      // All pollers of the CTA have seen the last epoch before it arrives again, as roles of one op do.
      if (pollers > 1) bar_sync(1, pollers * 32u);
      if (wp == 0) {
        if (kStored) {
          const u32 v = pattern(g.me * 32u + ln) + epoch;
          stg128(slot + g.me * 512u + ln * 16, u32x4{v, v ^ 1u, v ^ 2u, v ^ 3u});
        }
        syncwarp();
        if (elect()) arrive_all(p, g, epoch, w);
      }
      wait_all(p, g, epoch, w);
      syncwarp();
      if (kLoaded && wp == 0) bad += wrong(slot, (g.me + epoch) % g.n, epoch);
    }
    const u32 t = clock32() - t0;
    if (wp == 0 && ln == 0) record(p, s, t);
  }
  if (wp == 0) {
    // What the last epoch stored is still there for all to see.
    if (kStored && !kLoaded) bad += wrong(p.work + (epoch & 1u) * g.n * 512u, (g.me + 1) % g.n, epoch);
    const u32 good = tk::ballot(bad == 0u);
    if (ln == 0) {
      sum_out(p, 0, popc(good));
      sum_out(p, 1, ld_acquire(line(p, 0)));
    }
  }
}

// [round][CTA] words, poisoned by the host.
TK_FN void grid_flags(const MicroParams& p, const Watch& w) {
  if (warp() != 0) return;
  const u32 ln = lane(), n = ncta();
  u32 bad = 0;
  for (u32 s = 0; s < p.samples; s++) {
    const u32 t0 = clock32();
    MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) {
      const u32 epoch = s * p.rounds + r;
      u32* words = reinterpret_cast<u32*>(p.work) + static_cast<u64>(epoch) * n;
      if (ln == 0) push_word<Scope::kGpu>(words + cta(), (cta() << 16) + epoch);
      MICRO_ROLLED for (u32 i = ln; i < n; i += 32) bad += poll_word<Scope::kGpu>(words + i, kFlagPoison, w) != (i << 16) + epoch;
      syncwarp();
    }
    const u32 t = clock32() - t0;
    if (ln == 0) record(p, s, t);
  }
  const u32 good = tk::ballot(bad == 0u);
  if (ln == 0) sum_out(p, 0, popc(good));
}
}  // namespace sync
}  // namespace micro

TK_KERNEL(micro_sync, micro::sync::kThreads)(TK_GRID_CONST MicroParams p) {
  using namespace micro;
  using namespace micro::sync;
  const smem_t sb = smem_base();
  smem_region("barriers", sb + kBars, 8 * kBarCount);
  smem_region("data", sb + kData, kDataBytes);
  name_role(1, "measured");
  const Watch w{p.status, 1, p.mode, 0, 0};
  if (warp() == 0) {
    for (u32 i = 0; i < kBarCount; i++) mbar_init(sb + kBars + 8 * i, 1);
    fence_mbar_init();
  }
  span_out(p, 0);
  cta_sync();
  switch (p.mode) {
    case kMbarLane: mbar_lane(p, sb + kBars, w); break;
    case kMbarWarp: mbar_warp(p, sb + kBars, w); break;
    case kMbarPassed: mbar_passed(p, sb + kBars, w); break;
    case kWarpToWarp: warp_to_warp(p, sb, w); break;
    case kNamedBarrier: local_chain<kNamedBarrier>(p, sb); break;
    case kCtaSync: local_chain<kCtaSync>(p, sb); break;
    case kSyncwarp: local_chain<kSyncwarp>(p, sb); break;
    case kShuffle: local_chain<kShuffle>(p, sb); break;
    case kFenceGpu: local_chain<kFenceGpu>(p, sb); break;
    case kFenceProxy: local_chain<kFenceProxy>(p, sb); break;
    case kCounter: counters<kCounter>(p, w); break;
    case kCounterStore: counters<kCounterStore>(p, w); break;
    case kCounterData: counters_data<kCounterData>(p, w); break;
    case kCounterFence: counters_data<kCounterFence>(p, w); break;
    case kCounterBulk: counters_bulk(p, sb, w); break;
    case kFlag32: flags<u32, 1>(p, kFlagPoison, w); break;
    case kFlag64: flags<u64, 1>(p, kFlagPoison64, w); break;
    case kFlag512: flags<u64, 2>(p, kFlagPoison64, w); break;
    case kGrid: grid<false, false>(p, w); break;
    case kGridStored: grid<true, false>(p, w); break;
    case kGridData: grid<true, true>(p, w); break;
    case kGridFlags: grid_flags(p, w); break;
  }
  cta_sync();
  span_out(p, 1);
}
TK_EMU_ENTRY(micro_sync, MicroParams)
