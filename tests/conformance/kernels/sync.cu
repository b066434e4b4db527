// Barriers, counters and bulk copies among eight warps and several CTAs. Blocks of 1024 words travel from `in` through
// the primitive under test to `out`: out[i] = in[i] * 5 + i.
#include "conformance.h"

using namespace tk;

constexpr u32 kThreads = 256, kBlock = 1024, kStages = 2;
constexpr u32 kFull = 0, kEmpty = 32, kOutFull = 64, kData = 1024, kOut = kData + kStages * kBlock * 4;

TK_FN u32 change(u32 v, u32 i) { return v * 5u + i; }

// Warp 0 loads, warps 4-7 compute, warp 1 stores: a ring of two stages on mbarriers, bulk copies both ways.
TK_FN void ring(const ConformanceParams& p, bool bulk) {
  const smem_t sb = smem_base();
  const u32 wp = warp(), l = lane(), blocks = p.n / kBlock;
  const Watch w{p.status, wp, p.op, 0, 0};
  u32 k = 0;
  for (u32 b = cta(); b < blocks; b += ncta(), k++) {
    const u32 s = k % kStages, phase = (k / kStages) & 1u;
    const smem_t data = sb + kData + s * kBlock * 4, result = sb + kOut + s * kBlock * 4;
    if (wp == 0) {
      mbar_wait(sb + kEmpty + 8 * s, phase ^ 1u, w);
      syncwarp();
      if (bulk) {
        mbar_arrive_expect_tx(sb + kFull + 8 * s, kBlock * 4);
        bulk_g2s(data, p.in + 4 * kBlock * b, kBlock * 2, sb + kFull + 8 * s);
        bulk_g2s_hint(data + kBlock * 2, p.in + 4 * kBlock * b + 2 * kBlock, kBlock * 2, sb + kFull + 8 * s, l2_evict_first());
      } else {
        for (u32 i = l; i < kBlock; i += 32) sts32(data + 4 * i, ldg_nc32(p.in + 4 * (kBlock * b + i)));
        syncwarp();
        mbar_arrive(sb + kFull + 8 * s);
      }
    } else if (wp >= 4) {
      mbar_wait(sb + kFull + 8 * s, phase, w);
      syncwarp();
      for (u32 i = (wp - 4) * 32 + l; i < kBlock; i += 128) sts32(result + 4 * i, change(lds32(data + 4 * i), kBlock * b + i));
      fence_proxy_async();
      syncwarp();
      mbar_arrive(sb + kOutFull + 8 * s);
    } else if (wp == 1) {
      mbar_wait(sb + kOutFull + 8 * s, phase, w);
      syncwarp();
      fence_proxy_async();
      if (bulk) {
        bulk_s2g(p.out + 4 * kBlock * b, result, kBlock * 4);
        bulk_commit();
        if (k & 1u) bulk_wait<0>(); else bulk_wait_read<0>();
      } else {
        for (u32 i = l; i < kBlock; i += 32) stg32(p.out + 4 * (kBlock * b + i), lds32(result + 4 * i));
      }
      syncwarp();
      mbar_arrive(sb + kEmpty + 8 * s);
    }
  }
  if (wp == 1) bulk_wait<0>();
}

// Warps 0-3 fill, warps 4-7 drain, handing over on named barriers 1 (full) and 2 (empty).
TK_FN void named(const ConformanceParams& p) {
  const smem_t data = smem_base() + kData;
  const u32 blocks = p.n / kBlock, mine = (warp() & 3u) * 32 + lane();
  for (u32 b = cta(); b < blocks; b += ncta()) {
    if (warp() < 4) {
      if (b != cta()) bar_sync(2, kThreads);
      for (u32 i = mine; i < kBlock; i += 128) sts32(data + 4 * i, ldg_nc32(p.in + 4 * (kBlock * b + i)));
      bar_arrive(1, kThreads);
    } else {
      bar_sync(1, kThreads);
      for (u32 i = mine; i < kBlock; i += 128) {
        const u32 from = i ^ 33u;  // another thread's
        stg32(p.out + 4 * (kBlock * b + from), change(lds32(data + 4 * from), kBlock * b + from));
      }
      if (b + ncta() < blocks) bar_arrive(2, kThreads);
    }
  }
}

// Every thread writes, cta_sync or syncwarp, every thread reads another's word.
TK_FN void exchange(const ConformanceParams& p, bool whole_cta) {
  const smem_t data = smem_base() + kData;
  const u32 t = warp() * 32 + lane(), partner = whole_cta ? t ^ 0xe5u : t ^ 0x05u;
  for (u32 i = cta() * kThreads; i < p.n; i += ncta() * kThreads) {
    sts32(data + 4 * t, ldg_nc32(p.in + 4 * (i + t)));
    if (whole_cta) cta_sync(); else syncwarp();
    stg32(p.out + 4 * (i + partner), change(lds32(data + 4 * partner), i + partner));
    if (whole_cta) cta_sync(); else syncwarp();
  }
}

// CTA c adds to what CTA c-1 left: a chain through global memory, one counter a CTA (128 bytes apart in work).
TK_FN void chain(const ConformanceParams& p) {
  const u32 c = cta(), kind = p.arg[0], words = p.n / ncta();
  const Watch w{p.status, 0, p.op, 0, c};
  u32* counter = reinterpret_cast<u32*>(p.work) + 32 * c;
  uint8_t* from = p.work + 8192 + 4 * words * (c - 1);
  if (warp() == 0) {
    if (c > 0) {
      // The counters start at 0x80000000.
      if (kind == 5) {
        wait_ge<Scope::kSys>(counter - 32, 0x80000001u, w);
      } else if (kind == 6) {
        wait_ge_relaxed(counter - 32, 0x80000001u, w);
        fence<Scope::kGpu>();
      } else if (kind == 7) {
        wait_ge_relaxed<Scope::kSys>(counter - 32, 0x80000001u, w);
        fence<Scope::kSys>();
      } else {
        wait_ge(counter - 32, 0x80000001u, w);
      }
      syncwarp();
    }
    for (u32 i = lane(); i < words; i += 32) {
      const u32 before = c > 0 ? ldg32(from + 4 * i) : 0u;
      const u32 v = change(ldg_nc32(p.in + 4 * (c * words + i)), c * words + i);
      stg32(p.out + 4 * (c * words + i), v);
      stg32(p.work + 8192 + 4 * (words * c + i), before + v);
    }
    if (kind == 2) fence_gpu();
    syncwarp();
    if (kind == 0) red_release(counter, 1);
    if (kind == 1 && elect()) st_release(counter, ldg32(counter) + 1u);
    if (kind == 2) {
      fence_gpu();
      red_relaxed(counter, 1);
    }
    if (kind == 3) atom_add_acqrel(counter, 1);
    if (kind == 5) red_release<Scope::kSys>(counter, 1);
    if (kind == 6) {
      fence<Scope::kGpu>();
      st_relaxed(counter, 0x80000001u);
      if (elect()) stg32(p.work + 4 * (32 * c + 1), ld_relaxed(counter));
    }
    if (kind == 7) {
      fence<Scope::kSys>();
      red_relaxed<Scope::kSys>(counter, 1);
    }
    if (kind == 4) {
      nanosleep(100);
      red_release(counter, 1);
      if (elect()) stg32(p.work + 4 * (32 * c + 1), ld_acquire(counter));
    }
  }
}

// CTA c polls its inbox in work, adds its own word, pushes the sum to CTA c+1, and poisons its inbox again. kBatch > 0: a
// lane polls that many words, all it has, together.
template <Scope S, class Word, u32 kBatch = 0>
TK_FN void pass_words(const ConformanceParams& p, Word poison, bool first) {
  const u32 c = cta(), words = p.n / ncta();
  const Watch w{p.status, 0, p.op, 0, c};
  Word* inbox = reinterpret_cast<Word*>(p.work + 4 * words * c);
  Word* next = reinterpret_cast<Word*>(p.work + 4 * words * (c + 1));
  Word taken[kBatch > 0 ? kBatch : 1];
  if constexpr (kBatch > 0) {
    if (!first) poll_words<S, kBatch>([&](u32 i) { return inbox + lane() + 32 * i; }, poison, w, taken);
  }
#pragma unroll
  for (u32 turn = 0; turn < (kBatch > 0 ? kBatch : 4 * words / (32 * sizeof(Word))); turn++) {
    const u32 i = lane() + 32 * turn;
    Word sum = 0;
    for (u32 part = 0; part < sizeof(Word) / 4; part++) {
      const u32 j = c * words + i * (static_cast<u32>(sizeof(Word)) / 4) + part;
      sum |= static_cast<Word>(change(ldg_nc32(p.in + 4 * j), j)) << (32 * part);
    }
    if constexpr (kBatch > 0) {
      if (!first) sum += taken[turn];
    } else {
      if (!first) sum += poll_word<S>(inbox + i, poison, w);
    }
    if (c + 1 < ncta()) push_word<S>(next + i, sum);
    if (!first) poison_word(inbox + i, poison);
    for (u32 part = 0; part < sizeof(Word) / 4; part++)
      stg32(p.out + 4 * (c * words + i * (static_cast<u32>(sizeof(Word)) / 4) + part), static_cast<u32>(sum >> (32 * part)));
  }
}

// Warp 0 writes, warp 1 reads, by a counter at CTA scope.
TK_FN void within_cta(const ConformanceParams& p) {
  const Watch w{p.status, 0, p.op, 0, cta()};
  u32* counter = reinterpret_cast<u32*>(p.work) + 32 * cta();
  uint8_t* data = p.work + 8192;
  const u32 words = p.n / ncta(), start = cta() * words;
  if (warp() == 0) {
    for (u32 i = lane(); i < words; i += 32) stg32(data + 4 * (start + i), change(ldg_nc32(p.in + 4 * (start + i)), start + i));
    syncwarp();
    red_release<Scope::kCta>(counter, 1);
  } else if (warp() == 1) {
    wait_ge<Scope::kCta>(counter, 0x80000001u, w);
    syncwarp();
    for (u32 i = lane(); i < words; i += 32) stg32(p.out + 4 * (start + i), ldg32(data + 4 * (start + i)));
  }
}

// Two warpgroups change their register budgets and go on computing.
TK_FN void registers(const ConformanceParams& p) {
  if (warp() < 4) setmaxnreg_dec<40>(); else setmaxnreg_inc<232>();
  for (u32 i = cta() * kThreads + warp() * 32 + lane(); i < p.n; i += ncta() * kThreads)
    stg32(p.out + 4 * i, change(ldg_nc32(p.in + 4 * i), i));
}

TK_KERNEL(conformance_sync, 256)(TK_GRID_CONST ConformanceParams p) {
  const smem_t sb = smem_base();
  smem_region("bars", sb, kData);
  smem_region("data", sb + kData, kStages * kBlock * 4);
  smem_region("results", sb + kOut, kStages * kBlock * 4);
  if (p.op < 2 && warp() == 0) {
    for (u32 i = 0; i < kStages; i++) {
      mbar_init(sb + kFull + 8 * i, 1);
      mbar_init(sb + kEmpty + 8 * i, 1);
      mbar_init(sb + kOutFull + 8 * i, 4);
      mbar_name(sb + kFull + 8 * i, "full", i);
      mbar_name(sb + kEmpty + 8 * i, "empty", i);
      mbar_name(sb + kOutFull + 8 * i, "out full", i);
    }
    fence_mbar_init();
  }
  if (p.op < 2) cta_sync();
  switch (p.op) {
    case 0: ring(p, false); break;
    case 1: prefetch_l2(p.in, 4096); ring(p, true); break;
    case 2: named(p); break;
    case 3: exchange(p, true); break;
    case 4: exchange(p, false); break;
    case 5: chain(p); break;
    case 7: if (warp() == 0) pass_words<Scope::kGpu, u32>(p, 0x7fffdeadu, cta() == 0); break;
    case 8: if (warp() == 0) pass_words<Scope::kSys, u64>(p, 0x7fffdead7fffdeadull, cta() == 0); break;
    case 9: within_cta(p); break;
    case 10: if (warp() == 0) pass_words<Scope::kGpu, u32, 4>(p, 0x7fffdeadu, cta() == 0); break;
    case 11: if (warp() == 0) pass_words<Scope::kSys, u64, 2>(p, 0x7fffdead7fffdeadull, cta() == 0); break;
    default: registers(p); break;
  }
}
TK_EMU_ENTRY(conformance_sync, ConformanceParams)
