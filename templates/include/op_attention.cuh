// Attention of a sliding layer. One m16 tile holds the query heads of one token row that share a KV head, and the consumer
// warps share the work of one (row, KV head): first each takes every kConsumerWarps-th block of keys, then, with the
// probabilities of all blocks in shared memory, each takes every kConsumerWarps-th pair of value tiles. So nothing has to
// be merged, and a window that fits one round never rescales.
//
//   loader        nothing
//   activations   keys that were there before this step, before the step's own keys are known; then queries, keys, values
//   consumers     S = Q K^T | maximum over warps | P, sums | O = P V, sink, output
//   store         signals
//
// Attn (emitted): kHeads kKvHeads kHeadSteps kValueDim kWindow kTurns kSink kScale kQueries kOut kRotation kCounter Kv,
//   and merge(m, d, sink, scale) for one partial.
#pragma once
#include "attn_common.cuh"

namespace tilecc {
template <class C, class Attn>
struct WindowAttention {
  using Cx = Ctx<C>;
  using Kv = typename Attn::Kv;
  static constexpr u32 kGroup = Attn::kHeads / Attn::kKvHeads;
  static constexpr u32 kQueryBytes = Attn::kHeadSteps * 512;
  static constexpr u32 kWarps = C::kConsumerWarps;
  static constexpr u32 kRound = Attn::kTurns * kWarps;              // blocks that share one maximum
  static constexpr u32 kMaxBlocks = (Attn::kWindow + 14) / 16 + 1;   // that a window can touch
  static constexpr u32 kOwnPairs = (Kv::kValuePairs + kWarps - 1) / kWarps;
  // Exchange slot: probabilities [block][low, high][lane][4], then maxima and sums [warp][head].
  static constexpr u32 kMaxima = kRound * 1024, kSums = kMaxima + kWarps * 64;
  static_assert(Attn::kWindow > 0 && kGroup <= 16, "the query heads of one KV head fill at most one m16 tile");
  static_assert(kSums + kWarps * 64 <= C::kXSlotBytes, "an exchange slot holds the probabilities of a round");
  // Between rounds only the ring holds a fast warp back from the probabilities that a slow one still reads.
  static_assert(kMaxBlocks <= kRound || C::kASlots <= kRound, "no warp is a whole round ahead of another");
  static_assert(Kv::kKeyBytes <= C::kASlotBytes && Kv::kValueBytes <= C::kASlotBytes && kQueryBytes <= C::kASlotBytes,
                "an activation slot holds the keys of a block, its values, or a row's queries");

  struct Item {
    u32 row, head, position, first, last;  // first, last: blocks of 16 positions
    int32_t seq;
    u32 early;  // slots that hold keys before the queries come
  };
  static TK_FN u32 n_tasks(const Cx& c) { return c.n_rows * Attn::kKvHeads; }
  static TK_FN u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
  static TK_FN Item item(const Cx& c, u32 q) {
    Item i;
    i.head = q % Attn::kKvHeads;
    i.row = q / Attn::kKvHeads;
    const tilecc_row row = tk::ld_uniform(c.row(i.row));
    i.position = row.position;
    i.seq = row.seq;
    i.last = i.position / 16;
    i.first = i.position >= Attn::kWindow ? (i.position - Attn::kWindow + 1) / 16 : 0;
    // The rows of a sequence lie within kRows positions, so blocks that end before position - (kRows - 1) are not written
    // by this step.
    const u32 old = (i.position >= kRows - 1 ? i.position - (kRows - 1) : 0) / 16;
    i.early = min_u32(old > i.first ? old - i.first : 0, min_u32(kRound, C::kASlots - 1));
    return i;
  }

  static TK_FN void loader(Cx&, const OpRow&) {}

  // ---- activations --------------------------------------------------------------------------------------------------
  static TK_FN void activations(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Attn::kRotation);
    if (q >= n) return;
    wait_previous_step(c, r);
    bool waited = false;
    TILECC_ROLLED
    for (; q < n; q += c.ncta) {
      const Item i = item(c, q);
      c.watch.item = q;
      TILECC_ROLLED
      for (u32 b = 0; b < i.early; ++b) keys(c, r, i, i.first + b);
      if (!waited) {
        // What does not fit the ring yet comes as far as the L2 cache while the queries are being computed.
        if (c.warp == 0) {
          TILECC_ROLLED
          for (u32 b = i.first; b < i.first + i.early; ++b) tk::prefetch_l2(Kv::block(c, r, i.seq, i.head, b) + Kv::kKeyBytes, Kv::kValueBytes);
        }
        c.wait_inputs(r);
        waited = true;
      }
      fill_slot(c, c.p.workspace + Attn::kQueries + (i.row * Attn::kKvHeads + i.head) * kQueryBytes, kQueryBytes);
      TILECC_ROLLED
      for (u32 b0 = i.first; b0 <= i.last; b0 += kRound) {
        const u32 end = min_u32(b0 + kRound, i.last + 1);
        TILECC_ROLLED
        for (u32 b = b0 == i.first ? b0 + i.early : b0; b < end; ++b) keys(c, r, i, b);
        TILECC_ROLLED
        for (u32 b = b0; b < end; ++b) fill_slot(c, Kv::block(c, r, i.seq, i.head, b) + Kv::kKeyBytes, Kv::kValueBytes);
      }
    }
  }
  static TK_FN void keys(Cx& c, const OpRow& r, const Item& i, u32 b) { fill_slot(c, Kv::block(c, r, i.seq, i.head, b), Kv::kKeyBytes); }
  // Everything this op waits for, as of one step ago: then the cache holds what earlier steps appended.
  static TK_FN void wait_previous_step(Cx& c, const OpRow& r) {
    TILECC_ROLLED
    for (u32 w = 0; w < r.n_waits; ++w) {
      const Wait& wait = w == 0 ? r.waits[0] : w == 1 ? r.waits[1] : r.waits[2];
      tk::wait_ge(c.counter(wait.counter), c.target(wait) - c.ncta * wait.per_step, c.watch);
    }
    tk::fence_proxy_async();
    tk::syncwarp();
  }

  // ---- consumers ----------------------------------------------------------------------------------------------------
  struct Running {
    float top[2], sum[2];  // of heads g and g + 8: maximum so far, sum of e^(s - top) over all warps
    float o[kOwnPairs][2][4];
  };

  static TK_FN void consumer(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    TILECC_ROLLED
    for (u32 q = first_task(c, Attn::kRotation); q < n; q += c.ncta) {
      const Item i = item(c, q);
      c.watch.item = q;
      Query<Attn::kHeadSteps> query;
      take_query(c, i, query);
      Running run;
      TK_UNROLL
      for (u32 h = 0; h < 2; ++h) run.top[h] = kNegInf, run.sum[h] = 0.f;
      TK_UNROLL
      for (u32 p = 0; p < kOwnPairs; ++p) {
        TK_UNROLL
        for (u32 j = 0; j < 8; ++j) run.o[p][j / 4][j % 4] = 0.f;
      }
      tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);
      TILECC_ROLLED
      for (u32 b0 = i.first; b0 <= i.last; b0 += kRound) {
        const u32 end = min_u32(b0 + kRound, i.last + 1);
        const bool skip = b0 == i.first;
        round(c, i, query, run, b0, end, skip ? i.early : kRound + 1);
      }
      output(c, r, i, run);
      tk::fence_proxy_async();
      tk::syncwarp();
      tk::mbar_arrive(c.x_full(c.x.slot));
      c.x.template advance<C::kXSlots>();
    }
  }

  // The queries come after `early` blocks of keys, but are needed first: their slot is taken out of turn, and passed over
  // when the ring gets there.
  static TK_FN void take_query(Cx& c, const Item& i, Query<Attn::kHeadSteps>& query) {
    Ring at = c.a;
    at.slot += i.early;
    if (at.slot >= C::kASlots) at.slot -= C::kASlots, at.phase ^= 1;
    tk::mbar_wait(c.a_full(at.slot), at.phase, c.watch);
    query.load(c.act(at.slot), c.lane);
    tk::syncwarp();
    tk::mbar_arrive(c.a_empty(at.slot));
  }

  // Blocks [b0, end). The slot of the queries lies before block b0 + query_at.
  static TK_FN void round(Cx& c, const Item& i, const Query<Attn::kHeadSteps>& query, Running& run, u32 b0, u32 end, u32 query_at) {
    const smem_t slot = c.exchange(c.x.slot);
    float local[2] = {kNegInf, kNegInf};
    TILECC_ROLLED
    for (u32 b = b0, w = 0; b < end; ++b) {
      if (b - b0 == query_at) c.a.template advance<C::kASlots>();
      tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
      if (w == c.warp) {
        float s[2][4];
        query.template scores<Kv>(c.act(c.a.slot), c.lane, s);
        Visible<Attn::kWindow>(b * 16, i.position, c.lane).scale(Attn::kScale, s);
        // Scores wait for the maximum where the probabilities will be; every lane reads back its own.
        put(slot + (b - b0) * 1024, c.lane, s);
        TK_UNROLL
        for (u32 h = 0; h < 2; ++h) local[h] = tk::fmax_(local[h], quartet_max(s, h));
      }
      if (++w == kWarps) w = 0;
      release_slot(c);
    }
    if (end - b0 == query_at) c.a.template advance<C::kASlots>();

    const u32 g = c.lane >> 2;
    if ((c.lane & 3) == 0) {
      tk::sts_f32(slot + kMaxima + (c.warp * 16 + g) * 4, local[0]);
      tk::sts_f32(slot + kMaxima + (c.warp * 16 + g + 8) * 4, local[1]);
    }
    tk::bar_sync(2, kWarps * 32);
    float rescale[2], sum[2] = {0.f, 0.f};
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      float top = kNegInf;
      TK_UNROLL
      for (u32 w = 0; w < kWarps; ++w) top = tk::fmax_(top, tk::lds_f32(slot + kMaxima + (w * 16 + g + 8 * h) * 4));
      softmax_online(run.top[h], top, &run.top[h], &rescale[h]);
    }
    TILECC_ROLLED
    for (u32 at = c.warp; b0 + at < end; at += kWarps) {
      float s[2][4];
      TK_UNROLL
      for (u32 t = 0; t < 2; ++t) {
        const tk::u32x4 v = tk::lds128(slot + at * 1024 + t * 512 + c.lane * 16);
        s[t][0] = tk::u2f(v.x), s[t][1] = tk::u2f(v.y), s[t][2] = tk::u2f(v.z), s[t][3] = tk::u2f(v.w);
      }
      Probabilities p;
      p.make(s, run.top, sum);
      TK_UNROLL
      for (u32 k = 0; k < 2; ++k) tk::sts128(slot + at * 1024 + k * 512 + c.lane * 16, tk::u32x4{p.a[k][0], p.a[k][1], p.a[k][2], p.a[k][3]});
    }
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) sum[h] = quartet_sum(sum[h]);
    if ((c.lane & 3) == 0) {
      tk::sts_f32(slot + kSums + (c.warp * 16 + g) * 4, sum[0]);
      tk::sts_f32(slot + kSums + (c.warp * 16 + g + 8) * 4, sum[1]);
    }
    tk::bar_sync(2, kWarps * 32);
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      float all = 0.f;
      TK_UNROLL
      for (u32 w = 0; w < kWarps; ++w) all += tk::lds_f32(slot + kSums + (w * 16 + g + 8 * h) * 4);
      run.sum[h] = kMaxBlocks > kRound ? run.sum[h] * rescale[h] + all : all;
      if constexpr (kMaxBlocks > kRound) {
        TK_UNROLL
        for (u32 p = 0; p < kOwnPairs; ++p) {
          TK_UNROLL
          for (u32 t = 0; t < 2; ++t) run.o[p][t][2 * h] *= rescale[h], run.o[p][t][2 * h + 1] *= rescale[h];
        }
      }
    }
    TILECC_ROLLED
    for (u32 b = b0; b < end; ++b) {
      tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
      Probabilities p;
      TK_UNROLL
      for (u32 k = 0; k < 2; ++k) {
        const tk::u32x4 v = tk::lds128(slot + (b - b0) * 1024 + k * 512 + c.lane * 16);
        p.a[k][0] = v.x, p.a[k][1] = v.y, p.a[k][2] = v.z, p.a[k][3] = v.w;
      }
      const Visible<Attn::kWindow> visible(b * 16, i.position, c.lane);
      TK_UNROLL
      for (u32 j = 0; j < kOwnPairs; ++j) {
        const u32 pair = j * kWarps + c.warp;
        if (pair < Kv::kValuePairs) {
          u32 values[2][2];
          Kv::load(c.act(c.a.slot), pair, c.lane, values);
          visible.clear(values);
          p.apply(values, run.o[j]);
        }
      }
      release_slot(c);
    }
  }

  static TK_FN void put(smem_t at, u32 lane, const float (&s)[2][4]) {
    TK_UNROLL
    for (u32 t = 0; t < 2; ++t)
      tk::sts128(at + t * 512 + lane * 16, tk::u32x4{tk::f2u(s[t][0]), tk::f2u(s[t][1]), tk::f2u(s[t][2]), tk::f2u(s[t][3])});
  }

  static TK_FN void output(const Cx& c, const OpRow& r, const Item& i, const Running& run) {
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      const u32 member = (c.lane >> 2) + 8 * h, head = i.head * kGroup + member;
      if (member >= kGroup) continue;
      float m[1] = {run.top[h]}, d[1] = {run.sum[h]}, scale[1];
      Attn::merge(m, d, Attn::kSink ? tk::ldg_nc_f32(c.image(r.aux) + head * 4) : kNegInf, scale);
      TK_UNROLL
      for (u32 j = 0; j < kOwnPairs; ++j) {
        TK_UNROLL
        for (u32 t = 0; t < 2; ++t) {
          const u32 dim = (j * kWarps + c.warp) * 16 + t * 8 + 2 * (c.lane & 3);
          if (dim >= Attn::kValueDim) continue;
          const float(&o)[4] = run.o[j][t];
          tk::stg32(c.p.workspace + Attn::kOut + frag_bytes(i.row, head * Attn::kValueDim + dim), act_bf16x2(o[2 * h] * scale[0], o[2 * h + 1] * scale[0]));
        }
      }
    }
  }

  // ---- store --------------------------------------------------------------------------------------------------------
  static TK_FN void store(Cx& c, const OpRow& r) { signal_tasks<Attn>(c, r, n_tasks(c)); }
};
}  // namespace tilecc
