// What both forms of attention share: the KV cache in MMA-fragment order, scores of one block of 16 keys, probabilities.
#pragma once
#include "op_common.cuh"

namespace tilecc {
enum class KvFormat { kBf16, kFp8 };

// KV cache of one layer: [sequence][KV head][block of 16 positions], a block in B-fragment order: keys, then values, each
// one bulk copy. What a lane reads at once is one k16 step of two n8 tiles. Sliding layers use their blocks as a ring.
// K: kFormat kKvHeads kHeadSteps kValueDim kBlocks
template <class K>
struct KvCache {
  static constexpr bool kFp8 = K::kFormat == KvFormat::kFp8;
  static constexpr u32 kElement = kFp8 ? 1 : 2, kLaneBytes = 8 * kElement, kStepBytes = 32 * kLaneBytes;
  static constexpr u32 kValuePairs = (K::kValueDim + 15) / 16;  // pairs of n8 tiles
  static constexpr u32 kKeyBytes = K::kHeadSteps * kStepBytes, kValueBytes = kValuePairs * kStepBytes;
  static constexpr u32 kBlockBytes = kKeyBytes + kValueBytes;
  static constexpr u64 kSequenceBytes = static_cast<u64>(K::kKvHeads) * K::kBlocks * kBlockBytes;

  // Key of block position j, dimension d: k16 step d / 16, n8 tile j / 8.
  static TK_FN u32 key_bytes(u32 j, u32 d) {
    return ((d / 16) * 32 + (j % 8) * 4 + (d % 8) / 2) * kLaneBytes + ((j / 8) * 4 + ((d % 16) / 8) * 2 + d % 2) * kElement;
  }
  // Value: n8 tile d / 8, position j runs along the k16 step.
  static TK_FN u32 value_bytes(u32 j, u32 d) {
    return kKeyBytes + ((d / 16) * 32 + (d % 8) * 4 + (j % 8) / 2) * kLaneBytes + (((d % 16) / 8) * 4 + (j / 8) * 2 + j % 2) * kElement;
  }

  template <class Cx>
  static TK_FN uint8_t* block(const Cx& c, const OpRow& r, int32_t seq, u32 head, u32 position_block) {
    return c.p.kv + static_cast<u64>(r.kv) * kImageUnit + seq * kSequenceBytes +
           static_cast<u64>(head * K::kBlocks + position_block % K::kBlocks) * kBlockBytes;
  }

  static TK_FN void put(uint8_t* at, float x) {
    if constexpr (kFp8) {
      tk::stg_u8(at, tk::cvt_e4m3x2(x, 0.f) & 0xffu);
    } else {
      tk::stg_u16(at, tk::f2bf(x));
    }
  }

  // B operands of k16 step (or pair of value tiles) `step`, for both n8 tiles.
  static TK_FN void load(smem_t at, u32 step, u32 lane, u32 (&b)[2][2]) {
    if constexpr (kFp8) {
      const tk::u32x2 v = tk::lds64(at + step * kStepBytes + lane * 8);
      b[0][0] = widen(v.x), b[0][1] = widen(v.x >> 16);
      b[1][0] = widen(v.y), b[1][1] = widen(v.y >> 16);
    } else {
      const tk::u32x4 v = tk::lds128(at + step * kStepBytes + lane * 16);
      b[0][0] = v.x, b[0][1] = v.y, b[1][0] = v.z, b[1][1] = v.w;
    }
  }
  // Two e4m3 codes as bf16x2, exact: through f16, which is where the conversion instruction leads; NaN stays NaN.
  static TK_FN u32 widen(u32 codes) {
    const u32 h = tk::e4m3x2_to_f16x2(codes & 0xffffu);
    return tk::cvt_bf16x2(tk::h_lo(h), tk::h_hi(h));
  }
};

// The queries of one row as A fragments: 16 heads (fewer are zero) by 16 dimensions per step. Chains of up to kChain steps
// are independent of each other: one chain of all steps would wait for each product in turn.
template <u32 kSteps>
struct Query {
  static constexpr u32 kChain = 6, kChains = (kSteps + kChain - 1) / kChain, kLast = kSteps - (kChains - 1) * kChain;
  u32 q[kChains][kChain][4];

  // A register that is written on one path only would count as live through the whole kernel.
  TK_FN void clear() {
    TK_UNROLL
    for (u32 s = 0; s < kSteps; ++s) q[s / kChain][s % kChain][0] = q[s / kChain][s % kChain][1] = q[s / kChain][s % kChain][2] = q[s / kChain][s % kChain][3] = 0;
  }
  TK_FN void load(smem_t at, u32 lane) {
    TK_UNROLL
    for (u32 s = 0; s < kSteps; ++s) {
      const tk::u32x4 v = tk::lds128(at + s * 512 + lane * 16);
      u32(&a)[4] = q[s / kChain][s % kChain];
      a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
    }
  }

  // Scores of heads g, g + 8 against keys 2t, 2t + 1 of both n8 tiles of the block whose keys lie at `keys`.
  template <class Kv>
  TK_FN void scores(smem_t keys, u32 lane, float (&s)[2][4]) const {
    TK_UNROLL
    for (u32 i = 0; i + 1 < kChains; ++i) chain<Kv, kChain>(keys, i, lane, s);
    chain<Kv, kLast>(keys, kChains - 1, lane, s);
  }
  template <class Kv, u32 kN>
  TK_FN void chain(smem_t keys, u32 i, u32 lane, float (&s)[2][4]) const {
    u32 b[2][kN][2];
    TK_UNROLL
    for (u32 k = 0; k < kN; ++k) {
      u32 both[2][2];
      Kv::load(keys, i * kChain + k, lane, both);
      TK_UNROLL
      for (u32 t = 0; t < 2; ++t) b[t][k][0] = both[t][0], b[t][k][1] = both[t][1];
    }
    TK_UNROLL
    for (u32 t = 0; t < 2; ++t) {
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
      tk::mma_bf16_n<kN>(sum, reinterpret_cast<const u32(&)[kN][4]>(q[i]), b[t]);
      TK_UNROLL
      for (u32 j = 0; j < 4; ++j) s[t][j] = i == 0 ? sum[j] : s[t][j] + sum[j];
    }
  }
};

// Which of a lane's keys (2t, 2t + 1, 2t + 8, 2t + 9 of the block that starts at position `first`) a row sees.
template <u32 kWindow>
struct Visible {
  bool key[2][2];
  TK_FN Visible(u32 first, u32 position, u32 lane) {
    TK_UNROLL
    for (u32 t = 0; t < 2; ++t) {
      TK_UNROLL
      for (u32 j = 0; j < 2; ++j) {
        const u32 at = first + t * 8 + 2 * (lane & 3) + j;
        key[t][j] = at <= position && (kWindow == 0 || position - at < kWindow);
      }
    }
  }
  TK_FN void scale(float by, float (&s)[2][4]) const {
    TK_UNROLL
    for (u32 t = 0; t < 2; ++t) {
      TK_UNROLL
      for (u32 j = 0; j < 2; ++j) {
        s[t][j] = key[t][j] ? s[t][j] * by : kNegInf;
        s[t][2 + j] = key[t][j] ? s[t][2 + j] * by : kNegInf;
      }
    }
  }
  // Values of keys that the row does not see may be anything, NaN included; their probability 0 would not silence NaN.
  TK_FN void clear(u32 (&b)[2][2]) const {
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      const u32 mask = (key[h][0] ? 0x0000ffffu : 0u) | (key[h][1] ? 0xffff0000u : 0u);
      b[0][h] &= mask, b[1][h] &= mask;
    }
  }
};

// Largest score of head h's lane quartet: every lane of the four has it.
TK_FN float quartet_max(const float (&s)[2][4], u32 h) {
  float top = tk::fmax_(tk::fmax_(s[0][2 * h], s[0][2 * h + 1]), tk::fmax_(s[1][2 * h], s[1][2 * h + 1]));
  top = tk::fmax_(top, tk::shfl_xor(top, 1));
  return tk::fmax_(top, tk::shfl_xor(top, 2));
}
TK_FN float quartet_sum(float v) {
  v += tk::shfl_xor(v, 1);
  return v + tk::shfl_xor(v, 2);
}

// Probabilities e^(s - top) of one block as A fragments. They enter the second product as a sum of two bf16 numbers (16
// bits): rounding them to one would cost more accuracy than all other roundings of the op together. a[0]: low parts.
struct Probabilities {
  u32 a[2][4];
  TK_FN void clear() {
    TK_UNROLL
    for (u32 j = 0; j < 8; ++j) a[j / 4][j % 4] = 0;
  }
  TK_FN void make(const float (&s)[2][4], const float (&top)[2], float (&sum)[2]) {
    TK_UNROLL
    for (u32 h = 0; h < 2; ++h) {
      TK_UNROLL
      for (u32 t = 0; t < 2; ++t) {
        const float p0 = softmax_p(s[t][2 * h], top[h]), p1 = softmax_p(s[t][2 * h + 1], top[h]);
        sum[h] += p0 + p1;
        const u32 high = tk::cvt_bf16x2(p0, p1);
        a[1][2 * t + h] = high;
        a[0][2 * t + h] = tk::cvt_bf16x2(p0 - tk::bf_lo(high), p1 - tk::bf_hi(high));
      }
    }
  }
  // o += P V for the two n8 tiles of values in b.
  TK_FN void apply(const u32 (&b)[2][2], float (&o)[2][4]) const {
    TK_UNROLL
    for (u32 t = 0; t < 2; ++t) {
      const u32 twice[2][2] = {{b[t][0], b[t][1]}, {b[t][0], b[t][1]}};
      tk::mma_bf16_n<2>(o[t], a, twice);
    }
  }
};

// One copy by the activation warps into the next slot of their ring.
template <class C>
TK_FN void fill_slot(Ctx<C>& c, const uint8_t* source, u32 bytes) {
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

template <class C>
TK_FN void release_slot(Ctx<C>& c) {
  tk::syncwarp();
  tk::mbar_arrive(c.a_empty(c.a.slot));
  c.a.template advance<C::kASlots>();
}

// The store warp of both forms. The consumers write the results of a task themselves, then fill its exchange slot.
template <class Attn, class C>
TK_FN void signal_tasks(Ctx<C>& c, const OpRow& r, u32 n) {
  u32 q = first_task(c, Attn::kRotation);
  c.wait_idle(r, q, n);
  TILECC_ROLLED
  for (; q < n; q += c.ncta) {
    c.watch.item = q;
    tk::mbar_wait(c.x_full(c.x.slot), c.x.phase, c.watch);
    tk::syncwarp();
    tk::mbar_arrive(c.x_empty(c.x.slot));
    c.x.template advance<C::kXSlots>();
  }
  c.arrive(Attn::kCounter);
}
}  // namespace tilecc
