// Tensor maps: boxes of arg[1] bytes, arg[0] dimensions, at the coordinates in work ([n][4] i32). One warp.
#include "conformance.h"

using namespace tk;

constexpr u32 kData = 1024, kSlot = 16384;

TK_FN i32 coordinate(const ConformanceParams& p, u32 i, u32 d) { return ldg_i32(p.work + 16 * i + 4 * d); }

TK_FN void load(const ConformanceParams& p, u32 i, smem_t dst, smem_t bar) {
  const tmap_t* map = &p.maps[0];
  const i32 x = coordinate(p, i, 0), y = coordinate(p, i, 1), z = coordinate(p, i, 2);
  if (p.arg[0] == 1) tma_load_1d(dst, map, x, bar);
  else if (p.arg[0] == 2) tma_load_2d(dst, map, x, y, bar);
  else tma_load_3d(dst, map, x, y, z, bar);
}

TK_FN void store(const ConformanceParams& p, u32 i, smem_t src) {
  const tmap_t* map = &p.maps[0];
  const i32 x = coordinate(p, i, 0), y = coordinate(p, i, 1), z = coordinate(p, i, 2);
  if (p.arg[0] == 1) tma_store_1d(map, src, x);
  else if (p.arg[0] == 2) tma_store_2d(map, src, x, y);
  else tma_store_3d(map, src, x, y, z);
}

TK_KERNEL(conformance_tma, 32)(TK_GRID_CONST ConformanceParams p) {
  const smem_t sb = smem_base(), bar = sb, bytes = p.arg[1];
  smem_region("bar", sb, 128);
  smem_region("slots", sb + kData, 2 * kSlot);
  const Watch w{p.status, 0, p.op, 0, 0};
  tma_prefetch_map(&p.maps[0]);
  mbar_init(bar, 1);
  fence_mbar_init();
  syncwarp();
  u32 k = 0;
  for (u32 i = cta(); i < p.n; i += ncta(), k++) {
    const smem_t slot = sb + kData + (k & 1u) * kSlot;
    if (p.op == 0) {  // the box as it lies in shared memory
      mbar_arrive_expect_tx(bar, bytes);
      load(p, i, slot, bar);
      mbar_wait(bar, k & 1u, w);
      syncwarp();
      for (u32 o = 16 * lane(); o < bytes; o += 512) stg128(p.out + i * bytes + o, lds128(slot + o));
      syncwarp();
    } else {
      if (k > 1) bulk_wait_read<1>();
      syncwarp();
      for (u32 o = 16 * lane(); o < bytes; o += 512) sts128(slot + o, ldg_nc128(p.in + i * bytes + o));
      fence_proxy_async();
      syncwarp();
      store(p, i, slot);
      bulk_commit();
    }
  }
  bulk_wait<0>();
  if (p.op == 1 && cta() == 0) stg32(p.out + 4 * lane(), lane());
}
TK_EMU_ENTRY(conformance_tma, ConformanceParams)
