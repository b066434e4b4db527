// Attention of a global layer. The context is cut into a constant number of splits: split i owns the chunks of
// kChunkBlocks blocks that are i modulo kSplits, in ascending order. One consumer warp computes one (row, KV head, split)
// by itself, so what a row's result is made of depends on nothing but its own position. Where there are more warps than
// rows of a task, warps share a row: each makes all of its scores and its share of the values.
//
// A task is (split, KV head, kTaskRows rows of the step): the rows of one sequence share its keys and values, which
// then come from memory once per task. Blocks that lie behind a row's position are passed over by its warp.
//
//   loader        nothing
//   activations   queries of the rows, then keys and values -> activation ring: as many blocks to a slot as it holds, one copy
//   consumers     S = Q K^T, online softmax, O += P V; partial result -> workspace
//   store         signals
//
// Attn (emitted): kHeads kKvHeads kHeadSteps kValueDim kSplits kChunkBlocks kTaskRows kScale kQueries kPartials kRotation kCounter Kv
#pragma once
#include "attn_common.cuh"

namespace tilecc {
// A partial: outputs in accumulator order [n8 tile][lane][4], then [head][maximum, sum].
template <u32 kValueDim>
struct Partial {
  static constexpr u32 kTiles = (kValueDim + 15) / 16 * 2, kStats = kTiles * 512, kBytes = kStats + 128;
};

template <class C, class Attn>
struct SplitAttention {
  using Cx = Ctx<C>;
  using Kv = typename Attn::Kv;
  static constexpr u32 kGroup = Attn::kHeads / Attn::kKvHeads;
  static constexpr u32 kQueryBytes = Attn::kHeadSteps * 512;
  static constexpr u32 kTaskRows = Attn::kTaskRows, kRowWarps = C::kConsumerWarps / kTaskRows;
  static constexpr u32 kOwnPairs = (Kv::kValuePairs + kRowWarps - 1) / kRowWarps;  // pairs of value tiles of one warp
  // Blocks of a slot: neighbours in the cache, of one chunk.
  static constexpr u32 kFit = C::kASlotBytes / Kv::kBlockBytes;
  static constexpr u32 kSlotBlocks = kFit < Attn::kChunkBlocks ? kFit : Attn::kChunkBlocks;
  static_assert(kGroup <= 16, "the query heads of one KV head fill at most one m16 tile");
  static_assert(kFit > 0 && kQueryBytes <= C::kASlotBytes, "an activation slot holds a block of keys and values, or a row's queries");
  static_assert((kTaskRows & (kTaskRows - 1)) == 0 && kTaskRows <= 32, "rows of a task are lanes of a warp");
  static_assert(kTaskRows * kRowWarps == C::kConsumerWarps, "every row has as many warps");

  // The rows of one task: lane n knows row row0 + n.
  struct Item {
    u32 split, head, row0, rows;
    u32 chunks;   // of this lane's row; 0 without one
    u32 last;     // block of its position
    int32_t seq;
  };
  static TK_FN u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
  static TK_FN u32 groups(const Cx& c) { return (c.n_rows + kTaskRows - 1) / kTaskRows; }
  static TK_FN u32 chunks(u32 position) { return position / (16 * Attn::kChunkBlocks) + 1; }
  // Splits that no row of the step reaches have no tasks.
  static TK_FN u32 n_tasks(const Cx& c) {
    u32 most = 0;
    TK_UNROLL
    for (u32 n = 0; n < kRows; n += 32) {
      const u32 own = c.lane + n < c.n_rows ? chunks(position(c, c.lane + n)) : 0;
      if (own > most) most = own;
    }
    TK_UNROLL
    for (u32 m = 1; m < (kRows < 32 ? kRows : 32); m *= 2) {
      const u32 other = tk::shfl_xor(most, m);
      if (other > most) most = other;
    }
    most = tk::shfl_idx(most, 0);
    return (most < Attn::kSplits ? most : Attn::kSplits) * Attn::kKvHeads * groups(c);
  }
  static TK_FN u32 position(const Cx& c, u32 row) { return tk::ldg_nc32(&c.row(row)->position); }
  static TK_FN Item item(const Cx& c, u32 q) {
    Item i;
    const u32 n = groups(c);
    i.row0 = q % n * kTaskRows;
    i.head = q / n % Attn::kKvHeads;
    i.split = q / n / Attn::kKvHeads;
    i.rows = c.n_rows - i.row0 < kTaskRows ? c.n_rows - i.row0 : kTaskRows;
    i.chunks = i.last = 0, i.seq = -1;
    if (c.lane < i.rows) {
      const u32 p = position(c, i.row0 + c.lane);
      i.chunks = chunks(p), i.last = p / 16;
      i.seq = static_cast<int32_t>(tk::ldg_nc32(&c.row(i.row0 + c.lane)->seq));
    }
    return i;
  }

  // Calls body(sequence, block, blocks) for the blocks of the split that some row of the task sees, up to kSlotBlocks at a
  // time: sequences in the order of their first rows, blocks ascending.
  template <class F>
  static TK_FN void for_each_slot(const Item& i, F&& body) {
    TILECC_ROLLED
    for (u32 n = 0; n < i.rows; ++n) {
      const int32_t seq = tk::shfl_idx(i.seq, n);
      const u32 same = tk::ballot(i.seq == seq);
      if ((same & ((1u << n) - 1)) != 0) continue;  // an earlier row brought this sequence
      u32 last = i.seq == seq ? i.last : 0;
      TK_UNROLL
      for (u32 m = 1; m < kTaskRows; m *= 2) {
        const u32 other = tk::shfl_xor(last, m);
        if (other > last) last = other;
      }
      last = tk::shfl_idx(last, 0);
      TILECC_ROLLED
      for (u32 first = i.split * Attn::kChunkBlocks; first <= last; first += Attn::kSplits * Attn::kChunkBlocks) {
        TILECC_ROLLED
        for (u32 b = first; b < first + Attn::kChunkBlocks && b <= last; b += kSlotBlocks)
          body(seq, b, min_u32(kSlotBlocks, min_u32(first + Attn::kChunkBlocks, last + 1) - b));
      }
    }
  }

  static TK_FN void loader(Cx&, const OpRow&) {}

  // ---- activations --------------------------------------------------------------------------------------------------
  static TK_FN void activations(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Attn::kRotation);
    if (q >= n) return;
    c.wait_inputs(r);
    TILECC_ROLLED
    for (; q < n; q += c.ncta) {
      const Item i = item(c, q);
      c.watch.item = q;
      TILECC_ROLLED
      for (u32 row = 0; row < i.rows; ++row)
        fill_slot(c, c.p.workspace + Attn::kQueries + ((i.row0 + row) * Attn::kKvHeads + i.head) * kQueryBytes, kQueryBytes);
      for_each_slot(i, [&](int32_t seq, u32 b, u32 n_blocks) { fill_slot(c, Kv::block(c, r, seq, i.head, b), n_blocks * Kv::kBlockBytes); });
    }
  }

  // ---- consumers ----------------------------------------------------------------------------------------------------
  struct Running {
    float top[2], sum[2];  // of heads g and g + 8: running maximum, this lane's share of the sum
    float o[kOwnPairs][2][4];
  };

  static TK_FN void consumer(Cx& c, const OpRow&) {
    const u32 n = n_tasks(c), my_row = c.warp / kRowWarps;
    TILECC_ROLLED
    for (u32 q = first_task(c, Attn::kRotation); q < n; q += c.ncta) {
      const Item i = item(c, q);
      c.watch.item = q;
      Query<Attn::kHeadSteps> query;
      query.clear();
      TILECC_ROLLED
      for (u32 row = 0; row < i.rows; ++row) {
        tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
        if (row == my_row) query.load(c.act(c.a.slot), c.lane);
        release_slot(c);
      }
      const bool mine = my_row < i.rows && tk::shfl_idx(i.chunks, my_row) > i.split;
      const int32_t my_seq = tk::shfl_idx(i.seq, my_row);
      const u32 my_last = tk::shfl_idx(i.last, my_row);
      const u32 my_position = mine ? position(c, i.row0 + my_row) : 0;

      Running run;
      TK_UNROLL
      for (u32 h = 0; h < 2; ++h) run.top[h] = kNegInf, run.sum[h] = 0.f;
      TK_UNROLL
      for (u32 p = 0; p < kOwnPairs; ++p) {
        TK_UNROLL
        for (u32 j = 0; j < 8; ++j) run.o[p][j / 4][j % 4] = 0.f;
      }
      for_each_slot(i, [&](int32_t seq, u32 b0, u32 n_blocks) {
        tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
        if (mine && seq == my_seq) {
          TILECC_ROLLED
          for (u32 j = 0; j < n_blocks && b0 + j <= my_last; ++j) block(c, query, run, c.act(c.a.slot) + j * Kv::kBlockBytes, b0 + j, my_position);
        }
        release_slot(c);
      });
      TK_UNROLL
      for (u32 h = 0; h < 2; ++h) run.sum[h] = quartet_sum(run.sum[h]);
      if (mine) publish(c, i, run, my_row);
      tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);
      tk::syncwarp();
      tk::mbar_arrive(c.x_full(c.x.slot));
      c.x.template advance<C::kXSlots>();
    }
  }

  // Block b, which lies at `at` and which the row at `position` sees.
  static TK_FN void block(const Cx& c, const Query<Attn::kHeadSteps>& query, Running& run, smem_t at, u32 b, u32 position) {
    const Visible<0> visible(b * 16, position, c.lane);
    Probabilities p;
    scores(c, query, at, visible, p, run);
    TK_UNROLL
    for (u32 j = 0; j < kOwnPairs; ++j) {
      const u32 pair = j * kRowWarps + c.warp % kRowWarps;
      if (kRowWarps > 1 && pair >= Kv::kValuePairs) continue;
      u32 values[2][2];
      Kv::load(at + Kv::kKeyBytes, pair, c.lane, values);
      if (b == position / 16) visible.clear(values);
      p.apply(values, run.o[j]);
    }
  }

  static TK_FN void scores(const Cx& c, const Query<Attn::kHeadSteps>& query, smem_t at, const Visible<0>& visible, Probabilities& p, Running& run) {
    float s[2][4];
    query.template scores<Kv>(at, c.lane, s);
    visible.scale(Attn::kScale, s);
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      float rescale;
      softmax_online(run.top[h], quartet_max(s, h), &run.top[h], &rescale);
      run.sum[h] *= rescale;
      TK_UNROLL
      for (u32 j = 0; j < kOwnPairs; ++j) {
        TK_UNROLL
        for (u32 t = 0; t < 2; ++t) run.o[j][t][2 * h] *= rescale, run.o[j][t][2 * h + 1] *= rescale;
      }
    }
    p.make(s, run.top, run.sum);
  }

  static TK_FN void publish(const Cx& c, const Item& i, const Running& run, u32 row) {
    const u32 g = c.lane >> 2, part = c.warp % kRowWarps;
    uint8_t* out = c.p.workspace + Attn::kPartials +
                   static_cast<u64>(((i.row0 + row) * Attn::kKvHeads + i.head) * Attn::kSplits + i.split) * Partial<Attn::kValueDim>::kBytes;
    TK_UNROLL
    for (u32 j = 0; j < kOwnPairs; ++j) {
      const u32 pair = j * kRowWarps + part;
      if (kRowWarps > 1 && pair >= Kv::kValuePairs) continue;
      TK_UNROLL
      for (u32 t = 0; t < 2; ++t) {
        const float(&o)[4] = run.o[j][t];
        tk::stg128(out + (2 * pair + t) * 512 + c.lane * 16, tk::u32x4{tk::f2u(o[0]), tk::f2u(o[1]), tk::f2u(o[2]), tk::f2u(o[3])});
      }
    }
    if (part == 0 && (c.lane & 3) == 0) {
      tk::stg64(out + Partial<Attn::kValueDim>::kStats + g * 8, tk::u32x2{tk::f2u(run.top[0]), tk::f2u(run.sum[0])});
      tk::stg64(out + Partial<Attn::kValueDim>::kStats + (g + 8) * 8, tk::u32x2{tk::f2u(run.top[1]), tk::f2u(run.sum[1])});
    }
  }

  // ---- store --------------------------------------------------------------------------------------------------------
  static TK_FN void store(Cx& c, const OpRow& r) { signal_tasks<Attn>(c, r, n_tasks(c)); }
};

// Merges the splits of a global layer in split order; the sink enters once, here. The store warp alone runs it. A unit is
// one n8 tile of values of all heads of a (row, KV head).
// M (emitted): kHeads kKvHeads kValueDim kSplits kChunkBlocks kSink kPartials kOut kRotation kCounter, and merge(m, d, sink,
//   scale) for one partial
template <class C, class M>
struct AttentionMerge {
  using Cx = Ctx<C>;
  using P = Partial<M::kValueDim>;
  static constexpr u32 kGroup = M::kHeads / M::kKvHeads, kTiles = (M::kValueDim + 7) / 8;
  static constexpr u32 kBatch = M::kSplits < 8 ? M::kSplits : 8;  // splits whose loads are in flight together
  static TK_FN void loader(Cx&, const OpRow&) {}
  static TK_FN void activations(Cx&, const OpRow&) {}
  static TK_FN void consumer(Cx&, const OpRow&) {}
  static TK_FN void store(Cx& c, const OpRow& r) {
    const u32 n = c.n_rows * M::kKvHeads * kTiles, g = c.lane >> 2;
    u32 q = first_task(c, M::kRotation);
    c.wait_inputs(r);
    TILECC_ROLLED
    for (; q < n; q += c.ncta) {
      const u32 tile = q % kTiles, head = q / kTiles % M::kKvHeads, row = q / kTiles / M::kKvHeads;
      const u32 reached = tk::ldg_nc32(&c.row(row)->position) / (16 * M::kChunkBlocks) + 1;
      const u32 splits = reached < M::kSplits ? reached : M::kSplits;  // the others hold nothing of this row
      const uint8_t* in = c.p.workspace + M::kPartials + static_cast<u64>((row * M::kKvHeads + head) * M::kSplits) * P::kBytes;
      float top[2] = {kNegInf, kNegInf}, sum[2] = {0.f, 0.f}, o[4] = {0.f, 0.f, 0.f, 0.f};
      TILECC_ROLLED
      for (u32 first = 0; first < splits; first += kBatch) {
        tk::u32x2 stats[kBatch][2];
        tk::u32x4 part[kBatch];
        TK_UNROLL
        for (u32 s = 0; s < kBatch; ++s) {
          if (first + s >= splits) break;
          const uint8_t* at = in + (first + s) * P::kBytes;
          stats[s][0] = tk::ldg64(at + P::kStats + g * 8);
          stats[s][1] = tk::ldg64(at + P::kStats + (g + 8) * 8);
          part[s] = tk::ldg128(at + tile * 512 + c.lane * 16);
        }
        TK_UNROLL
        for (u32 s = 0; s < kBatch; ++s) {
          if (first + s >= splits) break;
          const float v[4] = {tk::u2f(part[s].x), tk::u2f(part[s].y), tk::u2f(part[s].z), tk::u2f(part[s].w)};
          TK_UNROLL
          for (u32 h = 0; h < 2; ++h) {
            const float m = tk::u2f(stats[s][h].x);
            float rescale;
            softmax_online(top[h], m, &top[h], &rescale);
            const float factor = softmax_p(m, top[h]);
            sum[h] = sum[h] * rescale + tk::u2f(stats[s][h].y) * factor;
            o[2 * h] = o[2 * h] * rescale + v[2 * h] * factor;
            o[2 * h + 1] = o[2 * h + 1] * rescale + v[2 * h + 1] * factor;
          }
        }
      }
      TK_UNROLL
      for (u32 h = 0; h < 2; ++h) {
        const u32 member = g + 8 * h, k = (head * kGroup + member) * M::kValueDim + tile * 8 + 2 * (c.lane & 3);
        if (member >= kGroup || tile * 8 + 2 * (c.lane & 3) >= M::kValueDim) continue;
        float scale[1];
        M::merge(&top[h], &sum[h], M::kSink ? tk::ldg_nc_f32(c.image(r.aux) + (head * kGroup + member) * 4) : kNegInf, scale);
        tk::stg32(c.p.workspace + M::kOut + frag_bytes(row, k), act_bf16x2(o[2 * h] * scale[0], o[2 * h + 1] * scale[0]));
      }
    }
    c.arrive(M::kCounter);
  }
};
}  // namespace tilecc
