// Weight-streaming matrix product of the token rows of a step: m16 tiles of weights are the M side, the rows are the N side
// of mma.m16n8k16. All four warp roles of the op, side by side:
//
//   loader        weight blocks -> weight ring            never waits for activations (experts: waits for the routing)
//   activations   x (normalised) or a stored fragment -> activation ring, one K chunk at a time
//   consumers     each warp multiplies whole blocks: kWarpsK warps share the K blocks of a chunk, the others its tiles
//   store         sums the warps' partials in warp order, runs the op's epilogue, signals once per (CTA, op)
//
// A task is a group of up to kGroup neighbouring m16 tiles that share their activations. A stage of the weight ring holds one
// chunk of a task: kSlots experts x kGroup tiles x kChunk blocks, in this order. A chunk's activations of all row tiles fill
// one slot of the activation ring, so more rows mean shorter chunks; partial tiles go to the store warp one row tile at a
// time. Which warp multiplies which block depends on kWarpsK alone, hence the bits of a row do not depend on the number of
// rows. Op (emitted) gives the shapes:
//   kFormat kTiles kBlocks kSplits kChunk kGroup kSlots kWarpsK kRotation kCounter kOver kSource kSourceOffset kSumSq
//   kHidden kEps
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

// One chunk of a task: blocks [kb, kb + nb) of `slots` experts, from place `slot` of the active list on.
struct Chunk {
  u32 slot, slots;
  u32 kb, nb;
};

template <class C, class Op>
struct Gemv {
  using Cx = Ctx<C>;
  static constexpr Format kFormat = Op::kFormat;
  static constexpr u32 kGroups = (Op::kTiles + Op::kGroup - 1) / Op::kGroup;
  static constexpr u32 kBlockBytes = Block<kFormat>::kBytes;
  static constexpr u32 kTileStride = Op::kChunk * kBlockBytes, kSlotStride = Op::kGroup * kTileStride;
  static constexpr bool kUp = Op::kOver == Over::kExpertsUp, kDown = Op::kOver == Over::kExpertsDown;
  static constexpr u32 kSplitBlocks = kDown ? Op::kBlocks : (Op::kBlocks + Op::kSplits - 1) / Op::kSplits;
  static constexpr u32 kActBlock = 2048 * kRowTiles;

  // Consumer warp w takes blocks w % kWarpsK, + kWarpsK, ... of a split, and kWarpTiles tiles from w / kWarpsK * kWarpTiles on.
  // Chunks with fewer than kWarpsK blocks are dealt in turns of kTurn chunks.
  static constexpr u32 kWarpsM = C::kConsumerWarps / Op::kWarpsK;
  static constexpr u32 kTurn = Op::kWarpsK > Op::kChunk ? Op::kWarpsK / Op::kChunk : 1;
  static constexpr u32 kWarpTiles = (Op::kGroup + kWarpsM - 1) / kWarpsM;
  static constexpr u32 kWarpBlocks = (Op::kChunk + Op::kWarpsK - 1) / Op::kWarpsK;
  static constexpr bool kWholeTiles = Op::kTiles % Op::kGroup == 0 && Op::kGroup == kWarpTiles * kWarpsM;
  static constexpr bool kWholeChunks = kSplitBlocks % Op::kChunk == 0 && (kTurn > 1 || Op::kChunk % Op::kWarpsK == 0) && (kDown || kSplitBlocks * Op::kSplits == Op::kBlocks);
  // All of K in one chunk: an expert's tiles are one contiguous piece of the image.
  static constexpr bool kWholeK = Op::kChunk == Op::kBlocks;
  // Both scaled formats want activations multiplied by 2^96, see mma_formats.cuh.
  static constexpr bool kScaledActs = kFormat == Format::kFp8 || kFormat == Format::kMxfp4;

  static_assert(C::kConsumerWarps % Op::kWarpsK == 0, "the warps that share K divide the consumers");
  static_assert(kTurn == 1 || Op::kWarpsK % Op::kChunk == 0, "short chunks are dealt to the warps in turns");
  static_assert(Op::kSlots == 1 || (kDown && kWholeK), "only whole experts share a chunk");
  static_assert(Op::kSlots * kSlotStride <= C::kWStageBytes, "a weight stage holds one chunk of a group");
  static_assert(Op::kSlots * Op::kChunk * kActBlock <= C::kASlotBytes, "an activation slot holds one chunk");
  static_assert(Op::kWarpsK * Op::kGroup * 512 <= C::kXSlotBytes, "an exchange slot holds all partial tiles of a row tile");

  static TK_FN u32 n_active(const Cx& c) { return tk::lds32(c.route()); }
  static TK_FN u32 expert(const Cx& c, u32 slot) { return tk::lds32(c.route() + Cx::S::kRouteIds + 4 * slot); }

  static TK_FN u32 n_tasks(const Cx& c) {
    if constexpr (kUp) return n_active(c) * kGroups;
    return kGroups * Op::kSplits;
  }
  static TK_FN Task task(u32 q) {
    const u32 group = q % kGroups, outer = q / kGroups, tile0 = group * Op::kGroup;
    const u32 left = Op::kTiles - tile0;
    return {tile0, min_u32(left, Op::kGroup), kUp ? 0 : outer, outer};
  }

  // Calls body(chunk) for every chunk of a task, in the order that fixes the result's bits: ascending columns, for the down
  // projection ascending expert ids outside.
  template <class F>
  static TK_FN void for_each_chunk(const Cx& c, const Task& t, F&& body) {
    if constexpr (kDown) {
      // A split owns a range of expert ids, so that a row's bits do not depend on the other rows' experts.
      const u32 end = tk::lds32(c.route() + Cx::S::kRouteStarts + 4 * (t.split + 1));
      TILECC_ROLLED
      for (u32 slot = tk::lds32(c.route() + Cx::S::kRouteStarts + 4 * t.split); slot < end; slot += Op::kSlots) {
        if constexpr (kWholeK) {
          body(Chunk{slot, min_u32(Op::kSlots, end - slot), 0, Op::kBlocks});
        } else {
          TILECC_ROLLED
          for (u32 kb = 0; kb < Op::kBlocks; kb += Op::kChunk) body(Chunk{slot, 1, kb, min_u32(Op::kChunk, Op::kBlocks - kb)});
        }
      }
    } else {
      const u32 lo = t.split * kSplitBlocks, hi = min_u32(lo + kSplitBlocks, Op::kBlocks);
      TILECC_ROLLED
      for (u32 kb = lo; kb < hi; kb += Op::kChunk) body(Chunk{t.slot, 1, kb, min_u32(Op::kChunk, hi - kb)});
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
      const u32 up_expert = kUp ? expert(c, t.slot) : 0;
      c.watch.item = q;
      for_each_chunk(c, t, [&](const Chunk& k) {
        tk::mbar_wait(c.w_empty(c.w.slot), c.w.phase ^ 1, c.watch);
        tk::mbar_arrive_expect_tx(c.w_full(c.w.slot), k.slots * t.n_tiles * k.nb * kBlockBytes);
        TILECC_ROLLED
        for (u32 j = 0; j < k.slots; ++j) {
          const u32 e = kDown ? expert(c, k.slot + j) : up_expert;
          const uint8_t* from = weights + ((static_cast<u64>(e) * Op::kTiles + t.tile0) * Op::kBlocks + k.kb) * kBlockBytes;
          const smem_t to = c.stage(c.w.slot) + j * kSlotStride;
          if constexpr (kWholeK) {
            tk::bulk_g2s(to, from, t.n_tiles * kTileStride, c.w_full(c.w.slot));
          } else {
            TILECC_ROLLED
            for (u32 m = 0; m < t.n_tiles; ++m)
              tk::bulk_g2s(to + m * kTileStride, from + m * (Op::kBlocks * kBlockBytes), k.nb * kBlockBytes, c.w_full(c.w.slot));
          }
        }
        c.w.template advance<C::kWStages>();
      });
    }
    if constexpr (kDown) tk::mbar_arrive(c.r_empty());
  }

  // ---- activations: C::kActWarps warps ------------------------------------------------------------------------------
  static TK_FN void activations(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Op::kRotation);
    if (q < n) {
      c.wait_inputs(r);
      float rstd[kOwnTiles] = {};
      if constexpr (Op::kSource == Source::kNorm) row_rstd(c, rstd);
      TILECC_ROLLED
      for (; q < n; q += c.ncta) {
        const Task t = task(q);
        c.watch.item = q;
        for_each_chunk(c, t, [&](const Chunk& k) {
          tk::mbar_wait(c.a_empty(c.a.slot), c.a.phase ^ 1, c.watch);
          if constexpr (Op::kSource == Source::kNorm) {
            normalise(c, r, rstd, k);
          } else {
            const uint8_t* from = c.p.workspace + Op::kSourceOffset + (static_cast<u64>(kUp || kDown ? k.slot : 0) * Op::kBlocks + k.kb) * kActBlock;
            if constexpr (kScaledActs) {
              scale(c, from, k.slots * k.nb);
            } else {
              copy(c, from, k.slots * k.nb * kActBlock);
            }
          }
          c.a.template advance<C::kASlots>();
        });
      }
    }
    if constexpr (kDown) {
      tk::syncwarp();
      tk::mbar_arrive(c.r_empty());
    }
  }

  static TK_FN void copy(Cx& c, const uint8_t* from, u32 bytes) {
    tk::fence_proxy_async();
    tk::syncwarp();  // no lane may still wait for this phase when lane 0 arrives, or it could miss a whole lap
    if (c.warp == 0) {
      tk::mbar_arrive_expect_tx(c.a_full(c.a.slot), bytes);
      tk::bulk_g2s(c.act(c.a.slot), from, bytes, c.a_full(c.a.slot));
    } else {
      tk::mbar_arrive(c.a_full(c.a.slot));
    }
  }

  // The stored fragment times 2^96, through registers: 512 bytes per warp and turn, kBatch turns in flight.
  static TK_FN void scale(Cx& c, const uint8_t* from, u32 blocks) {
    constexpr u32 kBatch = 4 / C::kActWarps > 0 ? 4 / C::kActWarps : 1, kTurn = C::kActWarps * kBatch;
    static_assert(4 % C::kActWarps == 0, "a block is four turns");
    TILECC_ROLLED
    for (u32 s = c.warp; s < blocks * 4 * kRowTiles; s += kTurn) {
      tk::u32x4 v[kBatch];
      TK_UNROLL
      for (u32 j = 0; j < kBatch; ++j) v[j] = tk::ldg128(from + (s + j * C::kActWarps) * 512 + c.lane * 16);
      TK_UNROLL
      for (u32 j = 0; j < kBatch; ++j) {
        const tk::u32x4 y = {tk::bf16x2_mul(v[j].x, kActFactorBf16x2), tk::bf16x2_mul(v[j].y, kActFactorBf16x2),
                             tk::bf16x2_mul(v[j].z, kActFactorBf16x2), tk::bf16x2_mul(v[j].w, kActFactorBf16x2)};
        tk::sts128(c.act(c.a.slot) + (s + j * C::kActWarps) * 512 + c.lane * 16, y);
      }
    }
    tk::syncwarp();
    tk::mbar_arrive(c.a_full(c.a.slot));
  }

  // One row tile: its k16 steps are dealt over the activation warps. More: the row tiles are.
  static constexpr u32 kStepWarps = kRowTiles == 1 ? C::kActWarps : 1, kTileWarps = C::kActWarps / kStepWarps;
  static constexpr u32 kOwnTiles = kRowTiles / kTileWarps;
  static_assert(kRowTiles % kTileWarps == 0, "every activation warp has as many row tiles");

  // 1 / rms of row lane / 4 of this warp's row tiles, from the partial sums of squares that the reduce op left: lane t adds
  // every fourth partial, then the four lanes of a row add theirs in a fixed tree.
  static TK_FN void row_rstd(const Cx& c, float (&rstd)[kOwnTiles]) {
    const u32 g = c.lane >> 2, t = c.lane & 3;
    TK_UNROLL
    for (u32 i = 0; i < kOwnTiles; ++i) {
      const u32 row = row_tile(c, i) * 8 + g;
      float sum = 0.f;
      TILECC_ROLLED
      for (u32 u = t; u < (Op::kHidden + 63) / 64; u += 4) sum += tk::ldg_f32(c.p.workspace + Op::kSumSq + (u * kRows + row) * 4);
      sum += tk::shfl_xor(sum, 1);
      sum += tk::shfl_xor(sum, 2);
      rstd[i] = norm_rstd(sum, 1.0f / static_cast<float>(Op::kHidden), Op::kEps);
      if constexpr (kScaledActs) rstd[i] *= kActFactor;  // a power of two: it commutes with every rounding that follows
    }
  }
  static TK_FN u32 row_tile(const Cx& c, u32 i) { return kRowTiles == 1 ? 0 : i * kTileWarps + c.warp; }

  // The loads of a batch are in flight together.
  static TK_FN void normalise(Cx& c, const OpRow& r, const float (&rstd)[kOwnTiles], const Chunk& k) {
    const uint8_t* x = c.p.workspace + Op::kSourceOffset + k.kb * kActBlock;
    const uint8_t* norm = c.image(r.norm) + k.kb * 256;
    const u32 t = c.lane & 3, steps = k.nb * 8;
    constexpr u32 kBatch = 8;
    TILECC_ROLLED
    for (u32 s0 = kStepWarps == 1 ? 0 : c.warp; s0 < steps; s0 += kBatch * kStepWarps) {
      TK_UNROLL
      for (u32 i = 0; i < kOwnTiles; ++i) {
        tk::u32x2 v[kBatch], w[kBatch];
        TK_UNROLL
        for (u32 j = 0; j < kBatch; ++j) {
          const u32 s = s0 + j * kStepWarps;
          if (s < steps) v[j] = tk::ldg64(x + frag_step(s, row_tile(c, i)) * 256 + c.lane * 8), w[j] = tk::ldg_nc64(norm + s * 32 + t * 8);
        }
        TK_UNROLL
        for (u32 j = 0; j < kBatch; ++j) {
          const u32 s = s0 + j * kStepWarps;
          if (s >= steps) continue;
          const float y0 = norm_apply(tk::bf_lo(v[j].x), rstd[i], tk::bf_lo(w[j].x)), y1 = norm_apply(tk::bf_hi(v[j].x), rstd[i], tk::bf_hi(w[j].x));
          const float y2 = norm_apply(tk::bf_lo(v[j].y), rstd[i], tk::bf_lo(w[j].y)), y3 = norm_apply(tk::bf_hi(v[j].y), rstd[i], tk::bf_hi(w[j].y));
          tk::sts64(c.act(c.a.slot) + frag_step(s, row_tile(c, i)) * 256 + c.lane * 8, tk::u32x2{tk::cvt_bf16x2(y0, y1), tk::cvt_bf16x2(y2, y3)});
        }
      }
    }
    tk::syncwarp();
    tk::mbar_arrive(c.a_full(c.a.slot));
  }

  // ---- consumers: C::kConsumerWarps warps ---------------------------------------------------------------------------
  using Acc = float[kWarpTiles][kRowTiles][4];

  static TK_FN void consumer(Cx& c, const OpRow&) {
    const u32 n = n_tasks(c);
    const u32 wk = c.warp % Op::kWarpsK, tile = c.warp / Op::kWarpsK * kWarpTiles;
    const u32 block = kTurn == 1 ? wk : wk % Op::kChunk;  // of a chunk: this warp's first
    const u32 mine = (tile * Op::kChunk + block) * kBlockBytes;
    BlockAt lane = {mine + c.lane * 16, mine + c.lane / 4 * 8, block * kActBlock + c.lane * 8};
    // Kept in registers: left to itself the compiler computes them again for every chunk.
    tk::opaque(lane.codes), tk::opaque(lane.scales), tk::opaque(lane.acts);
    TILECC_ROLLED
    for (u32 q = first_task(c, Op::kRotation); q < n; q += c.ncta) {
      const Task t = task(q);
      const u32 tiles = tile < t.n_tiles ? min_u32(t.n_tiles - tile, kWarpTiles) : 0;
      c.watch.item = q;
      Acc total, acc;
      clear(total);
      clear(acc);
      for_each_chunk(c, t, [&](const Chunk& k) {
        tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
        tk::mbar_wait(c.w_full(c.w.slot), c.w.phase, c.watch);
        if (kWholeTiles || tiles != 0) {
          const smem_t stage = c.stage(c.w.slot);
          const BlockAt at = {stage + lane.codes, stage + lane.scales, c.act(c.a.slot) + lane.acts};
          TK_UNROLL
          for (u32 j = 0; j < Op::kSlots; ++j) {
            if (Op::kSlots > 1 && j >= k.slots) break;
            if constexpr (kDown && kWholeK) clear(acc);
            if (kTurn == 1 || (k.kb - (kDown ? 0 : t.split * kSplitBlocks)) / Op::kChunk % kTurn == wk / Op::kChunk)
              multiply(acc, at, j, block, k.nb, tiles);
            if constexpr (kDown) {
              if (kWholeK || k.kb + k.nb == Op::kBlocks) add_weighted(c, k.slot + j, total, acc);
              if constexpr (!kWholeK) {
                if (k.kb + k.nb == Op::kBlocks) clear(acc);
              }
            }
          }
        }
        tk::syncwarp();
        tk::mbar_arrive(c.a_empty(c.a.slot));
        tk::mbar_arrive(c.w_empty(c.w.slot));
        c.a.template advance<C::kASlots>();
        c.w.template advance<C::kWStages>();
      });
      TK_UNROLL
      for (u32 i = 0; i < kRowTiles; ++i) {
        if (i >= c.row_tiles()) break;
        tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);
        TK_UNROLL
        for (u32 m = 0; m < kWarpTiles; ++m) {
          if (!kWholeTiles && m >= tiles) continue;
          const float(&v)[4] = kDown ? total[m][i] : acc[m][i];
          tk::sts128(c.exchange(c.x.slot) + partial_at(wk, tile + m) + c.lane * 16, tk::u32x4{tk::f2u(v[0]), tk::f2u(v[1]), tk::f2u(v[2]), tk::f2u(v[3])});
        }
        tk::syncwarp();
        tk::mbar_arrive(c.x_full(c.x.slot));
        c.x.template advance<C::kXSlots>();
      }
    }
    if constexpr (kDown) {
      tk::syncwarp();
      tk::mbar_arrive(c.r_empty());
    }
  }

  // This warp's blocks of slot j of a stage, from block `first` of the chunk on.
  static TK_FN void multiply(Acc& acc, const BlockAt& at, u32 j, u32 first, u32 nb, u32 tiles) {
    TK_UNROLL
    for (u32 i = 0; i < kWarpBlocks; ++i) {
      if (!kWholeChunks && first + i * Op::kWarpsK >= nb) continue;
      const u32 block = j * kSlotStride + i * Op::kWarpsK * kBlockBytes;
      const BlockAt mine = {at.codes + block, at.scales + block, at.acts + (j * Op::kChunk + i * Op::kWarpsK) * kActBlock};
      if constexpr (kRowTiles == 1) {
        mma_block<kFormat, kRowTiles, kWarpTiles, kTileStride, kWholeTiles>(acc, mine, tiles);
      } else {
        mma_rows<kFormat, kRowTiles, kWarpTiles, kTileStride, kWholeTiles>(acc, mine, tiles);
      }
    }
  }

  // Exchange slot, of one row tile: [warp along K][tile of the group][lane 32][4 f32].
  static TK_FN u32 partial_at(u32 wk, u32 m) { return (wk * Op::kGroup + m) * 512; }

  static TK_FN void clear(Acc& v) {
    TK_UNROLL
    for (u32 m = 0; m < kWarpTiles; ++m) {
      TK_UNROLL
      for (u32 i = 0; i < kRowTiles; ++i) v[m][i][0] = v[m][i][1] = v[m][i][2] = v[m][i][3] = 0.f;
    }
  }

  // total += routing weight of the row * expert's result; a row that is not routed here has weight 0 and result 0.
  static TK_FN void add_weighted(const Cx& c, u32 slot, Acc& total, const Acc& acc) {
    const auto weights = c.slot_weights(slot);
    TK_UNROLL
    for (u32 i = 0; i < kRowTiles; ++i) {
      const tk::u32x2 w = weights.pair(i, 2 * (c.lane & 3));
      const float w0 = tk::u2f(w.x), w1 = tk::u2f(w.y);
      TK_UNROLL
      for (u32 m = 0; m < kWarpTiles; ++m) {
        total[m][i][0] = tk::fma_(w0, acc[m][i][0], total[m][i][0]), total[m][i][1] = tk::fma_(w1, acc[m][i][1], total[m][i][1]);
        total[m][i][2] = tk::fma_(w0, acc[m][i][2], total[m][i][2]), total[m][i][3] = tk::fma_(w1, acc[m][i][3], total[m][i][3]);
      }
    }
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
      TILECC_ROLLED
      for (u32 i = 0; i < c.row_tiles(); ++i) {
        tk::mbar_wait(c.x_full(c.x.slot), c.x.phase, c.watch);
        TILECC_ROLLED
        for (u32 m = 0; m < t.n_tiles; ++m) {
          float v[4] = {0.f, 0.f, 0.f, 0.f};
          TK_UNROLL
          for (u32 w = 0; w < Op::kWarpsK; ++w) {
            const tk::u32x4 p = tk::lds128(c.exchange(c.x.slot) + partial_at(w, m) + c.lane * 16);
            v[0] += tk::u2f(p.x), v[1] += tk::u2f(p.y), v[2] += tk::u2f(p.z), v[3] += tk::u2f(p.w);
          }
          epilogue.tile(c, r, t, t.tile0 + m, i, v);
        }
        tk::syncwarp();
        tk::mbar_arrive(c.x_empty(c.x.slot));
        c.x.template advance<C::kXSlots>();
      }
    }
    epilogue.end(c, r);
    if constexpr (kDown) {
      tk::syncwarp();
      tk::mbar_arrive(c.r_empty());
    }
    c.arrive(Op::kCounter);
  }
};
}  // namespace tilecc
