// Clusters of four CTAs of two warps. in and out: [ncta][256] words.
#include "conformance.h"

using namespace tk;

constexpr u32 kWords = 256, kBytes = kWords * 4, kA = 1024, kB = kA + kBytes;

TK_KERNEL(conformance_cluster, 64)(TK_GRID_CONST ConformanceParams p) {
  const smem_t sb = smem_base(), a = sb + kA, b = sb + kB;
  const u32 t = warp() * 32 + lane(), rank = cluster_rank(), size = cluster_size();
  smem_region("bars", sb, 64);
  smem_region("a", a, kBytes);
  smem_region("b", b, kBytes);
  const Watch w{p.status, warp(), p.op, 0, rank};
  const uint8_t* in = p.in + cta() * kBytes;
  uint8_t* out = p.out + cta() * kBytes;
  if (warp() == 0) {
    mbar_init(sb, size);
    mbar_init(sb + 8, 1);
    mbar_name(sb, "all", 0);
    mbar_name(sb + 8, "neighbour", 0);
    fence_mbar_init();
  }
  for (u32 i = t; i < kWords; i += 64) sts32(a + 4 * i, ldg_nc32(in + 4 * i));
  if (p.op == 2) fence_proxy_async();
  cluster_sync();
  if (p.op == 0) {  // read the next CTA's words, write them to the one after
    const smem_t next = mapa(a, (rank + 1) % size), after = mapa(b, (rank + 2) % size);
    for (u32 i = t; i < kWords; i += 64) sts32_cluster(after + 4 * i, lds32_cluster(next + 4 * i) + rank);
    cluster_arrive();
    for (u32 i = t; i < kWords / 2; i += 64) stg32(out + 4 * i, lds32(a + 4 * i) * size + rank);
    cluster_wait();
    for (u32 i = kWords / 2 + t; i < kWords; i += 64) stg32(out + 4 * i, lds32(b + 4 * i));
  } else if (p.op == 1) {  // every CTA sends its quarter to every CTA and arrives there
    if (warp() == 0) {
      for (u32 r = 0; r < size; r++) {
        const smem_t theirs = mapa(b, r);
        for (u32 i = lane(); i < kWords / size; i += 32)
          sts32_cluster(theirs + 4 * (rank * (kWords / size) + i), lds32(a + 4 * (r * (kWords / size) + i)));
        syncwarp();
        mbar_arrive_cluster(mapa(sb, r));
      }
    }
    mbar_wait_cluster(sb, 0, w);
    syncwarp();
    for (u32 i = t; i < kWords; i += 64) stg32(out + 4 * i, lds32(b + 4 * i));
  } else {  // a bulk copy to the next CTA, announced there by the sender
    if (warp() == 0) {
      const u32 next = (rank + 1) % size;
      mbar_arrive_expect_tx_cluster(mapa(sb + 8, next), kBytes);
      bulk_s2s(mapa(b, next), a, kBytes, mapa(sb + 8, next));
    }
    mbar_wait_cluster(sb + 8, 0, w);
    syncwarp();
    for (u32 i = t; i < kWords; i += 64) stg32(out + 4 * i, lds32(b + 4 * i));
  }
  cluster_sync();
}
TK_EMU_ENTRY(conformance_cluster, ConformanceParams)
