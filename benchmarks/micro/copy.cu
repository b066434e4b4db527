// Costs of moving data: bulk copies from L2 and HBM, idle and under load; streams with a given number of bytes in flight;
// activations that every SM loads; prefetches into L2; dependent loads. Data is the pattern, so all that arrives is checked.
#include "params.cuh"

namespace micro {
namespace copy {
constexpr u32 kThreads = 256, kConsumers = 4, kMaxStages = 48;
constexpr u32 kFull = 0, kEmpty = 8 * kMaxStages, kOwn = 16 * kMaxStages, kRing = 1024;

enum Mode : u32 {
  kFill,        // writes the pattern to work[0, bytes)
  kLatency,     // CTA 0: one bulk copy of `size` at a time, a bytes apart; others stream if stages > 0
  kStream,      // all CTAs: rings of `stages` copies of `size` over the region, rounds copies each; a: check every word
  kActivations, // all CTAs: write `bytes` together, hand over, then everyone loads all of it in copies of `size`
  kPrefetch,    // all CTAs: prefetch `size` bytes, let a shuffles pass, then load them; b: copies; c: 0 no prefetch
  kChase,       // CTA 0: dependent loads along a chain in work; others stream if stages > 0
  kStaged,      // as kActivations, but through registers: ld.global.v4, st.shared.v4 by all warps
};

struct Ring {
  u32 slot = 0, phase = 0;
  TK_FN void advance(u32 stages) {
    if (++slot == stages) {
      slot = 0;
      phase ^= 1u;
    }
  }
};

TK_FN u32 word_at(const MicroParams& p, u64 byte) { return pattern(static_cast<u32>((p.offset + byte) / 4)); }

TK_FN void fill(const MicroParams& p) {
  const u64 n = p.bytes / 16, step = static_cast<u64>(ncta()) * kThreads;
  for (u64 i = static_cast<u64>(cta()) * kThreads + warp() * 32u + lane(); i < n; i += step) {
    const u32 at = static_cast<u32>(i) * 4u;
    stg128(p.work + i * 16, u32x4{pattern(at), pattern(at + 1), pattern(at + 2), pattern(at + 3)});
  }
}

// ---- the ring: one loader lane, consumer warps that look at the first word of a copy or at all of it ------------------

// The copies of CTA `me` of `n`: neighbours in memory belong to neighbouring CTAs, so the whole grid reads one stretch at a
// time, and begins again at the end of the region.
struct Walk {
  u32 at, n, copies, size;
  TK_FN Walk(const MicroParams& p, u32 me, u32 ctas, u32 copy_bytes)
      : at(me), n(ctas), copies(static_cast<u32>(p.bytes / copy_bytes)), size(copy_bytes) {}
  TK_FN u64 byte() const { return static_cast<u64>(at) * size; }
  TK_FN void next() {
    at += n;
    if (at >= copies) at -= copies;
  }
};

TK_FN void stream_loader(const MicroParams& p, smem_t sb, const Watch& w) {
  Ring r;
  Walk walk(p, cta(), ncta(), p.size);
  MICRO_ROLLED for (u32 i = 0; i < p.rounds; i++, walk.next()) {
    mbar_wait(sb + kEmpty + 8 * r.slot, r.phase ^ 1u, w);
    mbar_arrive_expect_tx(sb + kFull + 8 * r.slot, p.size);
    bulk_g2s(sb + kRing + r.slot * p.size, p.data + p.offset + walk.byte(), p.size, sb + kFull + 8 * r.slot);
    r.advance(p.stages);
  }
}

// Returns the number of wrong words that this lane saw, and adds what it read to `sum`.
TK_FN u32 look(const MicroParams& p, smem_t stage, u64 at, u32 c, u32& sum) {
  const u32 ln = lane();
  if (p.a == 0) {
    const u32 v = lds32(stage + c * (p.size / kConsumers) + ln * 4);
    sum += v;
    return v != word_at(p, at + c * (p.size / kConsumers) + ln * 4);
  }
  u32 bad = 0;
  for (u32 o = (c * 32 + ln) * 16; o < p.size; o += kConsumers * 512) {
    const u32x4 v = lds128(stage + o);
    const u32 x = word_at(p, at + o);
    sum += v.x + v.y + v.z + v.w;
    bad += v.x != x || v.y != word_at(p, at + o + 4) || v.z != word_at(p, at + o + 8) || v.w != word_at(p, at + o + 12);
  }
  return bad;
}

TK_FN void stream_consumer(const MicroParams& p, smem_t sb, const Watch& w) {
  const u32 c = warp() - 1;
  Ring r;
  Walk walk(p, cta(), ncta(), p.size);
  u32 bad = 0, sum = 0;
  MICRO_ROLLED for (u32 i = 0; i < p.rounds; i++, walk.next()) {
    mbar_wait(sb + kFull + 8 * r.slot, r.phase, w);
    bad += look(p, sb + kRing + r.slot * p.size, walk.byte(), c, sum);
    syncwarp();
    mbar_arrive(sb + kEmpty + 8 * r.slot);
    r.advance(p.stages);
  }
  TK_UNROLL for (u32 m = 16; m > 0; m >>= 1) {
    bad += shfl_xor(bad, m);
    sum += shfl_xor(sum, m);
  }
  if (elect()) {
    sum_out(p, c, bad);
    red_relaxed(p.sums + cta() * 8u + 4u, sum);
  }
}

TK_FN void stream(const MicroParams& p, smem_t sb, const Watch& w) {
  if (warp() == 0) {
    if (elect()) stream_loader(p, sb, w);
  } else if (warp() <= kConsumers) {
    stream_consumer(p, sb, w);
  }
}

// Load on the memory system until CTA 0 has finished: one lane, which waits for the oldest copy before it issues the next.
// Line 0 counts CTAs whose ring is full, line 1 stops them; `most` copies are the end in any case.
TK_FN void background(const MicroParams& p, smem_t sb, u32 copy_bytes, u32 most, const Watch& w) {
  if (warp() != 0 || !elect()) return;
  Ring in, out;
  Walk next(p, cta() - 1, ncta() - 1, copy_bytes), oldest = next;
  u32 issued = 0, landed = 0, bad = 0;
  MICRO_ROLLED while (issued < most) {
    if (issued >= p.stages) {
      mbar_wait(sb + kFull + 8 * out.slot, out.phase, w);
      bad += lds32(sb + kRing + out.slot * copy_bytes) != word_at(p, oldest.byte());
      fence_proxy_async();
      oldest.next();
      out.advance(p.stages);
      if (landed++ == 0) red_release(line(p, 0), 1);
      if (landed % 16 == 0 && ld_acquire(line(p, 1)) != 0u) break;
    }
    mbar_arrive_expect_tx(sb + kFull + 8 * in.slot, copy_bytes);
    bulk_g2s(sb + kRing + in.slot * copy_bytes, p.data + p.offset + next.byte(), copy_bytes, sb + kFull + 8 * in.slot);
    next.next();
    in.advance(p.stages);
    issued++;
  }
  MICRO_ROLLED for (; landed < issued; landed++) {
    mbar_wait(sb + kFull + 8 * out.slot, out.phase, w);
    out.advance(p.stages);
  }
  sum_out(p, 0, bad);
  sum_out(p, 1, issued);
}

// ---- latency ---------------------------------------------------------------------------------------------------------

TK_FN void latency(const MicroParams& p, smem_t sb, const Watch& w) {
  if (cta() != 0) return background(p, sb, p.c, p.rounds, w);
  if (warp() != 0 || !elect()) return;
  if (p.stages > 0) wait_ge(line(p, 0), ncta() - 1, w);
  u32 bad = 0, phase = 0;
  // The measured copies lie in the upper part of the region, c bytes from its begin on.
  MICRO_ROLLED for (u32 s = 0; s < p.samples; s++) {
    const u64 at = p.bytes + static_cast<u64>(s) * p.a % p.b;
    const u32 t0 = clock32();
    mbar_arrive_expect_tx(sb + kOwn, p.size);
    bulk_g2s(sb + kRing, p.data + p.offset + at, p.size, sb + kOwn);
    mbar_wait(sb + kOwn, phase, w);
    record(p, s, clock32() - t0);
    phase ^= 1u;
    bad += lds32(sb + kRing) != word_at(p, at);
    bad += lds32(sb + kRing + p.size - 4) != word_at(p, at + p.size - 4);
    fence_proxy_async();
  }
  if (p.stages > 0) red_release(line(p, 1), 1);
  sum_out(p, 0, bad);
}

// Dependent loads: word 0 of each 128-byte line names the next line. samples of rounds loads; b: loads before the first;
// a: 1 for ld.relaxed, which L1 does not serve.
TK_FN u32 next_line(const MicroParams& p, u32 at) {
  const u32* word = reinterpret_cast<const u32*>(p.work + static_cast<u64>(at) * 128);
  return p.a ? ld_relaxed(word) : ldg32(word);
}
TK_FN void chase(const MicroParams& p, smem_t sb, const Watch& w) {
  if (cta() != 0) return background(p, sb, p.c, p.size, w);
  if (warp() != 0 || !elect()) return;
  if (p.stages > 0) wait_ge(line(p, 0), ncta() - 1, w);
  u32 at = 0;
  MICRO_ROLLED for (u32 i = 0; i < p.b; i++) at = next_line(p, at);
  MICRO_ROLLED for (u32 s = 0; s < p.samples; s++) {
    const u32 t0 = clock32();
    MICRO_ROLLED for (u32 r = 0; r < p.rounds; r++) at = next_line(p, at);
    if (at >= 0x80000000u) break;  // never, but the clock is read after the last load has arrived
    record(p, s, clock32() - t0);
  }
  if (p.stages > 0) red_release(line(p, 1), 1);
  sum_out(p, 0, at);
}

// ---- activations: written by all CTAs, read by all -------------------------------------------------------------------

TK_FN u32 activation_word(u32 epoch, u32 i) { return pattern(i) + epoch; }

// Every CTA writes its share of `bytes`, in 512-byte pieces dealt round the grid, and arrives.
TK_FN void write_share(const MicroParams& p, uint8_t* to, u32 epoch) {
  for (u32 piece = cta() + ncta() * warp(); piece * 512u < p.bytes; piece += ncta() * (kThreads / 32)) {
    const u32 o = piece * 512u + lane() * 16u, i = o / 4;
    stg128(to + o, u32x4{activation_word(epoch, i), activation_word(epoch, i + 1), activation_word(epoch, i + 2),
                         activation_word(epoch, i + 3)});
  }
  fence_proxy_async();
  cta_sync();
  if (warp() == 0) red_release(line(p, 0), 1);
}
TK_FN u32 wrong_words(const MicroParams& p, smem_t from, u32 epoch) {
  u32 bad = 0;
  for (u32 o = (warp() * 32 + lane()) * 16; o < p.bytes; o += kThreads * 16) {
    const u32x4 v = lds128(from + o);
    const u32 i = o / 4;
    bad += v.x != activation_word(epoch, i) || v.y != activation_word(epoch, i + 1) ||
           v.z != activation_word(epoch, i + 2) || v.w != activation_word(epoch, i + 3);
  }
  return bad;
}

TK_FN u32 turned(u32 o, u32 bytes) { return o < bytes ? o : o - bytes; }

template <bool kBulk>
TK_FN void activations(const MicroParams& p, smem_t sb, const Watch& w) {
  u32 bad = 0;
  const u32 copies = static_cast<u32>(p.bytes) / p.size;
  MICRO_ROLLED for (u32 s = 0; s < p.samples; s++) {
    const u32 epoch = s + 1;
    uint8_t* acts = p.work + (s & 1u) * p.bytes;
    write_share(p, acts, epoch);
    u32 t0 = 0;
    if (kBulk) {
      if (warp() == 0) {
        wait_ge(line(p, 0), epoch * ncta(), w);
        fence_proxy_async();
        syncwarp();
        if (elect()) {
          t0 = clock32();
          mbar_arrive_expect_tx(sb + kOwn, static_cast<u32>(p.bytes));
          // Start at different places, or all SMs queue for the same L2 slice.
          MICRO_ROLLED for (u32 i = 0; i < copies; i++) {
            const u32 k = (i + (p.a ? cta() : 0u)) % copies;
            bulk_g2s(sb + kRing + k * p.size, acts + k * p.size, p.size, sb + kOwn);
          }
        }
        syncwarp();
      }
      mbar_wait(sb + kOwn, s & 1u, w);
      if (first_thread()) record(p, s, clock32() - t0);
    } else {
      wait_ge(line(p, 0), epoch * ncta(), w);
      cta_sync();
      t0 = clock32();
      const u32 step = kThreads * 16u, bytes = static_cast<u32>(p.bytes);
      const u32 start = p.a ? cta() * 512u % bytes : 0u;
      MICRO_ROLLED for (u32 o = (warp() * 32 + lane()) * 16; o < bytes; o += 4 * step) {
        u32x4 v[4];
        TK_UNROLL for (u32 k = 0; k < 4; k++)
          if (o + k * step < bytes) v[k] = ldg128(acts + turned(o + k * step + start, bytes));
        TK_UNROLL for (u32 k = 0; k < 4; k++)
          if (o + k * step < bytes) sts128(sb + kRing + turned(o + k * step + start, bytes), v[k]);
      }
      cta_sync();
      if (first_thread()) record(p, s, clock32() - t0);
    }
    bad += wrong_words(p, sb + kRing, epoch);
    fence_proxy_async();
    cta_sync();
  }
  const u32 good = tk::ballot(bad == 0u);
  if (elect()) red_relaxed(p.sums + cta() * 8u, popc(good));
}

// ---- prefetch --------------------------------------------------------------------------------------------------------

TK_FN void prefetch(const MicroParams& p, smem_t sb, const Watch& w) {
  u32 bad = 0;
  MICRO_ROLLED for (u32 s = 0; s < p.samples; s++) {
    // All CTAs begin together, each with its own `size` bytes that nobody has touched yet.
    if (warp() == 0) {
      red_release(line(p, 0), 1);
      wait_ge(line(p, 0), (s + 1) * ncta(), w);
      syncwarp();
      const u64 at = (static_cast<u64>(s) * ncta() + cta()) * p.size;
      const u32 each = p.size / p.b;
      const uint8_t* from = p.data + p.offset + at;
      const u32 t0 = clock32();
      if (p.c) {
        MICRO_ROLLED for (u32 i = 0; i < p.b; i++) prefetch_l2(from + i * each, each);
      }
      u32 v = lane();
      MICRO_ROLLED for (u32 i = 0; i < p.a; i++) v = shfl_xor(v, 1);
      if (v > 31u) break;  // never, but the clock is read after the last exchange
      const u32 t1 = clock32();
      if (elect()) {
        mbar_arrive_expect_tx(sb + kOwn, p.size);
        MICRO_ROLLED for (u32 i = 0; i < p.b; i++) bulk_g2s(sb + kRing + i * each, from + i * each, each, sb + kOwn);
      }
      syncwarp();
      mbar_wait(sb + kOwn, s & 1u, w);
      const u32 t2 = clock32();
      for (u32 o = lane() * 16; o < p.size; o += 512) {
        const u32x4 x = lds128(sb + kRing + o);
        bad += x.x != word_at(p, at + o) || x.w != word_at(p, at + o + 12);
      }
      fence_proxy_async();
      syncwarp();
      // times: delay in the first half of the samples' row, load in the second.
      if (elect()) {
        stg32(p.times + (cta() * 2u) * p.samples + s, t1 - t0);
        stg32(p.times + (cta() * 2u + 1u) * p.samples + s, t2 - t1);
      }
    }
  }
  if (warp() == 0) {
    const u32 good = tk::ballot(bad == 0u);
    if (elect()) sum_out(p, 0, popc(good));
  }
}
}  // namespace copy
}  // namespace micro

TK_KERNEL(micro_copy, micro::copy::kThreads)(TK_GRID_CONST MicroParams p) {
  using namespace micro;
  using namespace micro::copy;
  const smem_t sb = smem_base();
  smem_region("barriers", sb, 1024);
  const bool ring = p.mode == kStream || ((p.mode == kLatency || p.mode == kChase) && cta() != 0 && p.stages > 0);
  if (ring) {
    const u32 bytes = p.mode == kStream ? p.size : p.c;
    for (u32 i = 0; i < p.stages; i++) smem_region("stage", sb + kRing + i * bytes, bytes);
  } else if (p.mode == kActivations || p.mode == kStaged) {
    smem_region("activations", sb + kRing, static_cast<u32>(p.bytes));
  } else if (p.mode == kLatency || p.mode == kPrefetch) {
    smem_region("landing", sb + kRing, p.size);
  }
  name_role(1, "measured");
  const Watch w{p.status, 1, p.mode, 0, 0};
  if (warp() == 0) {
    for (u32 i = 0; i < p.stages; i++) {
      mbar_init(sb + kFull + 8 * i, 1);
      mbar_init(sb + kEmpty + 8 * i, kConsumers);
    }
    mbar_init(sb + kOwn, 1);
    fence_mbar_init();
  }
  cta_sync();
  span_out(p, 0);
  switch (p.mode) {
    case kFill: fill(p); break;
    case kLatency: latency(p, sb, w); break;
    case kStream: stream(p, sb, w); break;
    case kActivations: activations<true>(p, sb, w); break;
    case kStaged: activations<false>(p, sb, w); break;
    case kPrefetch: prefetch(p, sb, w); break;
    case kChase: chase(p, sb, w); break;
  }
  cta_sync();
  span_out(p, 1);
}
TK_EMU_ENTRY(micro_copy, MicroParams)
