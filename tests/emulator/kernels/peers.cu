// Ranks that talk to each other: an all-reduce through data-as-flag words, and a token that goes round through
// counters. One warp per CTA; every lane owns words cta * 32 + lane.
#include "tk_prim.cuh"

using namespace tk;
constexpr u32 kMaxRanks = 4, kWords = 2 * 32;

struct PeersParams {
  uint32_t* slots[kMaxRanks];     // of each rank: [2 buffers][ranks][words], filled with poison
  uint64_t* wide[kMaxRanks];      // the same in 64-bit words
  uint32_t* counters[kMaxRanks];  // of each rank: [2], 128 bytes apart, all starting at `base`
  uint32_t* values[kMaxRanks];    // of each rank: [32]
  uint32_t* out;                  // [epochs][words]
  uint32_t* status;
  uint32_t rank, ranks, epochs, mode, base, pad;
};

TK_FN u32 term(u32 rank, u32 epoch, u32 word) { return rank * 1000003u + epoch * 101u + word; }

// y = sum over ranks, in rank order: pushes to every peer (and to itself), takes every rank's word, poisons it again.
// The fence closes what this lane took and poisoned in the epoch before, ahead of its next pushes.
TK_FN void all_reduce(const PeersParams& p, Watch w) {
  const u32 word = cta() * 32 + lane();
  for (u32 e = 0; e < p.epochs; e++) {
    w.layer = e;
    const u32 base = e % 2 * p.ranks;
    fence<Scope::kSys>();
    for (u32 r = 0; r < p.ranks; r++) {
      push_word<Scope::kSys>(p.slots[r] + (base + p.rank) * kWords + word, term(p.rank, e, word));
      push_word<Scope::kSys>(p.wide[r] + (base + p.rank) * kWords + word, static_cast<u64>(term(p.rank, e, word)) << 20);
    }
    u32 sum = 0;
    for (u32 r = 0; r < p.ranks; r++) {
      w.item = r;
      u32* mine = p.slots[p.rank] + (base + r) * kWords + word;
      u64* wide = p.wide[p.rank] + (base + r) * kWords + word;
      sum += poll_word<Scope::kSys>(mine, kFlagPoison, w);
      sum += static_cast<u32>(poll_word<Scope::kSys>(wide, kFlagPoison64, w) >> 20);
      poison_word(mine, kFlagPoison);
      poison_word(wide, kFlagPoison64);
    }
    stg32(p.out + e * kWords + word, sum);
  }
}

// Rank after rank adds to the values and hands them to the next; the last hands them to rank 0.
TK_FN void pass_between_ranks(const PeersParams& p, Watch w) {
  const u32 next = (p.rank + 1) % p.ranks;
  if (cta() != 0) return;
  for (u32 e = 0; e < p.epochs; e++) {
    w.layer = e;
    wait_ge<Scope::kSys>(p.counters[p.rank], p.base + e + (p.rank == 0 ? 0u : 1u), w);
    syncwarp();
    const u32 v = ldg32(p.values[p.rank] + lane()) + term(p.rank, e, lane());
    stg32(p.values[next] + lane(), v);
    syncwarp();
    red_release<Scope::kSys>(p.counters[next], 1);
    stg32(p.out + e * kWords + lane(), v);
  }
}

// CTA 0 produces for CTA 1 of the same rank, with a relaxed wait and signal between fences.
TK_FN void pass_between_ctas(const PeersParams& p, Watch w) {
  for (u32 e = 0; e < p.epochs; e++) {
    w.layer = e;
    if (cta() == 0) {
      wait_ge_relaxed<Scope::kGpu>(p.counters[p.rank] + 32, p.base + e, w);
      fence<Scope::kGpu>();
      syncwarp();
      stg32(p.values[p.rank] + lane(), term(p.rank, e, lane()));
      syncwarp();
      red_release<Scope::kGpu>(p.counters[p.rank], 1);
    } else {
      wait_ge<Scope::kGpu>(p.counters[p.rank], p.base + e + 1, w);
      syncwarp();
      stg32(p.out + e * kWords + lane(), ldg32(p.values[p.rank] + lane()));
      syncwarp();
      fence<Scope::kGpu>();
      red_relaxed<Scope::kGpu>(p.counters[p.rank] + 32, 1);
    }
  }
}

TK_KERNEL(peers_kernel, 32)(TK_GRID_CONST PeersParams p) {
  name_role(2, "exchanger");
  name_op(6, "all-reduce");
  const Watch w{p.status, 2, 6, 0, 0};
  if (p.mode == 0) all_reduce(p, w);
  if (p.mode == 1) pass_between_ranks(p, w);
  if (p.mode == 2) pass_between_ctas(p, w);
}
TK_EMU_ENTRY(peers_kernel, PeersParams)
