// cp.async and bulk reductions, 128 threads a CTA.
#include "conformance.h"

using namespace tk;

constexpr u32 kThreads = 128, kTile = kThreads * 16;

// Three stages of cp.async; the last 16 bytes of a lane are cut to arg[0] bytes every third tile.
TK_FN void stream(const ConformanceParams& p) {
  const smem_t data = smem_base();
  const u32 t = warp() * 32 + lane(), tiles = p.n, partner = t ^ 0x6bu;
  const auto fetch = [&](u32 tile) {
    if (tile < tiles) {
      const smem_t dst = data + (tile % 3) * kTile + 16 * t;
      const uint8_t* src = p.in + tile * kTile + 16 * t;
      if (tile % 3 == 2) cp_async16_zfill(dst, src, p.arg[0]); else cp_async16(dst, src);
    }
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  for (u32 tile = 0; tile < tiles; tile++) {
    cp_async_wait<1>();
    cta_sync();
    stg128(p.out + tile * kTile + 16 * partner, lds128(data + (tile % 3) * kTile + 16 * partner));
    fetch(tile + 2);
  }
  cp_async_wait<0>();
}

// Each CTA adds its n * 16-byte slice of `in` to the same `work`. A warp of its own, so that groups mix with stores.
TK_FN void reduce(const ConformanceParams& p) {
  const smem_t data = smem_base();
  const u32 bytes = p.n * 16;
  if (warp() != 0) return;
  for (u32 o = 16 * lane(); o < bytes; o += 512) sts128(data + o, ldg_nc128(p.in + cta() * bytes + o));
  fence_proxy_async();
  syncwarp();
  const u32 half = bytes / 32 * 16;
  if (p.op == 1) {
    bulk_reduce_add_f32(p.work, data, half);
    bulk_reduce_add_f32(p.work + half, data + half, bytes - half);
  } else if (p.op == 2) {
    bulk_reduce_add_bf16(p.work, data, half);
    bulk_reduce_add_bf16(p.work + half, data + half, bytes - half);
  } else {
    bulk_reduce_add_u32(p.work, data, half);
    bulk_reduce_add_u32(p.work + half, data + half, bytes - half);
  }
  bulk_commit();
  bulk_s2g(p.out + cta() * bytes, data, bytes);
  bulk_commit();
  bulk_wait<0>();
}

TK_KERNEL(conformance_copy, 128)(TK_GRID_CONST ConformanceParams p) {
  smem_region("data", smem_base(), 3 * kTile);
  if (p.op == 0) stream(p); else reduce(p);
}
TK_EMU_ENTRY(conformance_copy, ConformanceParams)
