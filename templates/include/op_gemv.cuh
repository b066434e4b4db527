// Weight-streaming matrix product of eight token rows: one m16 tile of weights is the M side, the rows are the N side of
// mma.m16n8k16. All four warp roles of the op, side by side:
//
//   loader        weight blocks -> weight ring            never waits for activations (experts: waits for the routing)
//   activations   x (normalised) or a stored fragment -> activation ring, one K chunk at a time
//   consumers     every warp takes every kConsumerWarps-th pair of k16 steps; partial sums -> exchange
//   store         sums the warps' partials in warp order, runs the op's epilogue, signals once per (CTA, op)
//
// A task is a group of up to kGroup neighbouring m16 tiles that share their activations. Op (emitted) gives the shapes:
//   kFormat kTiles kBlocks kSplits kChunk kGroup kRotation kCounter kOver kSource kSourceOffset kSumSq kHidden kEps
#pragma once
#include "mma_formats.cuh"

namespace tilecc {
enum class Over { kDense, kExpertsUp, kExpertsDown };
enum class Source { kNorm, kFragment };

struct Task {
  u32 tile0, n_tiles;
  u32 split;
  u32 slot;  // place in the active-expert list (kExpertsUp)
};

template <class C, class Op>
struct Gemv {
  using Cx = Ctx<C>;
  static constexpr u32 kGroups = (Op::kTiles + Op::kGroup - 1) / Op::kGroup;
  static constexpr u32 kBlockBytes = Block<Op::kFormat>::kBytes;
  static constexpr u32 kSplitBlocks = Op::kOver == Over::kExpertsDown ? Op::kBlocks : (Op::kBlocks + Op::kSplits - 1) / Op::kSplits;
  static constexpr bool kRouted = Op::kOver != Over::kDense;
  static_assert(Op::kGroup * Op::kChunk * kBlockBytes <= C::kWStageBytes, "a weight stage holds one chunk of a group");
  static_assert(Op::kChunk * 2048 <= C::kASlotBytes, "an activation slot holds one chunk");

  static TK_FN u32 n_active(const Cx& c) { return tk::lds32(c.route()); }
  static TK_FN u32 expert(const Cx& c, u32 slot) { return tk::lds32(c.route() + Cx::S::kRouteIds + 4 * slot); }

  static TK_FN u32 n_tasks(const Cx& c) {
    if constexpr (Op::kOver == Over::kExpertsUp) return n_active(c) * kGroups;
    return kGroups * Op::kSplits;
  }
  static TK_FN Task task(u32 q) {
    const u32 group = q % kGroups, outer = q / kGroups, tile0 = group * Op::kGroup;
    const u32 left = Op::kTiles - tile0;
    return {tile0, left < Op::kGroup ? left : Op::kGroup, Op::kOver == Over::kExpertsUp ? 0 : outer, outer};
  }

  // Calls body(slot, expert, first block, blocks) for every K chunk of a task, in the order that fixes the result's bits:
  // ascending columns, for the down projection ascending expert ids outside.
  template <class F>
  static TK_FN void for_each_chunk(const Cx& c, const Task& t, F&& body) {
    if constexpr (Op::kOver == Over::kExpertsDown) {
      const u32 active = n_active(c);
      TILECC_ROLLED
      for (u32 slot = 0; slot < active; ++slot) {
        const u32 e = expert(c, slot);
        // A split owns experts by id, not by place in the list, so that a row's bits do not depend on other rows.
        if (e % Op::kSplits != t.split) continue;
        TILECC_ROLLED
        for (u32 kb = 0; kb < Op::kBlocks; kb += Op::kChunk) body(slot, e, kb, min_u32(Op::kChunk, Op::kBlocks - kb));
      }
    } else {
      const u32 e = Op::kOver == Over::kExpertsUp ? expert(c, t.slot) : 0;
      const u32 lo = t.split * kSplitBlocks, hi = min_u32(lo + kSplitBlocks, Op::kBlocks);
      TILECC_ROLLED
      for (u32 kb = lo; kb < hi; kb += Op::kChunk) body(t.slot, e, kb, min_u32(Op::kChunk, hi - kb));
    }
  }
  static TK_FN u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }

  // ---- loader: one lane ---------------------------------------------------------------------------------------------
  static TK_FN void loader(Cx& c, const OpRow& r) {
    const uint8_t* weights = c.image(r.weights);
    const u32 n = n_tasks(c);
    TILECC_ROLLED
    for (u32 q = first_task(c, Op::kRotation); q < n; q += c.ncta) {
      const Task t = task(q);
      c.watch.item = q;
      for_each_chunk(c, t, [&](u32, u32 e, u32 kb, u32 nb) {
        tk::mbar_wait(c.w_empty(c.w.slot), c.w.phase ^ 1, c.watch);
        tk::mbar_arrive_expect_tx(c.w_full(c.w.slot), t.n_tiles * nb * kBlockBytes);
        TILECC_ROLLED
        for (u32 m = 0; m < t.n_tiles; ++m) {
          const u64 block = (static_cast<u64>(e) * Op::kTiles + t.tile0 + m) * Op::kBlocks + kb;
          tk::bulk_g2s(c.stage(c.w.slot) + m * Op::kChunk * kBlockBytes, weights + block * kBlockBytes, nb * kBlockBytes, c.w_full(c.w.slot));
        }
        c.w.template advance<C::kWStages>();
      });
    }
    if constexpr (Op::kOver == Over::kExpertsDown) tk::mbar_arrive(c.r_empty());
  }

  // ---- activations: C::kActWarps warps ------------------------------------------------------------------------------
  static TK_FN void activations(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Op::kRotation);
    if (q < n) {
      c.wait_inputs(r);
      const float rstd = Op::kSource == Source::kNorm ? row_rstd(c) : 0.f;
      TILECC_ROLLED
      for (; q < n; q += c.ncta) {
        const Task t = task(q);
        c.watch.item = q;
        for_each_chunk(c, t, [&](u32 slot, u32, u32 kb, u32 nb) {
          tk::mbar_wait(c.a_empty(c.a.slot), c.a.phase ^ 1, c.watch);
          if constexpr (Op::kSource == Source::kNorm) {
            normalise(c, r, rstd, kb, nb);
          } else {
            tk::fence_proxy_async();
            tk::syncwarp();  // no lane may still wait for this phase when lane 0 arrives, or it could miss a whole lap
            if (c.warp == 0) {
              tk::mbar_arrive_expect_tx(c.a_full(c.a.slot), nb * 2048);
              const u64 offset = Op::kSourceOffset + (static_cast<u64>(kRouted ? slot : 0) * Op::kBlocks + kb) * 2048;
              tk::bulk_g2s(c.act(c.a.slot), c.p.workspace + offset, nb * 2048, c.a_full(c.a.slot));
            } else {
              tk::mbar_arrive(c.a_full(c.a.slot));
            }
          }
          c.a.template advance<C::kASlots>();
        });
      }
    }
    if constexpr (Op::kOver == Over::kExpertsDown) {
      tk::syncwarp();
      tk::mbar_arrive(c.r_empty());
    }
  }

  // 1 / rms of row lane / 4, from the partial sums of squares that the reduce op left: lane t adds every fourth partial,
  // then the four lanes of a row add theirs in a fixed tree.
  static TK_FN float row_rstd(const Cx& c) {
    const u32 g = c.lane >> 2, t = c.lane & 3;
    float sum = 0.f;
    TILECC_ROLLED
    for (u32 u = t; u < (Op::kHidden + 63) / 64; u += 4) sum += tk::ldg_f32(c.p.workspace + Op::kSumSq + (u * kRows + g) * 4);
    sum += tk::shfl_xor(sum, 1);
    sum += tk::shfl_xor(sum, 2);
    return norm_rstd(sum, 1.0f / static_cast<float>(Op::kHidden), Op::kEps);
  }

  static TK_FN void normalise(Cx& c, const OpRow& r, float rstd, u32 kb, u32 nb) {
    const uint8_t* x = c.p.workspace + Op::kSourceOffset + kb * 2048;
    const uint8_t* norm = c.image(r.norm) + kb * 256;
    const u32 t = c.lane & 3;
    TILECC_ROLLED
    for (u32 s = c.warp; s < nb * 8; s += C::kActWarps) {
      const tk::u32x2 v = tk::ldg64(x + s * 256 + c.lane * 8), w = tk::ldg_nc64(norm + s * 32 + t * 8);
      const float y0 = norm_apply(tk::bf_lo(v.x), rstd, tk::bf_lo(w.x)), y1 = norm_apply(tk::bf_hi(v.x), rstd, tk::bf_hi(w.x));
      const float y2 = norm_apply(tk::bf_lo(v.y), rstd, tk::bf_lo(w.y)), y3 = norm_apply(tk::bf_hi(v.y), rstd, tk::bf_hi(w.y));
      tk::sts64(c.act(c.a.slot) + s * 256 + c.lane * 8, tk::u32x2{tk::cvt_bf16x2(y0, y1), tk::cvt_bf16x2(y2, y3)});
    }
    tk::syncwarp();
    tk::mbar_arrive(c.a_full(c.a.slot));
  }

  // ---- consumers: C::kConsumerWarps warps ---------------------------------------------------------------------------
  static TK_FN void consumer(Cx& c, const OpRow&) {
    const u32 n = n_tasks(c);
    TILECC_ROLLED
    for (u32 q = first_task(c, Op::kRotation); q < n; q += c.ncta) {
      const Task t = task(q);
      c.watch.item = q;
      float total[Op::kGroup][4], acc[Op::kGroup][4];
      clear(total);
      clear(acc);
      u32 last_slot = 0xffffffffu;
      for_each_chunk(c, t, [&](u32 slot, u32, u32, u32 nb) {
        if constexpr (Op::kOver == Over::kExpertsDown) {
          if (slot != last_slot && last_slot != 0xffffffffu) add_weighted(c, last_slot, total, acc);
          last_slot = slot;
        }
        tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
        tk::mbar_wait(c.w_full(c.w.slot), c.w.phase, c.watch);
        TK_UNROLL
        for (u32 i = 0; i < (Op::kChunk * 4 + C::kConsumerWarps - 1) / C::kConsumerWarps; ++i) {
          const u32 pair = c.warp + i * C::kConsumerWarps;
          if (pair < nb * 4) {
            u32 b[2][2];
            load_b_pair(c.act(c.a.slot), pair * 2, c.lane, b);
            TK_UNROLL
            for (u32 m = 0; m < Op::kGroup; ++m)
              if (m < t.n_tiles)
                mma_pair<Op::kFormat>(acc[m], c.stage(c.w.slot) + (m * Op::kChunk + pair / 4) * kBlockBytes, pair % 4, c.lane, b);
          }
        }
        tk::syncwarp();
        tk::mbar_arrive(c.a_empty(c.a.slot));
        tk::mbar_arrive(c.w_empty(c.w.slot));
        c.a.template advance<C::kASlots>();
        c.w.template advance<C::kWStages>();
      });
      if constexpr (Op::kOver == Over::kExpertsDown) {
        if (last_slot != 0xffffffffu) add_weighted(c, last_slot, total, acc);
      }
      tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);
      TK_UNROLL
      for (u32 m = 0; m < Op::kGroup; ++m) {
        const float(&v)[4] = Op::kOver == Over::kExpertsDown ? total[m] : acc[m];
        tk::sts128(c.exchange(c.x.slot) + ((c.warp * Op::kGroup + m) * 32 + c.lane) * 16,
                   tk::u32x4{tk::f2u(v[0]), tk::f2u(v[1]), tk::f2u(v[2]), tk::f2u(v[3])});
      }
      tk::syncwarp();
      tk::mbar_arrive(c.x_full(c.x.slot));
      c.x.template advance<C::kXSlots>();
    }
    if constexpr (Op::kOver == Over::kExpertsDown) {
      tk::syncwarp();
      tk::mbar_arrive(c.r_empty());
    }
  }

  static TK_FN void clear(float (&v)[Op::kGroup][4]) {
    TK_UNROLL
    for (u32 m = 0; m < Op::kGroup; ++m) {
      TK_UNROLL
      for (int j = 0; j < 4; ++j) v[m][j] = 0.f;
    }
  }

  // total += routing weight of the row * expert's result; a row that is not routed here has weight 0 and result 0.
  static TK_FN void add_weighted(const Cx& c, u32 slot, float (&total)[Op::kGroup][4], float (&acc)[Op::kGroup][4]) {
    const tk::u32x2 w = tk::lds64(c.route() + Cx::S::kRouteWeights + (slot * kRows + 2 * (c.lane & 3)) * 4);
    const float w0 = tk::u2f(w.x), w1 = tk::u2f(w.y);
    TK_UNROLL
    for (u32 m = 0; m < Op::kGroup; ++m) {
      total[m][0] += w0 * acc[m][0], total[m][1] += w1 * acc[m][1];
      total[m][2] += w0 * acc[m][2], total[m][3] += w1 * acc[m][3];
    }
    clear(acc);
  }

  // ---- store: one warp ----------------------------------------------------------------------------------------------
  static TK_FN void store(Cx& c, const OpRow& r) {
    typename Op::Epilogue epilogue;
    epilogue.begin(c, r);
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Op::kRotation);
    c.wait_idle(r, q, n);
    TILECC_ROLLED
    for (; q < n; q += c.ncta) {
      const Task t = task(q);
      c.watch.item = q;
      tk::mbar_wait(c.x_full(c.x.slot), c.x.phase, c.watch);
      TILECC_ROLLED
      for (u32 m = 0; m < t.n_tiles; ++m) {
        float v[4] = {0.f, 0.f, 0.f, 0.f};
        TK_UNROLL
        for (u32 w = 0; w < C::kConsumerWarps; ++w) {
          const tk::u32x4 p = tk::lds128(c.exchange(c.x.slot) + ((w * Op::kGroup + m) * 32 + c.lane) * 16);
          v[0] += tk::u2f(p.x), v[1] += tk::u2f(p.y), v[2] += tk::u2f(p.z), v[3] += tk::u2f(p.w);
        }
        epilogue.tile(c, r, t, t.tile0 + m, v);
      }
      tk::syncwarp();
      tk::mbar_arrive(c.x_empty(c.x.slot));
      c.x.template advance<C::kXSlots>();
    }
    epilogue.end(c, r);
    if constexpr (Op::kOver == Over::kExpertsDown) {
      tk::syncwarp();
      tk::mbar_arrive(c.r_empty());
    }
    c.arrive(Op::kCounter);
  }
};
}  // namespace tilecc
