// Ops without a main loop, run by the store warp: embedding, residual reduction, end of step. A unit is 64 columns of a
// row tile; a lane owns row lane / 4 of it and the four columns of every k16 step that its MMA fragment holds.
#pragma once
#include "op_common.cuh"

namespace tilecc {
template <class C>
struct VectorOp {
  static TK_FN void loader(Ctx<C>&, const OpRow&) {}
  static TK_FN void activations(Ctx<C>&, const OpRow&) {}
  static TK_FN void consumer(Ctx<C>&, const OpRow&) {}
};

TK_FN float sum_of_squares(tk::u32x2 v) {
  const float a = tk::bf_lo(v.x), b = tk::bf_hi(v.x), c = tk::bf_lo(v.y), d = tk::bf_hi(v.y);
  return (a * a + b * b) + (c * c + d * d);
}

// Partial sum of squares of a row over one unit, from the four lanes that hold the row.
template <class Cx>
TK_FN void put_sum_of_squares(const Cx& c, u64 offset, u32 unit, u32 row, float s) {
  s += tk::shfl_xor(s, 1);
  s += tk::shfl_xor(s, 2);
  if ((c.lane & 3) == 0) tk::stg_f32(c.p.workspace + offset + (unit * kRows + row) * 4, s);
}

// The new residual x of k16 step `step`: x itself, y = round(x * w) * 2^96 for the projections behind the norm w, and the
// squares. 1 / rms of the row multiplies what the projections make of y: nobody waits for it before multiplying.
template <class R, class Cx>
TK_FN float put_residual(const Cx& c, const OpRow& r, u32 step, u32 row_tile, const tk::u32x2& x) {
  const tk::u32x2 w = tk::ldg_nc64(c.image(r.norm) + step * 32 + (c.lane & 3) * 8);
  const float y0 = norm_apply(tk::bf_lo(x.x), kActFactor, tk::bf_lo(w.x)), y1 = norm_apply(tk::bf_hi(x.x), kActFactor, tk::bf_hi(w.x));
  const float y2 = norm_apply(tk::bf_lo(x.y), kActFactor, tk::bf_lo(w.y)), y3 = norm_apply(tk::bf_hi(x.y), kActFactor, tk::bf_hi(w.y));
  const u32 at = (frag_step(step, row_tile) * 32 + c.lane) * 8;
  tk::stg64(c.p.workspace + R::kX + at, x);
  tk::stg64(c.p.workspace + R::kY + at, tk::u32x2{tk::cvt_bf16x2(y0, y1), tk::cvt_bf16x2(y2, y3)});
  return sum_of_squares(x);
}

// x = E[token], rows that the step does not use are zero. E (emitted): kX kY kSumSq kColumns (padded) kUnits kRotation
// kCounter
template <class C, class E>
struct Embed : VectorOp<C> {
  static TK_FN void store(Ctx<C>& c, const OpRow& r) {
    u32 u = first_task(c, E::kRotation);
    c.wait_inputs(r);  // with or without tasks, see wait_idle
    const u32 t = c.lane & 3;
    u32 tile = kRowTiles;  // of the token at hand
    int32_t token = 0;
    TILECC_ROLLED
    for (; u < E::kUnits * kRowTiles; u += c.ncta) {
      const u32 unit = u / kRowTiles, g = u % kRowTiles * 8 + (c.lane >> 2);
      if (tile != u % kRowTiles) {
        tile = u % kRowTiles, token = 0;
        if (g < c.n_rows) {
          token = tk::ld_uniform(c.row(g)).token;
          if (token < 0) token = tk::ldg_i32(&c.state()->token);
        }
      }
      const uint8_t* row = c.image(r.weights) + static_cast<u64>(token) * E::kColumns * 2;
      float s = 0.f;
      TK_UNROLL
      for (u32 j = 0; j < 4; ++j) {
        const u32 step = unit * 4 + j;
        tk::u32x2 v = {0, 0};
        if (g < c.n_rows) v = tk::ldg_nc64(row + step * 32 + t * 8);
        s += put_residual<E>(c, r, step, tile, v);
      }
      put_sum_of_squares(c, E::kSumSq, unit, g, s);
    }
    c.arrive(E::kCounter);
  }
};

// x = round(x + sum of the partials in split order), and what the next norm needs of it.
// R (emitted): kX kY kSumSq kPartials kSplits kColumns kUnits kRotation kCounter kWords; with kWords, the partials are words
// that are their own flags (PartialWordsEpilogue): kPollBytes (of a slot) kPolls (a step) kSteps (k16 steps that exist)
template <class C, class R>
struct Reduce : VectorOp<C> {
  using Sum = float[4];

  // The partials of `kCount` k16 steps of a row tile, all in flight together. Each word is poisoned again.
  template <u32 kCount>
  static TK_FN void take(Ctx<C>& c, const OpRow& r, u32 step, u32 tile, Sum* y) {
    constexpr u32 kWordsOfSplit = R::kColumns * kRows / 2, kWords = R::kSplits * kCount * 2;
    u64* from = reinterpret_cast<u64*>(c.p.workspace + R::kPartials + c.slot(R::kPolls, r.polled) * R::kPollBytes) + frag_step(step, tile) * 64 + c.lane;
    u64 v[kWords];
    const auto at = [&](u32 i) { return from + i / (2 * kCount) * kWordsOfSplit + i % (2 * kCount) * 32; };
    tk::poll_words<tk::Scope::kGpu, kWords>(at, tk::kFlagPoison64, c.watch, v);
    TK_UNROLL
    for (u32 i = 0; i < kWords; ++i) {
      float* sum = y[i / 2 % kCount];
      sum[2 * (i % 2)] += tk::u2f(static_cast<u32>(v[i])), sum[2 * (i % 2) + 1] += tk::u2f(static_cast<u32>(v[i] >> 32));
      tk::poison_word(at(i), tk::kFlagPoison64);
    }
  }
  static TK_FN void take_unit(Ctx<C>& c, const OpRow& r, u32 unit, u32 tile, Sum (&y)[4]) {
    TK_UNROLL
    for (u32 j = 0; j < 4; ++j) y[j][0] = y[j][1] = y[j][2] = y[j][3] = 0.f;
    if (tile >= c.row_tiles()) return;  // nobody pushes these
    if constexpr (R::kSteps % 4 == 0) {
      take<4>(c, r, unit * 4, tile, y);
    } else {
      TK_UNROLL
      for (u32 j = 0; j < 4; ++j)
        if (unit * 4 + j < R::kSteps) take<1>(c, r, unit * 4 + j, tile, y + j);
    }
  }

  static TK_FN void store(Ctx<C>& c, const OpRow& r) {
    u32 u = first_task(c, R::kRotation);
    c.wait_inputs(r);
    TILECC_ROLLED
    for (; u < R::kUnits * kRowTiles; u += c.ncta) {
      const u32 unit = u / kRowTiles, tile = u % kRowTiles;
      float s = 0.f;
      Sum taken[4];
      c.watch.item = u;
      if constexpr (R::kWords) take_unit(c, r, unit, tile, taken);
      TK_UNROLL
      for (u32 j = 0; j < 4; ++j) {
        const u32 at_lane = frag_step(unit * 4 + j, tile) * 32 + c.lane;
        float y[4] = {0.f, 0.f, 0.f, 0.f};
        if constexpr (R::kWords) {
          y[0] = taken[j][0], y[1] = taken[j][1], y[2] = taken[j][2], y[3] = taken[j][3];
        } else {
          for (u32 i = 0; i < R::kSplits; ++i) {
            const tk::u32x4 p = tk::ldg128(c.p.workspace + R::kPartials + static_cast<u64>(i) * R::kColumns * kRows * 4 + at_lane * 16);
            y[0] += tk::u2f(p.x), y[1] += tk::u2f(p.y), y[2] += tk::u2f(p.z), y[3] += tk::u2f(p.w);
          }
        }
        const tk::u32x2 x = tk::ldg64(c.p.workspace + R::kX + at_lane * 8);
        const tk::u32x2 v = {tk::cvt_bf16x2(tk::bf_lo(x.x) + y[0], tk::bf_hi(x.x) + y[1]), tk::cvt_bf16x2(tk::bf_lo(x.y) + y[2], tk::bf_hi(x.y) + y[3])};
        s += put_residual<R>(c, r, unit * 4 + j, tile, v);
      }
      put_sum_of_squares(c, R::kSumSq, unit, tile * 8 + (c.lane >> 2), s);
    }
    c.arrive(R::kCounter);
  }
};

// End of step: folds the CTAs' argmax partials, publishes the tokens and the token that the next step may start from.
// F (emitted): kPartials kRotation kCounter
template <class C, class F>
struct Commit : VectorOp<C> {
  static TK_FN void store(Ctx<C>& c, const OpRow& r) {
    c.wait_inputs(r);
    if (c.cta == 0) {
      int32_t token = -1;
      TILECC_ROLLED
      for (u32 n = 0; n < c.n_rows; ++n) {
        float best = kNegInf;
        int32_t id = 0x7fffffff;
        TILECC_ROLLED
        for (u32 i = c.lane; i < c.ncta; i += 32) {
          const tk::u32x2 v = tk::ldg64(c.p.workspace + F::kPartials + (i * kRows + n) * 8);
          argmax_pair(best, id, tk::u2f(v.x), static_cast<int32_t>(v.y), &best, &id);
        }
        TK_UNROLL
        for (int m = 1; m < 32; m *= 2) {
          const float v = tk::shfl_xor(best, m);
          const int32_t i = tk::shfl_xor(id, m);
          argmax_pair(best, id, v, i, &best, &id);
        }
        token = id;
        if (c.lane == 0) tk::stg32(c.p.tokens_out + c.step * kRows + n, static_cast<u32>(id));
      }
      bool stop = false;
      TILECC_ROLLED
      for (u32 i = 0; i < c.p.n_stop; ++i) stop |= token == tk::ldg_i32(c.p.stop_ids + i);
      if (c.lane == 0) {
        uint8_t* state = c.p.workspace + C::kState;
        tk::stg32(state + offsetof(State, token), static_cast<u32>(token));
        if (stop) tk::st_relaxed(reinterpret_cast<u32*>(state + offsetof(State, stop)), c.base + c.step + 1);
      }
    }
    c.arrive(F::kCounter);
  }
};
}  // namespace tilecc
