// Weight-streaming matrix product of the token rows of a step: m16 tiles of weights are the M side, the rows are the N side
// of mma.m16n8k16. All four warp roles of the op, side by side:
//
//   loader        weight blocks -> weight ring            never waits for activations (experts: waits for the routing);
//                 with kPrefetches, once the ring is full of them, the weights of further ops -> L2
//   activations   stored fragments -> activation ring, bulk copies; what the CTA's tasks share is loaded once
//   consumers     each warp multiplies whole blocks: kWarpsK warps share the K blocks of a chunk, the others its tiles
//   store         sums the warps' partials in warp order, scales them by 1 / rms of the row behind a norm, runs the op's
//                 epilogue, signals once per (CTA, op)
//
// A task is a group of up to kGroup neighbouring m16 tiles. A stage of the weight ring holds one chunk of a task: kSlots
// experts x kGroup tiles x kChunk blocks, in this order. An activation slot holds kActChunk blocks of all row tiles, a
// multiple of kChunk, so more rows mean shorter chunks; partial tiles go to the store warp one row tile at a time. Which warp
// multiplies which block depends on kWarpsK alone, hence the bits of a row do not depend on the number of rows.
// Op (emitted) gives the shapes:
//   kFormat kTiles kBlocks kSplits kChunk kActChunk kGroup kSlots kWarpsK kRotation kCounter kPrefetches kOver kSource
//   kSourceOffset kSumSq kHidden kEps
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

// One chunk of a task: blocks [kb, kb + nb) of `slots` experts, from place `slot` of the active list on. `left`: blocks of
// this matrix row from kb to the end of the task; `into`: blocks of its activation slot before kb.
struct Chunk {
  u32 slot, slots;
  u32 kb, nb;
  u32 left, into;
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
  // Activations that all tasks of a split share stay in the ring while it has a slot for every chunk of them.
  static constexpr bool kResident = !kDown && (kSplitBlocks + Op::kActChunk - 1) / Op::kActChunk <= C::kASlots;
  // What the sums are still to be multiplied by, see mma_formats.cuh.
  static constexpr float kRest = kFormat == Format::kFp8 || kFormat == Format::kMxfp4 ? 1.0f : kActRest;

  static constexpr u32 kNone = 0xffffffffu;

  static_assert(C::kConsumerWarps % Op::kWarpsK == 0, "the warps that share K divide the consumers");
  static_assert(kTurn == 1 || Op::kWarpsK % Op::kChunk == 0, "short chunks are dealt to the warps in turns");
  static_assert(Op::kSlots == 1 || (kDown && kWholeK), "only whole experts share a chunk");
  static_assert(Op::kSlots * kSlotStride <= C::kWStageBytes, "a weight stage holds one chunk of a group");
  static_assert(Op::kActChunk % Op::kChunk == 0 && (!kDown || Op::kActChunk == Op::kChunk), "chunks do not cross activation slots");
  static_assert(Op::kSlots * Op::kActChunk * kActBlock <= C::kASlotBytes, "an activation slot holds kActChunk blocks");
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
          body(Chunk{slot, min_u32(Op::kSlots, end - slot), 0, Op::kBlocks, Op::kBlocks, 0});
        } else {
          TILECC_ROLLED
          for (u32 kb = 0; kb < Op::kBlocks; kb += Op::kChunk) body(Chunk{slot, 1, kb, min_u32(Op::kChunk, Op::kBlocks - kb), Op::kBlocks - kb, 0});
        }
      }
    } else {
      const u32 lo = t.split * kSplitBlocks, hi = min_u32(lo + kSplitBlocks, Op::kBlocks);
      TILECC_ROLLED
      for (u32 kb = lo; kb < hi; kb += Op::kChunk) body(Chunk{t.slot, 1, kb, min_u32(Op::kChunk, hi - kb), hi - kb, (kb - lo) % Op::kActChunk});
    }
  }
  static TK_FN u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }

  // ---- loader: one lane ---------------------------------------------------------------------------------------------
  static TK_FN void loader(Cx& c, const OpRow& r) {
    const uint8_t* weights = c.image(r.weights);
    const u32 n = n_tasks(c);
    u32 stages = 0;
    TILECC_ROLLED
    for (u32 q = first_task(c, Op::kRotation); q < n; q += c.ncta) {
      const Task t = task(q);
      const u32 up_expert = kUp ? expert(c, t.slot) : 0;
      c.watch.item = q;
      for_each_chunk(c, t, [&](const Chunk& k) {
        tk::mbar_wait(c.w_empty(c.w.slot), c.w.phase ^ 1, c.watch);
        tk::mbar_arrive_expect_tx(c.w_full(c.w.slot), k.slots * t.n_tiles * k.nb * kBlockBytes);
        for_each_piece(c, weights, t, k, up_expert, [&](u32 at, const uint8_t* from, u32 bytes) {
          tk::bulk_g2s(c.stage(c.w.slot) + at, from, bytes, c.w_full(c.w.slot));
        });
        c.w.template advance<C::kWStages>();
        if constexpr (Op::kPrefetches) {
          if (++stages == C::kWStages) Op::prefetch(c);
        }
      });
    }
    if constexpr (Op::kPrefetches) {
      if (stages < C::kWStages) Op::prefetch(c);
    }
    if constexpr (kDown) tk::mbar_arrive(c.r_empty());
  }

  // Calls body(place in the stage, source, bytes) for the contiguous pieces of a chunk.
  template <class F>
  static TK_FN void for_each_piece(const Cx& c, const uint8_t* weights, const Task& t, const Chunk& k, u32 up_expert, F&& body) {
    TILECC_ROLLED
    for (u32 j = 0; j < k.slots; ++j) {
      const u32 e = kDown ? expert(c, k.slot + j) : up_expert;
      const uint8_t* from = weights + ((static_cast<u64>(e) * Op::kTiles + t.tile0) * Op::kBlocks + k.kb) * kBlockBytes;
      if constexpr (kWholeK) {
        body(j * kSlotStride, from, t.n_tiles * kTileStride);
      } else {
        TILECC_ROLLED
        for (u32 m = 0; m < t.n_tiles; ++m) body(j * kSlotStride + m * kTileStride, from + m * (Op::kBlocks * kBlockBytes), k.nb * kBlockBytes);
      }
    }
  }

  // Asks for this CTA's stages [first, first + count) of the op, to be in L2 when the ring has room for them. One lane.
  static TK_FN void prefetch(Cx& c, const OpRow& r, u32 first, u32 count) {
    const uint8_t* weights = c.image(r.weights);
    const u32 n = n_tasks(c);
    u32 stage = 0;
    TILECC_ROLLED
    for (u32 q = first_task(c, Op::kRotation); q < n && stage < first + count; q += c.ncta) {
      const Task t = task(q);
      const u32 up_expert = kUp ? expert(c, t.slot) : 0;
      for_each_chunk(c, t, [&](const Chunk& k) {
        if (stage >= first && stage < first + count)
          for_each_piece(c, weights, t, k, up_expert, [&](u32, const uint8_t* from, u32 bytes) { tk::prefetch_l2(from, bytes); });
        ++stage;
      });
    }
  }

  // ---- activations: one warp copies, the others only count -----------------------------------------------------------
  static TK_FN void activations(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Op::kRotation);
    if (q < n) {
      c.wait_inputs(r);
      u32 loaded = kNone;
      TILECC_ROLLED
      for (; q < n; q += c.ncta) {
        const Task t = task(q);
        if (kResident && t.split == loaded) continue;
        loaded = t.split;
        c.watch.item = q;
        for_each_chunk(c, t, [&](const Chunk& k) {
          if (k.into != 0) return;
          const uint8_t* from = c.p.workspace + Op::kSourceOffset + (static_cast<u64>(kDown ? k.slot : 0) * Op::kBlocks + k.kb) * kActBlock;
          tk::mbar_wait(c.a_empty(c.a.slot), c.a.phase ^ 1, c.watch);
          tk::syncwarp();  // no lane may still wait for this phase when lane 0 arrives, or it could miss a whole lap
          if (c.warp == 0) {
            const u32 bytes = k.slots * min_u32(k.left, Op::kActChunk) * kActBlock;
            tk::mbar_arrive_expect_tx(c.a_full(c.a.slot), bytes);
            tk::bulk_g2s(c.act(c.a.slot), from, bytes, c.a_full(c.a.slot));
          } else {
            tk::mbar_arrive(c.a_full(c.a.slot));
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
    Ring shared = c.a;  // where the activations of this split begin
    bool fresh = true;  // they are not known to have landed
    TILECC_ROLLED
    for (u32 q = first_task(c, Op::kRotation); q < n; q += c.ncta) {
      const Task t = task(q);
      // The last task that reads them gives the slots back, chunk by chunk.
      const bool last = !kResident || q + c.ncta >= n || task(q + c.ncta).split != t.split;
      if constexpr (kResident) c.a = shared;
      const u32 tiles = tile < t.n_tiles ? min_u32(t.n_tiles - tile, kWarpTiles) : 0;
      c.watch.item = q;
      Acc total, acc;
      clear(total);
      clear(acc);
      for_each_chunk(c, t, [&](const Chunk& k) {
        if (fresh && k.into == 0) tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
        tk::mbar_wait(c.w_full(c.w.slot), c.w.phase, c.watch);
        if (kWholeTiles || tiles != 0) {
          const smem_t stage = c.stage(c.w.slot);
          const BlockAt at = {stage + lane.codes, stage + lane.scales, c.act(c.a.slot) + k.into * kActBlock + lane.acts};
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
        tk::mbar_arrive(c.w_empty(c.w.slot));
        c.w.template advance<C::kWStages>();
        if (k.nb == k.left || k.into + k.nb == Op::kActChunk) {
          if (last) tk::mbar_arrive(c.a_empty(c.a.slot));
          c.a.template advance<C::kASlots>();
        }
      });
      if (last) shared = c.a;
      fresh = last;
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

  // What the sums of rows 2t, 2t + 1 (t = lane % 4) of each row tile are multiplied by: behind a norm 1 / rms of the row,
  // from the partial sums of squares that the op which wrote y left. Two lanes have a unit of 64 columns, four rows each; every
  // lane adds each 16th unit, then a fixed tree adds the lanes.
  static TK_FN void row_factors(const Cx& c, float (&f)[kRowTiles][2]) {
    TK_UNROLL
    for (u32 i = 0; i < kRowTiles; ++i) {
      f[i][0] = f[i][1] = kRest;
      if constexpr (Op::kSource == Source::kNorm) {
        constexpr u32 kUnits = (Op::kHidden + 63) / 64, kBatch = 6;
        const uint8_t* sums = c.p.workspace + Op::kSumSq + (i * 8 + (c.lane & 1) * 4) * 4;
        float s[4] = {0.f, 0.f, 0.f, 0.f};
        TILECC_ROLLED
        for (u32 u = c.lane / 2; u < kUnits; u += 16 * kBatch) {
          tk::u32x4 v[kBatch];
          TK_UNROLL
          for (u32 j = 0; j < kBatch; ++j) v[j] = u + 16 * j < kUnits ? tk::ldg128(sums + (u + 16 * j) * kRows * 4) : tk::u32x4{0, 0, 0, 0};
          TK_UNROLL
          for (u32 j = 0; j < kBatch; ++j) s[0] += tk::u2f(v[j].x), s[1] += tk::u2f(v[j].y), s[2] += tk::u2f(v[j].z), s[3] += tk::u2f(v[j].w);
        }
        TK_UNROLL
        for (int m = 2; m < 32; m *= 2) {
          TK_UNROLL
          for (int j = 0; j < 4; ++j) s[j] += tk::shfl_xor(s[j], m);
        }
        // Lane 0 has rows 0-3 of the row tile, lane 1 rows 4-7.
        const u32 from = (c.lane & 3) / 2;
        const float low[2] = {tk::shfl_idx(s[0], from), tk::shfl_idx(s[1], from)};
        const float high[2] = {tk::shfl_idx(s[2], from), tk::shfl_idx(s[3], from)};
        TK_UNROLL
        for (int j = 0; j < 2; ++j) f[i][j] = norm_rstd((c.lane & 1) != 0 ? high[j] : low[j], 1.0f / static_cast<float>(Op::kHidden), Op::kEps) * kRest;
      }
    }
  }

  // ---- store: one warp ----------------------------------------------------------------------------------------------
  static TK_FN void store(Cx& c, const OpRow& r) {
    typename Op::Epilogue epilogue;
    epilogue.begin(c, r);
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Op::kRotation);
    if constexpr (Op::kSource == Source::kNorm) {
      c.wait_inputs(r);
    } else {
      c.wait_idle(r, q, n);
    }
    float factors[kRowTiles][2];
    row_factors(c, factors);
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
          float f[2] = {factors[0][0], factors[0][1]};
          TK_UNROLL
          for (u32 j = 1; j < kRowTiles; ++j) {
            if (j == i) f[0] = factors[j][0], f[1] = factors[j][1];
          }
          v[0] *= f[0], v[1] *= f[1], v[2] *= f[0], v[3] *= f[1];
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
