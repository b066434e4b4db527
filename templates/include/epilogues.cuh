// What the store warp does with a finished m16 tile and one row tile. A lane holds rows g, g + 8 (weights) of columns 2t,
// 2t + 1 (token rows of the row tile): v[0] = (g, 2t), v[1] = (g, 2t + 1), v[2] = (g + 8, 2t), v[3] = (g + 8, 2t + 1).
#pragma once
#include "attn_common.cuh"
#include "op_gemv.cuh"

namespace tilecc {
struct EpilogueBase {
  template <class Cx>
  TK_FN void begin(Cx&, const OpRow&) {}
  template <class Cx>
  TK_FN void end(Cx&, const OpRow&) {}
};

// f32 partial of one K split, in fragment order: the reduce op adds the splits in ascending order.
// P: kOffset kColumns (padded hidden size)
template <class P>
struct PartialEpilogue : EpilogueBase {
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow&, const Task& t, u32 tile, u32 row_tile, const float (&v)[4]) {
    const u32 g = c.lane >> 2, n = row_tile * 8 + 2 * (c.lane & 3), k = tile * 16 + g;
    uint8_t* out = c.p.workspace + P::kOffset + static_cast<u64>(t.split) * P::kColumns * kRows * 4;
    tk::stg_f32(out + frag_f32_bytes(n, k), v[0]);
    tk::stg_f32(out + frag_f32_bytes(n + 1, k), v[1]);
    tk::stg_f32(out + frag_f32_bytes(n, k + 8), v[2]);
    tk::stg_f32(out + frag_f32_bytes(n + 1, k + 8), v[3]);
  }
};

// The same sums as words that are their own flags. A word holds two neighbouring columns of a token row: lanes of two
// neighbouring tile rows exchange half of what they have. The reduce op poisons each word again.
// [slot][split][128 columns][row tile][k16 step][half][token row 8][column pair 4] u64. P: kPush (region) kPushBytes (of a slot) kPushes (a step)
// kColumns
template <class P>
struct PartialWordsEpilogue : EpilogueBase {
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow& r, const Task& t, u32 tile, u32 row_tile, const float (&v)[4]) {
    const bool odd = (c.lane & 4) != 0;
    const u32 n = 2 * (c.lane & 3) + (odd ? 1 : 0), pair = c.lane >> 3;
    uint8_t* out = c.p.workspace + P::kPush + c.slot(P::kPushes, r.pushed) * P::kPushBytes + static_cast<u64>(t.split) * P::kColumns * kRows * 4;
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      const float got = tk::shfl_xor(odd ? v[2 * h] : v[2 * h + 1], 4), own = odd ? v[2 * h + 1] : v[2 * h];
      const u32 low = tk::f2u(odd ? got : own), high = tk::f2u(odd ? own : got);
      tk::push_word<tk::Scope::kGpu>(reinterpret_cast<u64*>(out + ((frag_step(tile, row_tile) * 2 + h) * 32 + n * 4 + pair) * 8), static_cast<u64>(high) << 32 | low);
    }
  }
};

// Tile rows 0-7 are gates, 8-15 the matching ups: SwiGLU is register arithmetic. Rows that are not routed to the expert
// get zeros, whatever the expert made of them. P: kOffset kColumns (padded width) kRouted
template <class P>
struct SwigluEpilogue : EpilogueBase {
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow&, const Task& t, u32 tile, u32 row_tile, const float (&v)[4]) {
    const u32 g = c.lane >> 2, n = row_tile * 8 + 2 * (c.lane & 3), k = tile * 8 + g;
    float h0 = swiglu(v[0], v[2]), h1 = swiglu(v[1], v[3]);
    if constexpr (P::kRouted) {
      const tk::u32x2 w = c.slot_weights(t.slot).pair(row_tile, 2 * (c.lane & 3));
      if (w.x == 0) h0 = 0.f;
      if (w.y == 0) h1 = 0.f;
    }
    uint8_t* out = c.p.workspace + P::kOffset + static_cast<u64>(P::kRouted ? t.slot : 0) * P::kColumns * kRows * 2;
    tk::stg_u16(out + frag_bytes(n, k), tk::f2bf(h0 * kActFactor));
    tk::stg_u16(out + frag_bytes(n + 1, k), tk::f2bf(h1 * kActFactor));
  }
};

// Router logits, f32 [row][kPitch]. P: kOffset kRowsOut kPitch
template <class P>
struct LogitsEpilogue : EpilogueBase {
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow&, const Task&, u32 tile, u32 row_tile, const float (&v)[4]) {
    const u32 g = c.lane >> 2, n = row_tile * 8 + 2 * (c.lane & 3), m = tile * 16 + g;
    uint8_t* out = c.p.workspace + P::kOffset;
    if (m < P::kRowsOut) {
      tk::stg_f32(out + (n * P::kPitch + m) * 4, v[0]);
      tk::stg_f32(out + ((n + 1) * P::kPitch + m) * 4, v[1]);
    }
    if (m + 8 < P::kRowsOut) {
      tk::stg_f32(out + (n * P::kPitch + m + 8) * 4, v[2]);
      tk::stg_f32(out + ((n + 1) * P::kPitch + m + 8) * 4, v[3]);
    }
  }
};

// Router logits as words that are their own flags, read by every CTA: who pushes a word poisons that of the next turn.
// [slot][row][kPitch] f32. P: kPush kPushBytes kPushes kRowsOut kPitch
template <class P>
struct LogitsWordsEpilogue : EpilogueBase {
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow& r, const Task&, u32 tile, u32 row_tile, const float (&v)[4]) {
    u32* out = reinterpret_cast<u32*>(c.p.workspace + P::kPush + c.slot(P::kPushes, r.pushed) * P::kPushBytes);
    u32* next = reinterpret_cast<u32*>(c.p.workspace + P::kPush + c.slot(P::kPushes, r.pushed, 1) * P::kPushBytes);
    TK_UNROLL
    for (u32 i = 0; i < 4; ++i) {
      const u32 m = tile * 16 + (c.lane >> 2) + 8 * (i / 2), at = (2 * (c.lane & 3) + i % 2) * P::kPitch + m;
      if (m >= P::kRowsOut) continue;
      // The next turn may be of more row tiles than this one.
      for (u32 j = 0; j < (row_tile == 0 ? kRowTiles : 0); ++j) tk::poison_word(next + j * 8 * P::kPitch + at, tk::kFlagPoison);
      tk::push_word<tk::Scope::kGpu>(out + row_tile * 8 * P::kPitch + at, tk::f2u(v[i]));
    }
  }
};

// Vocabulary logits: a running argmax per token row (larger value, then lower id), folded over the CTA's tiles and left
// per CTA for the commit op; the logits themselves only if the caller asked. P: kOffset ([cta][row] value, id) kVocab
template <class P>
struct ArgmaxEpilogue {
  float best[kRowTiles][2];
  int32_t id[kRowTiles][2];

  template <class Cx>
  TK_FN void begin(Cx&, const OpRow&) {
    TK_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      best[i][0] = best[i][1] = kNegInf;
      id[i][0] = id[i][1] = 0x7fffffff;
    }
  }
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow&, const Task&, u32 tile, u32 row_tile, const float (&v)[4]) {
    TK_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      if (i == row_tile) fold(c, tile, row_tile, v, best[i], id[i]);
    }
  }
  template <class Cx>
  static TK_FN void fold(const Cx& c, u32 tile, u32 row_tile, const float (&v)[4], float (&top)[2], int32_t (&at)[2]) {
    const u32 g = c.lane >> 2, n = row_tile * 8 + 2 * (c.lane & 3);
    TK_UNROLL
    for (int h = 0; h < 2; ++h) {
      const u32 m = tile * 16 + g + 8 * h;
      if (m < P::kVocab) {
        TK_UNROLL
        for (int j = 0; j < 2; ++j) {
          argmax_pair(top[j], at[j], v[2 * h + j], static_cast<int32_t>(m), &top[j], &at[j]);
          if (c.p.logits != nullptr && n + j < c.n_rows)
            tk::stg_f32(c.p.logits + (static_cast<u64>(c.step) * kRows + n + j) * P::kVocab + m, v[2 * h + j]);
        }
      }
    }
  }
  template <class Cx>
  TK_FN void end(Cx& c, const OpRow&) {
    TK_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      TK_UNROLL
      for (int m = 4; m < 32; m *= 2) {
        TK_UNROLL
        for (int j = 0; j < 2; ++j) {
          const float v = tk::shfl_xor(best[i][j], m);
          const int32_t other = tk::shfl_xor(id[i][j], m);
          argmax_pair(best[i][j], id[i][j], v, other, &best[i][j], &id[i][j]);
        }
      }
      if (c.lane < 4) {
        TK_UNROLL
        for (int j = 0; j < 2; ++j)
          tk::stg64(c.p.workspace + P::kOffset + (c.cta * kRows + i * 8 + 2 * c.lane + j) * 8,
                    tk::u32x2{tk::f2u(best[i][j]), static_cast<u32>(id[i][j])});
      }
    }
  }
};

// Fused query-key-value projection: rope on the register pairs of the rope tiles, value scale, queries to the attention
// op's A-fragment buffer, keys and values straight into the KV cache.
// P: kHeads kKvHeads kHeadDim kValueDim kRotary kRopeTiles kQkTiles kValueTiles kValueScale kQueries kHeadSteps Kv
template <class P>
struct QkvEpilogue : EpilogueBase {
  template <class Cx>
  TK_FN void tile(Cx& c, const OpRow& r, const Task&, u32 tile, u32 row_tile, const float (&v)[4]) {
    const u32 g = c.lane >> 2;
    const bool is_value = tile >= (P::kHeads + P::kKvHeads) * P::kQkTiles;
    const u32 local = is_value ? tile - (P::kHeads + P::kKvHeads) * P::kQkTiles : tile;
    const u32 head = local / (is_value ? P::kValueTiles : P::kQkTiles), part = local % (is_value ? P::kValueTiles : P::kQkTiles);
    TK_UNROLL
    for (int j = 0; j < 2; ++j) {
      const u32 n = row_tile * 8 + 2 * (c.lane & 3) + j;
      if (n >= c.n_rows) continue;
      const tilecc_row row = tk::ld_uniform(c.row(n));
      float out[2] = {v[j], v[2 + j]};
      u32 d0 = part * 16 + g, d1 = d0 + 8, limit = P::kValueDim;
      if (is_value) {
        out[0] *= P::kValueScale, out[1] *= P::kValueScale;
      } else if (part < P::kRopeTiles) {
        d0 = part * 8 + g;
        d1 = d0 + P::kRotary / 2;
        limit = d0 < P::kRotary / 2 ? P::kHeadDim : 0;
        if (limit != 0) {
          const uint8_t* table = c.image(r.aux) + (static_cast<u64>(row.position) * (P::kRotary / 2) + d0) * 8;
          const tk::u32x2 cs = tk::ldg_nc64(table);
          rope_pair(v[j], v[2 + j], tk::u2f(cs.x), tk::u2f(cs.y), out);
        }
      } else {
        d0 = P::kRotary + (part - P::kRopeTiles) * 16 + g;
        d1 = d0 + 8;
        limit = P::kHeadDim;
      }
      if (d0 < limit) put(c, r, row, n, head, d0, is_value, out[0]);
      if (d1 < limit) put(c, r, row, n, head, d1, is_value, out[1]);
    }
  }

  template <class Cx>
  static TK_FN void put(const Cx& c, const OpRow& r, const tilecc_row& row, u32 n, u32 head, u32 d, bool is_value, float x) {
    if (is_value) {
      P::Kv::put(P::Kv::block(c, r, row.seq, head, row.position / 16) + P::Kv::value_bytes(row.position % 16, d), x);
    } else if (head >= P::kHeads) {
      P::Kv::put(P::Kv::block(c, r, row.seq, head - P::kHeads, row.position / 16) + P::Kv::key_bytes(row.position % 16, d), x);
    } else {
      constexpr u32 kGroupHeads = P::kHeads / P::kKvHeads;
      const u32 kv = head / kGroupHeads, h = head % kGroupHeads;
      const u32 at = ((n * P::kKvHeads + kv) * P::kHeadSteps + d / 16) * 512 + ((h % 8) * 4 + (d % 8) / 2) * 16 + ((d % 16) / 8) * 8 + (h / 8) * 4 + (d % 2) * 2;
      tk::stg_u16(c.p.workspace + P::kQueries + at, tk::f2bf(x));
    }
  }
};
}  // namespace tilecc
