// A persistent warp-specialised chain of GEMVs: weight ring, activation slots, output staging, counters.
// y[op+1] = act(W[op] y[op]) for 8 columns; every CTA computes 64-row tiles cta, cta+ncta, ...
#include "tk_prim.cuh"

struct ChainParams {
  const uint8_t* weights;  // [op][tile][k16][warp 4][lane][8] bf16, A-fragment order
  uint8_t* acts;           // [op+1][k16][lane][4] bf16, B-fragment order; op 0 is the input
  uint32_t* counters;      // [op+1], 128 bytes apart
  uint32_t* status;
  uint32_t n_ops, tiles, k16, activate;
};

namespace chain {
using namespace tk;
constexpr int kStages = 3, kStepsPerStage = 4, kThreads = 7 * 32;
constexpr u32 kStageBytes = kStepsPerStage * 2048, kMaxK16 = 32, kActBytes = kMaxK16 * 256;
constexpr u32 kFull = 0, kEmpty = 8 * kStages, kXFull = 16 * kStages, kXEmpty = kXFull + 8;
constexpr u32 kOutFull = kXEmpty + 8, kOutEmpty = kOutFull + 8;
constexpr u32 kBarriers = 128, kRing = 1024, kX = kRing + kStages * kStageBytes, kOut = kX + kActBytes;
enum { kLoader, kActs, kStorer, kConsumer };

TK_FN void load_weights(const ChainParams& p, smem_t sb, Watch w) {
  u32 slot = 0, phase = 1;
  for (u32 op = 0; op < p.n_ops; op++)
    for (u32 tile = cta(); tile < p.tiles; tile += ncta()) {
      const uint8_t* from = p.weights + (static_cast<u64>(op) * p.tiles + tile) * p.k16 * 2048;
      for (u32 k = 0; k < p.k16; k += kStepsPerStage) {
        w.layer = op;
        w.item = tile;
        mbar_wait(sb + kEmpty + 8 * slot, phase, w);
        mbar_arrive_expect_tx(sb + kFull + 8 * slot, kStageBytes);
        bulk_g2s(sb + kRing + slot * kStageBytes, from + k * 2048, kStageBytes, sb + kFull + 8 * slot);
        if (++slot == kStages) slot = 0, phase ^= 1;
      }
    }
}

TK_FN void load_acts(const ChainParams& p, smem_t sb, Watch w) {
  u32 phase = 1;
  for (u32 op = 0; op < p.n_ops; op++) {
    w.layer = op;
    mbar_wait(sb + kXEmpty, phase, w);
    if (op > 0) {
      wait_ge(p.counters + op * 32, p.tiles, w);
      fence_proxy_async();
    }
    mbar_arrive_expect_tx(sb + kXFull, p.k16 * 256);
    bulk_g2s(sb + kX, p.acts + static_cast<u64>(op) * p.k16 * 256, p.k16 * 256, sb + kXFull);
    phase ^= 1;
  }
}

TK_FN void store(const ChainParams& p, smem_t sb, Watch w) {
  u32 phase = 0;
  for (u32 op = 0; op < p.n_ops; op++)
    for (u32 tile = cta(); tile < p.tiles; tile += ncta()) {
      w.layer = op;
      w.item = tile;
      mbar_wait(sb + kOutFull, phase, w);
      bulk_s2g(p.acts + (static_cast<u64>(op + 1) * p.k16 + tile * 4) * 256, sb + kOut, 1024);
      bulk_commit();
      bulk_wait<0>();
      fence_proxy_async();
      red_release(p.counters + (op + 1) * 32, 1);
      mbar_arrive(sb + kOutEmpty);
      phase ^= 1;
    }
}

TK_FN void consume(const ChainParams& p, smem_t sb, u32 c, Watch w) {
  u32 slot = 0, phase = 0, x_phase = 0, out_phase = 1;
  const u32 g = lane() >> 2, t = lane() & 3u;
  for (u32 op = 0; op < p.n_ops; op++) {
    w.layer = op;
    mbar_wait(sb + kXFull, x_phase, w);
    for (u32 tile = cta(); tile < p.tiles; tile += ncta()) {
      w.item = tile;
      float acc[4] = {0.f, 0.f, 0.f, 0.f};
      for (u32 k = 0; k < p.k16; k += kStepsPerStage) {
        mbar_wait(sb + kFull + 8 * slot, phase, w);
        u32 a[kStepsPerStage][4], b[kStepsPerStage][2];
        TK_UNROLL for (int i = 0; i < kStepsPerStage; i++) {
          const u32x4 av = lds128(sb + kRing + slot * kStageBytes + i * 2048 + c * 512 + lane() * 16);
          const u32x2 bv = lds64(sb + kX + (k + i) * 256 + lane() * 8);
          a[i][0] = av.x, a[i][1] = av.y, a[i][2] = av.z, a[i][3] = av.w;
          b[i][0] = bv.x, b[i][1] = bv.y;
        }
        mma_bf16_n<kStepsPerStage>(acc, a, b);
        syncwarp();
        mbar_arrive(sb + kEmpty + 8 * slot);
        if (++slot == kStages) slot = 0, phase ^= 1;
      }
      if (p.activate) {
        TK_UNROLL for (int i = 0; i < 4; i++) acc[i] = acc[i] * rcp_(1.0f + exp2_(acc[i] * -1.44269504f));
      }
      // Row g of the result is column k = g of the next op: B-fragment order, one 256-byte step per warp.
      mbar_wait(sb + kOutEmpty, out_phase, w);
      TK_UNROLL for (int i = 0; i < 4; i++) {
        const u32 k = g + 8 * (i >> 1), n = 2 * t + (i & 1);
        sts_u16(sb + kOut + c * 256 + (n * 4 + ((k & 7) >> 1)) * 8 + (k >> 3) * 4 + (k & 1) * 2, f2bf(acc[i]));
      }
      fence_proxy_async();
      syncwarp();
      mbar_arrive(sb + kOutFull);
      out_phase ^= 1;
    }
    syncwarp();
    mbar_arrive(sb + kXEmpty);
    x_phase ^= 1;
  }
}
}  // namespace chain

TK_KERNEL(chain_kernel, chain::kThreads)(TK_GRID_CONST ChainParams p) {
  using namespace chain;
  const smem_t sb = smem_base();
  const u32 wp = warp();
  smem_region("barriers", sb, kBarriers);
  for (u32 i = 0; i < kStages; i++) smem_region("weights", sb + kRing + i * kStageBytes, kStageBytes);
  smem_region("acts", sb + kX, kActBytes);
  smem_region("out", sb + kOut, 1024);
  name_role(kLoader, "loader");
  name_role(kActs, "acts");
  name_role(kStorer, "storer");
  name_role(kConsumer, "consumer");
  name_op(7, "gemv");
  if (wp == 0) {
    for (u32 i = 0; i < kStages; i++) {
      mbar_init(sb + kFull + 8 * i, 1);
      mbar_name(sb + kFull + 8 * i, "full", i);
      mbar_init(sb + kEmpty + 8 * i, 4);
      mbar_name(sb + kEmpty + 8 * i, "empty", i);
    }
    mbar_init(sb + kXFull, 1);
    mbar_name(sb + kXFull, "x_full", 0);
    mbar_init(sb + kXEmpty, 4);
    mbar_name(sb + kXEmpty, "x_empty", 0);
    mbar_init(sb + kOutFull, 4);
    mbar_name(sb + kOutFull, "out_full", 0);
    mbar_init(sb + kOutEmpty, 1);
    mbar_name(sb + kOutEmpty, "out_empty", 0);
    fence_mbar_init();
  }
  cta_sync();
  Watch w{p.status, 0, 7, 0, 0};
  if (wp == 0) {
    w.role = kLoader;
    if (elect()) load_weights(p, sb, w);
  } else if (wp == 1) {
    w.role = kActs;
    if (elect()) load_acts(p, sb, w);
  } else if (wp == 2) {
    w.role = kStorer;
    if (elect()) store(p, sb, w);
  } else {
    w.role = kConsumer;
    consume(p, sb, wp - 3, w);
  }
}
TK_EMU_ENTRY(chain_kernel, ChainParams)
