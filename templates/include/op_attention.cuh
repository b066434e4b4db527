// Flash-decoding attention over the KV cache. One m16 tile holds the query heads of one token row that share a KV head.
// A task is (row, KV head, split); its KV blocks of 16 positions are dealt to the consumer warps in turn, every warp
// keeps its own running maximum, denominator and output, and the store warp merges the warps in warp order.
//
//   loader        nothing: keys and values depend on this step
//   activations   query fragments, then KV blocks -> activation ring
//   consumers     S = Q K^T, online softmax, O += P V
//   store         merges the warps; with one split also the sink and the output, otherwise a partial for the merge op
//
// Attn (emitted): kHeads kKvHeads kHeadSteps kValueDim kWindow kSplits kChunkBlocks kSink kScale kQueries kOut
//   kPartials kRotation kCounter Kv, and merge(m, d, sink, scale) / combine(m, d, m1, d1, scale) over the warps.
#pragma once
#include "op_common.cuh"

namespace tilecc {
// KV cache of one layer: [sequence][KV head][block of 16 positions], a block in B-fragment order for both products, so
// that it is one bulk copy. Sliding layers use their blocks as a ring. K: kKvHeads kHeadSteps kValueDim kBlocks
template <class K>
struct KvCache {
  static constexpr u32 kKeyBytes = 2 * K::kHeadSteps * 256;
  static constexpr u32 kValueTiles = (K::kValueDim + 7) / 8;
  static constexpr u32 kBlockBytes = kKeyBytes + kValueTiles * 256;
  static constexpr u64 kSequenceBytes = static_cast<u64>(K::kKvHeads) * K::kBlocks * kBlockBytes;

  // Key of block position j, dimension d: n8 tile j / 8, k16 step d / 16.
  static TK_FN u32 key_bytes(u32 j, u32 d) {
    return (((j / 8) * K::kHeadSteps + d / 16) * 32 + (j % 8) * 4 + (d % 8) / 2) * 8 + ((d % 16) / 8) * 4 + (d % 2) * 2;
  }
  // Value: n8 tile d / 8, position j runs along the k16 step.
  static TK_FN u32 value_bytes(u32 j, u32 d) { return kKeyBytes + ((d / 8) * 32 + (d % 8) * 4 + (j % 8) / 2) * 8 + (j / 8) * 4 + (j % 2) * 2; }

  template <class Cx>
  static TK_FN uint8_t* block(const Cx& c, const OpRow& r, const tilecc_row& row, u32 head, u32 position_block) {
    return c.p.kv + static_cast<u64>(r.kv) * kImageUnit + row.seq * kSequenceBytes +
           static_cast<u64>(head * K::kBlocks + position_block % K::kBlocks) * kBlockBytes;
  }
};

template <class C, class Attn>
struct Attention {
  using Cx = Ctx<C>;
  using Kv = typename Attn::Kv;
  static constexpr u32 kGroup = Attn::kHeads / Attn::kKvHeads;
  static constexpr u32 kQueryBytes = Attn::kHeadSteps * 512;
  static constexpr u32 kTiles = Kv::kValueTiles;
  static constexpr u32 kStats = C::kConsumerWarps * kTiles * 512;  // exchange: outputs, then [warp][head][max, sum]
  static constexpr u32 kPartialFloats = 2 + Attn::kValueDim;
  static_assert(kGroup <= 16, "the query heads of one KV head fill at most one m16 tile");
  static_assert(kStats + C::kConsumerWarps * 128 <= C::kXSlotBytes, "an exchange slot holds the warps' outputs");
  static_assert(Kv::kBlockBytes <= C::kASlotBytes && kQueryBytes <= C::kASlotBytes, "an activation slot holds a KV block");

  struct Item {
    u32 row, head, split, position, first, last;  // first, last: blocks of 16 positions
    int32_t seq;
  };
  static TK_FN u32 n_tasks(const Cx& c) { return c.n_rows * Attn::kKvHeads * Attn::kSplits; }
  static TK_FN Item item(const Cx& c, u32 q) {
    Item i;
    i.split = q % Attn::kSplits;
    i.head = q / Attn::kSplits % Attn::kKvHeads;
    i.row = q / (Attn::kSplits * Attn::kKvHeads);
    const tilecc_row row = tk::ld_uniform(c.row(i.row));
    i.position = row.position;
    i.seq = row.seq;
    i.last = i.position / 16;
    i.first = Attn::kWindow != 0 && i.position >= Attn::kWindow ? (i.position - Attn::kWindow + 1) / 16 : 0;
    return i;
  }
  // A split owns every kSplits-th chunk of kChunkBlocks blocks, in ascending order.
  static TK_FN bool owns(const Item& i, u32 block) { return Attn::kSplits == 1 || block / Attn::kChunkBlocks % Attn::kSplits == i.split; }

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
      fill(c, c.p.workspace + Attn::kQueries + (i.row * Attn::kKvHeads + i.head) * kQueryBytes, kQueryBytes);
      const tilecc_row row = {0, static_cast<int32_t>(i.position), i.seq, 0};
      TILECC_ROLLED
      for (u32 b = i.first; b <= i.last; ++b)
        if (owns(i, b)) fill(c, Kv::block(c, r, row, i.head, b), Kv::kBlockBytes);
    }
  }
  static TK_FN void fill(Cx& c, const uint8_t* source, u32 bytes) {
    tk::mbar_wait(c.a_empty(c.a.slot), c.a.phase ^ 1, c.watch);
    tk::fence_proxy_async();
    tk::syncwarp();  // no lane may still wait for this phase when lane 0 arrives, or it could miss a whole lap
    if (c.warp == 0) {
      tk::mbar_arrive_expect_tx(c.a_full(c.a.slot), bytes);
      tk::bulk_g2s(c.act(c.a.slot), source, bytes, c.a_full(c.a.slot));
    } else {
      tk::mbar_arrive(c.a_full(c.a.slot));
    }
    c.a.template advance<C::kASlots>();
  }

  // ---- consumers ----------------------------------------------------------------------------------------------------
  struct Running {
    float m[2], d[2];  // of heads g and g + 8: running maximum, this lane's share of the sum
    float o[kTiles][4];
  };

  static TK_FN void consumer(Cx& c, const OpRow&) {
    const u32 n = n_tasks(c);
    TILECC_ROLLED
    for (u32 q = first_task(c, Attn::kRotation); q < n; q += c.ncta) {
      const Item i = item(c, q);
      c.watch.item = q;
      u32 query[Attn::kHeadSteps][4];
      tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
      TK_UNROLL
      for (u32 s = 0; s < Attn::kHeadSteps; ++s) {
        const tk::u32x4 v = tk::lds128(c.act(c.a.slot) + s * 512 + c.lane * 16);
        query[s][0] = v.x, query[s][1] = v.y, query[s][2] = v.z, query[s][3] = v.w;
      }
      release(c);

      Running run;
      TK_UNROLL
      for (int h = 0; h < 2; ++h) run.m[h] = kNegInf, run.d[h] = 0.f;
      TK_UNROLL
      for (u32 t = 0; t < kTiles; ++t) run.o[t][0] = run.o[t][1] = run.o[t][2] = run.o[t][3] = 0.f;

      u32 turn = 0;
      TILECC_ROLLED
      for (u32 b = i.first; b <= i.last; ++b) {
        if (!owns(i, b)) continue;
        tk::mbar_wait(c.a_full(c.a.slot), c.a.phase, c.watch);
        if (turn == c.warp) block(c, i, b, query, run);
        if (++turn == C::kConsumerWarps) turn = 0;
        release(c);
      }
      TK_UNROLL
      for (int h = 0; h < 2; ++h) {
        run.d[h] += tk::shfl_xor(run.d[h], 1);
        run.d[h] += tk::shfl_xor(run.d[h], 2);
      }
      publish(c, run);
    }
  }
  static TK_FN void release(Cx& c) {
    tk::syncwarp();
    tk::mbar_arrive(c.a_empty(c.a.slot));
    c.a.template advance<C::kASlots>();
  }

  // One block of 16 keys: scores of heads g, g + 8 against keys 2t, 2t + 1 of both n8 tiles.
  static TK_FN void block(const Cx& c, const Item& i, u32 b, const u32 (&query)[Attn::kHeadSteps][4], Running& run) {
    const smem_t kv = c.act(c.a.slot);
    float s[2][4];
    TK_UNROLL
    for (u32 t = 0; t < 2; ++t) {
      s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0.f;
      u32 keys[Attn::kHeadSteps][2];
      TK_UNROLL
      for (u32 k = 0; k < Attn::kHeadSteps; ++k) {
        const tk::u32x2 v = tk::lds64(kv + ((t * Attn::kHeadSteps + k) * 32 + c.lane) * 8);
        keys[k][0] = v.x, keys[k][1] = v.y;
      }
      tk::mma_bf16_n<Attn::kHeadSteps>(s[t], query, keys);
      TK_UNROLL
      for (u32 j = 0; j < 2; ++j) {
        const u32 key = b * 16 + t * 8 + 2 * (c.lane & 3) + j;
        const bool visible = key <= i.position && (Attn::kWindow == 0 || i.position - key < Attn::kWindow);
        s[t][j] = visible ? s[t][j] * Attn::kScale : kNegInf;
        s[t][2 + j] = visible ? s[t][2 + j] * Attn::kScale : kNegInf;
      }
    }
    u32 hi[1][4], lo[1][4];
    TK_UNROLL
    for (int h = 0; h < 2; ++h) {
      float top = tk::fmax_(tk::fmax_(s[0][2 * h], s[0][2 * h + 1]), tk::fmax_(s[1][2 * h], s[1][2 * h + 1]));
      top = tk::fmax_(top, tk::shfl_xor(top, 1));
      top = tk::fmax_(top, tk::shfl_xor(top, 2));
      float rescale;
      softmax_online(run.m[h], top, &run.m[h], &rescale);
      run.d[h] *= rescale;
      TK_UNROLL
      for (u32 t = 0; t < kTiles; ++t) run.o[t][2 * h] *= rescale, run.o[t][2 * h + 1] *= rescale;
      // Probabilities enter the second product as a sum of two bf16 numbers (16 bits): rounding them to one would cost
      // more accuracy than all other roundings of the op together.
      TK_UNROLL
      for (u32 t = 0; t < 2; ++t) {
        const float p0 = softmax_p(s[t][2 * h], run.m[h]), p1 = softmax_p(s[t][2 * h + 1], run.m[h]);
        run.d[h] += p0 + p1;
        const u32 top2 = tk::cvt_bf16x2(p0, p1);
        hi[0][2 * t + h] = top2;
        lo[0][2 * t + h] = tk::cvt_bf16x2(p0 - tk::bf_lo(top2), p1 - tk::bf_hi(top2));
      }
    }
    TK_UNROLL
    for (u32 t = 0; t < kTiles; ++t) {
      const tk::u32x2 v = tk::lds64(kv + Kv::kKeyBytes + (t * 32 + c.lane) * 8);
      const u32 values[1][2] = {{v.x, v.y}};
      tk::mma_bf16_n<1>(run.o[t], lo, values);
      tk::mma_bf16_n<1>(run.o[t], hi, values);
    }
  }

  static TK_FN void publish(Cx& c, const Running& run) {
    tk::mbar_wait(c.x_empty(c.x.slot), c.x.phase ^ 1, c.watch);
    const smem_t out = c.exchange(c.x.slot);
    TK_UNROLL
    for (u32 t = 0; t < kTiles; ++t)
      tk::sts128(out + ((c.warp * kTiles + t) * 32 + c.lane) * 16,
                 tk::u32x4{tk::f2u(run.o[t][0]), tk::f2u(run.o[t][1]), tk::f2u(run.o[t][2]), tk::f2u(run.o[t][3])});
    if ((c.lane & 3) == 0) {
      const u32 g = c.lane >> 2;
      tk::sts64(out + kStats + c.warp * 128 + g * 8, tk::u32x2{tk::f2u(run.m[0]), tk::f2u(run.d[0])});
      tk::sts64(out + kStats + c.warp * 128 + (g + 8) * 8, tk::u32x2{tk::f2u(run.m[1]), tk::f2u(run.d[1])});
    }
    tk::syncwarp();
    tk::mbar_arrive(c.x_full(c.x.slot));
    c.x.template advance<C::kXSlots>();
  }

  // ---- store --------------------------------------------------------------------------------------------------------
  static TK_FN void store(Cx& c, const OpRow& r) {
    const u32 n = n_tasks(c);
    u32 q = first_task(c, Attn::kRotation);
    c.wait_idle(r, q, n);
    TILECC_ROLLED
    for (; q < n; q += c.ncta) {
      const Item i = item(c, q);
      c.watch.item = q;
      tk::mbar_wait(c.x_full(c.x.slot), c.x.phase, c.watch);
      TK_UNROLL
      for (u32 h = 0; h < 2; ++h) {
        const u32 member = (c.lane >> 2) + 8 * h;
        if (member < kGroup) merge_head(c, r, i, member, h);
      }
      tk::syncwarp();
      tk::mbar_arrive(c.x_empty(c.x.slot));
      c.x.template advance<C::kXSlots>();
    }
    c.arrive(Attn::kCounter);
  }

  static TK_FN void merge_head(const Cx& c, const OpRow& r, const Item& i, u32 member, u32 h) {
    const smem_t in = c.exchange(c.x.slot);
    const u32 head = i.head * kGroup + member;
    float m[C::kConsumerWarps], d[C::kConsumerWarps], scale[C::kConsumerWarps];
    TK_UNROLL
    for (u32 w = 0; w < C::kConsumerWarps; ++w) {
      const tk::u32x2 v = tk::lds64(in + kStats + w * 128 + member * 8);
      m[w] = tk::u2f(v.x), d[w] = tk::u2f(v.y);
    }
    float m1 = 0.f, d1 = 0.f;
    if constexpr (Attn::kSplits == 1) {
      const float sink = Attn::kSink ? tk::ldg_nc_f32(c.image(r.aux) + head * 4) : kNegInf;
      Attn::merge(m, d, sink, scale);
    } else {
      Attn::combine(m, d, &m1, &d1, scale);
    }
    uint8_t* partial = c.p.workspace + Attn::kPartials + static_cast<u64>((i.row * Attn::kHeads + head) * Attn::kSplits + i.split) * kPartialFloats * 4;
    if (Attn::kSplits > 1 && (c.lane & 3) == 0) {
      tk::stg_f32(partial, m1);
      tk::stg_f32(partial + 4, d1);
    }
    TK_UNROLL
    for (u32 t = 0; t < kTiles; ++t) {
      float o0 = 0.f, o1 = 0.f;
      TK_UNROLL
      for (u32 w = 0; w < C::kConsumerWarps; ++w) {
        const tk::u32x2 v = tk::lds64(in + ((w * kTiles + t) * 32 + c.lane) * 16 + h * 8);
        o0 += scale[w] * tk::u2f(v.x), o1 += scale[w] * tk::u2f(v.y);
      }
      const u32 dim = t * 8 + 2 * (c.lane & 3);
      if (dim >= Attn::kValueDim) continue;
      if constexpr (Attn::kSplits == 1) {
        const u32 k = head * Attn::kValueDim + dim;
        tk::stg32(c.p.workspace + Attn::kOut + frag_bytes(i.row, k), tk::cvt_bf16x2(o0, o1));
      } else {
        tk::stg_f32(partial + (2 + dim) * 4, o0);
        tk::stg_f32(partial + (3 + dim) * 4, o1);
      }
    }
  }
};

// Merges the splits of a global layer in split order; the sink enters once, here. The store warp alone runs it.
// M (emitted): kHeads kValueDim kSplits kSink kPartials kOut kRotation kCounter merge
template <class C, class M>
struct AttentionMerge {
  using Cx = Ctx<C>;
  static constexpr u32 kPartialBytes = (2 + M::kValueDim) * 4;
  static TK_FN void loader(Cx&, const OpRow&) {}
  static TK_FN void activations(Cx&, const OpRow&) {}
  static TK_FN void consumer(Cx&, const OpRow&) {}
  static TK_FN void store(Cx& c, const OpRow& r) {
    const u32 n = c.n_rows * M::kHeads;
    u32 q = first_task(c, M::kRotation);
    c.wait_inputs(r);
    TILECC_ROLLED
    for (; q < n; q += c.ncta) {
      const u32 head = q % M::kHeads, row = q / M::kHeads;
      const uint8_t* in = c.p.workspace + M::kPartials + static_cast<u64>(q) * M::kSplits * kPartialBytes;
      float m[M::kSplits], d[M::kSplits], scale[M::kSplits];
      TK_UNROLL
      for (u32 s = 0; s < M::kSplits; ++s) {
        m[s] = tk::ldg_f32(in + s * kPartialBytes);
        d[s] = tk::ldg_f32(in + s * kPartialBytes + 4);
      }
      M::merge(m, d, M::kSink ? tk::ldg_nc_f32(c.image(r.aux) + head * 4) : kNegInf, scale);
      TILECC_ROLLED
      for (u32 dim = 2 * c.lane; dim < M::kValueDim; dim += 64) {
        float o0 = 0.f, o1 = 0.f;
        TK_UNROLL
        for (u32 s = 0; s < M::kSplits; ++s) {
          o0 += scale[s] * tk::ldg_f32(in + s * kPartialBytes + (2 + dim) * 4);
          o1 += scale[s] * tk::ldg_f32(in + s * kPartialBytes + (3 + dim) * 4);
        }
        tk::stg32(c.p.workspace + M::kOut + frag_bytes(row, head * M::kValueDim + dim), tk::cvt_bf16x2(o0, o1));
      }
    }
    c.arrive(M::kCounter);
  }
};
}  // namespace tilecc
