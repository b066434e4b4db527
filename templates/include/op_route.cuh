// Routing, recomputed by every CTA from the router's logits (12 KB at full size) instead of being exchanged: top-k of every
// row, then the ascending list of distinct experts with each row's weight, in shared memory. Consumer warps share the rows,
// with the activation warps where there are fewer of them than rows; one activation warp builds the list; loader, consumers and store warp wait for it; all release it after
// the down projection.
//
// R (emitted): kExperts kTopK kSplits kPitch kLogits kRoutes kScaling kNormTopK kWords and topk(logits, bias, lane, ids,
//   weights); with kWords, the logits are words that are their own flags: kPollBytes (of a slot) kPolls (a step)
#pragma once
#include "op_common.cuh"

namespace tilecc {
template <class C, class R>
struct Route {
  using Cx = Ctx<C>;
  using S = typename Cx::S;
  static constexpr u32 kPerLane = (R::kExperts + 31) / 32;
  static constexpr u32 kSelecting = C::kActWarps + C::kConsumerWarps;
  static constexpr u32 kHelpers = C::kConsumerWarps < kRows ? C::kActWarps : 0;
  static_assert(kRows * R::kTopK <= kSelections, "the active list holds rows * top-k experts");
  static_assert(R::kSplits < kMaxStarts, "the routing record holds the start of every split");

  static TK_FN void loader(Cx& c, const OpRow&) { wait(c); }
  static TK_FN void consumer(Cx& c, const OpRow& r) {
    tk::bar_sync(3, kSelecting * 32);  // the logits are there, and the record of the layer before is free
    select_rows(c, r, kHelpers + c.warp);
    tk::bar_sync(3, kSelecting * 32);
    wait(c);
  }
  static TK_FN void store(Cx& c, const OpRow&) { wait(c); }
  static TK_FN void wait(Cx& c) {
    tk::mbar_wait(c.r_full(), c.route_phase, c.watch);
    c.route_phase ^= 1;
  }

  static TK_FN void activations(Cx& c, const OpRow& r) {
    c.wait_inputs(r);
    tk::mbar_wait(c.r_empty(), c.route_phase ^ 1, c.watch);
    c.route_phase ^= 1;
    tk::bar_sync(3, kSelecting * 32);
    if constexpr (kHelpers > 0) select_rows(c, r, c.warp);
    tk::bar_sync(3, kSelecting * 32);
    if (c.warp == 0) {
      build_list(c);
      tk::syncwarp();
      tk::mbar_arrive(c.r_full());
    }
    tk::bar_sync(1, C::kActWarps * 32);
  }

  static TK_FN void select_rows(const Cx& c, const OpRow& r, u32 first) {
    TILECC_ROLLED
    for (u32 n = first; n < c.n_rows; n += kHelpers + C::kConsumerWarps) select(c, r, n);
  }

  static TK_FN void select(const Cx& c, const OpRow& r, u32 n) {
    float logits[kPerLane], bias[kPerLane], weights[R::kTopK];
    int ids[R::kTopK];
    if constexpr (R::kWords) take_logits(c, r, n, logits);
    TK_UNROLL
    for (u32 i = 0; i < kPerLane; ++i) {
      const u32 e = i * 32 + c.lane;
      if constexpr (!R::kWords) logits[i] = e < R::kExperts ? tk::ldg_f32(c.p.workspace + R::kLogits + (n * R::kPitch + e) * 4) : 0.f;
      bias[i] = e < R::kExperts ? tk::ldg_nc_f32(c.image(r.aux) + e * 4) : 0.f;
    }
    R::topk(logits, bias, static_cast<int>(c.lane), ids, weights);
    if (c.lane == 0) {
      TK_UNROLL
      for (u32 k = 0; k < R::kTopK; ++k) {
        tk::sts32(c.route() + S::kRouteSelIds + (n * R::kTopK + k) * 4, static_cast<u32>(ids[k]));
        tk::sts_f32(c.route() + S::kRouteSelWeights + (n * R::kTopK + k) * 4, weights[k]);
        // One CTA leaves its choice for the host: which experts a step used (comparisons, statistics).
        if (c.cta == 0) tk::stg32(c.p.workspace + R::kRoutes + ((r.layer * kRows + n) * R::kTopK + k) * 4, static_cast<u32>(ids[k]));
      }
    }
  }

  static TK_FN void take_logits(const Cx& c, const OpRow& r, u32 n, float (&logits)[kPerLane]) {
    constexpr u32 kWhole = R::kExperts / 32;
    const u32* from = reinterpret_cast<const u32*>(c.p.workspace + R::kLogits + c.slot(R::kPolls, r.polled) * R::kPollBytes) + n * R::kPitch + c.lane;
    if constexpr (kWhole > 0) {
      u32 v[kWhole];
      tk::poll_words<tk::Scope::kGpu, kWhole>([&](u32 i) { return from + i * 32; }, tk::kFlagPoison, c.watch, v);
      TK_UNROLL
      for (u32 i = 0; i < kWhole; ++i) logits[i] = tk::u2f(v[i]);
    }
    if constexpr (kPerLane > kWhole) {
      logits[kWhole] = 0.f;
      if (kWhole * 32 + c.lane < R::kExperts) logits[kWhole] = tk::u2f(tk::poll_word<tk::Scope::kGpu>(from + kWhole * 32, tk::kFlagPoison, c.watch));
    }
  }

  // Lane l keeps the membership bits of experts 32 l .. 32 l + 31; prefix sums of their counts give each expert's slot.
  static TK_FN void build_list(const Cx& c) {
    static_assert(R::kExperts <= 1024, "one membership word per lane");
    const u32 n = c.n_rows * R::kTopK;
    u32 mask = 0;
    TILECC_ROLLED
    for (u32 i = 0; i < n; ++i) {
      const u32 e = tk::lds32(c.route() + S::kRouteSelIds + i * 4);
      if (e / 32 == c.lane) mask |= 1u << (e % 32);
    }
    const u32 count = tk::popc(mask);
    u32 before = count;
    TK_UNROLL
    for (u32 m = 1; m < 32; m *= 2) {
      const u32 v = tk::shfl_up(before, m);
      if (c.lane >= m) before += v;
    }
    const u32 active = tk::shfl_idx(before, 31);
    before -= count;
    if constexpr (S::kRouteDense) {
      TILECC_ROLLED
      for (u32 i = c.lane; i < active * kRows; i += 32) tk::sts32(c.route() + S::kRouteWeights + i * 4, 0);
    }
    u32 slot = before;
    TILECC_ROLLED
    for (u32 bits = mask; bits != 0; bits &= bits - 1) {
      const u32 lowest = tk::popc((bits & (0u - bits)) - 1);
      tk::sts32(c.route() + S::kRouteIds + 4 * slot, c.lane * 32 + lowest);
      ++slot;
    }
    if constexpr (!S::kRouteDense) list_rows(c, mask, before, count);
    tk::syncwarp();
    TILECC_ROLLED
    for (u32 first = 0; first < n; first += 32) {
      const u32 i = first + c.lane;
      const u32 e = i < n ? tk::lds32(c.route() + S::kRouteSelIds + i * 4) : 0;
      const u32 word = tk::shfl_idx(mask, e / 32), base = tk::shfl_idx(before, e / 32);
      if (i < n) {
        const u32 at = base + tk::popc(word & ((1u << (e % 32)) - 1)), row = i / R::kTopK;
        const u32 place = S::kRouteDense ? at * kRows + row : place_of(c, at, row);
        tk::sts32(c.route() + S::kRouteWeights + place * 4, tk::lds32(c.route() + S::kRouteSelWeights + i * 4));
      }
    }
    // Split i of the down projection owns the expert ids from i * kExperts / kSplits on.
    const u32 bound = c.lane * R::kExperts / R::kSplits, at = bound / 32 < 32 ? bound / 32 : 31;
    const u32 below = tk::shfl_idx(mask, at) & ((1u << (bound % 32)) - 1), base = tk::shfl_idx(before, at);
    if (c.lane <= R::kSplits) tk::sts32(c.route() + S::kRouteStarts + 4 * c.lane, c.lane == R::kSplits ? active : base + tk::popc(below));
    if (c.lane == 0) tk::sts32(c.route(), active);
  }

  // Masks of the rows of every slot and where their weights begin. A lane owns the slots of its 32 experts.
  static TK_FN void list_rows(const Cx& c, u32 mask, u32 before, u32 count) {
    TILECC_ROLLED
    for (u32 i = 0; i < count; ++i) tk::sts64(c.route() + S::kRouteMasks + (before + i) * 8, tk::u32x2{0, 0});
    const u32 n = c.n_rows * R::kTopK;
    u32 mine = 0;  // rows of all its slots
    TILECC_ROLLED
    for (u32 i = 0; i < n; ++i) {
      const u32 e = tk::lds32(c.route() + S::kRouteSelIds + i * 4), row = i / R::kTopK;
      if (e / 32 != c.lane) continue;
      const smem_t word = c.route() + S::kRouteMasks + (before + tk::popc(mask & ((1u << (e % 32)) - 1))) * 8 + row / 32 * 4;
      tk::sts32(word, tk::lds32(word) | 1u << (row % 32));
      ++mine;
    }
    u32 first = mine;
    TK_UNROLL
    for (u32 m = 1; m < 32; m *= 2) {
      const u32 v = tk::shfl_up(first, m);
      if (c.lane >= m) first += v;
    }
    first -= mine;
    TILECC_ROLLED
    for (u32 i = 0; i < count; ++i) {
      const tk::u32x2 rows = tk::lds64(c.route() + S::kRouteMasks + (before + i) * 8);
      tk::sts32(c.route() + S::kRouteFirst + (before + i) * 4, first);
      first += tk::popc(rows.x) + tk::popc(rows.y);
    }
  }
  // Place of a row's weight in the list.
  static TK_FN u32 place_of(const Cx& c, u32 slot, u32 row) {
    const tk::u32x2 rows = tk::lds64(c.route() + S::kRouteMasks + slot * 8);
    const u32 below = (1u << (row % 32)) - 1;
    const u32 before = row < 32 ? tk::popc(rows.x & below) : tk::popc(rows.x) + tk::popc(rows.y & below);
    return tk::lds32(c.route() + S::kRouteFirst + slot * 4) + before;
  }
};
}  // namespace tilecc
