// One mistake per mode with tensor maps, wgmma, cp.async, matrices and clusters; mode 0 is right. A cluster of two CTAs of
// one warpgroup.
#include "tk_prim.cuh"

struct HopperParams {
  tk::tmap_t map;      // u8 [16][128], boxes of 8 rows, swizzled
  tk::tmap_t too_big;  // says that `in` has 64 rows
  const uint8_t* in;   // [2048], read-only
  uint8_t* out;        // [64][16] float32, written by CTA 0
  uint32_t* status;
  uint32_t mode;
};

using namespace tk;
constexpr u32 kBar = 0, kA = 1024, kB = kA + 64 * 128, kEnd = kB + 16 * 128;

TK_KERNEL(hopper_kernel, 128)(TK_GRID_CONST HopperParams p) {
  const smem_t sb = smem_base(), a = sb + kA, b = sb + kB;
  const u32 t = warp() * 32 + lane(), mode = p.mode, other = cluster_rank() ^ 1u;
  const Watch w{p.status, 0, 0, 0, 0};
  smem_region("bar", sb, 64);
  smem_region("a", a, 64 * 128);
  smem_region("b", b, 16 * 128);
  if (warp() == 0) {
    mbar_init(sb + kBar, 1);
    fence_mbar_init();
  }
  // Small bf16 numbers.
  for (u32 i = t; i < (kEnd - kA) / 4; i += 128) sts32(a + 4 * i, 0x3f803f80u);
  if (mode != 12) fence_proxy_async();
  cluster_sync();

  if (warp() == 1) {
    u32 r[1];
    if (mode == 1) ldmatrix_x1(r, a + 8);
    if (mode == 2) cp_async16(a + 8, p.in);
    if (mode == 3) {
      cp_async16(a + 16 * lane(), p.in + 16 * lane());
      cp_async_commit();
      lds32(a + 16 * lane());
      cp_async_wait<0>();
    }
    if (mode == 4) cp_async16(b + 16 * lane(), p.in + 16 * lane());
    if (mode == 21) bulk_reduce_add_f32(p.out, a, 24);
  }
  if (warp() == 0) {
    if (mode == 5) tma_load_2d(a, reinterpret_cast<const tmap_t*>(p.in), 0, 0, sb);
    if (mode == 6) tma_load_1d(a, &p.map, 0, sb);
    if (mode == 7) tma_load_2d(a + 128, &p.map, 0, 0, sb);
    if (mode == 26) tma_load_2d(a, &p.map, 8, 0, sb);
    if (mode == 27) tma_store_2d(&p.map, a, -8, 0);
    if (mode == 28) tma_store_2d(&p.map, a, 0, -1);
    if (mode == 19) tma_load_2d(a, &p.too_big, 0, 60, sb);
    if (mode == 22) tma_load_2d(b + 1024, &p.map, 0, 0, sb + 8);
    if (mode == 14) mapa(a, 2);
    if (mode == 16) {
      if (cluster_rank() == 0) sts32_cluster(mapa(a, other), 1);
      else lds32(a);
    }
    if (mode == 20) cluster_wait();
    if (mode == 23) {  // a box beyond the last row: what lies outside is zero
      mbar_arrive_expect_tx(sb, 1024);
      tma_load_2d(b, &p.map, 0, 12, sb);
      mbar_wait(sb, 0, w);
      syncwarp();
    }
  }
  if (mode == 15) {
    if (cluster_rank() == 1) return;
    for (int i = 0; i < 1000; i++) nanosleep(1);
    lds32_cluster(mapa(a, 1));
  }

  cta_sync();
  if (mode == 23) {
    if (cluster_rank() == 0 && warp() == 0)
      for (u32 i = lane(); i < 256; i += 32) stg32(p.out + 4 * i, lds32(b + 4 * i));
    return;
  }
  float d[8];
  for (int i = 0; i < 8; i++) d[i] = 1.0f;
  if (mode != 8) wgmma_fence();
  const u64 a_desc = mode == 10 ? wgmma_desc_128b(a + 3 * 128) : mode == 18 ? wgmma_desc_128b(a + 1024) : wgmma_desc_128b(a);
  const u64 b_desc = wgmma_desc_128b(b);
  wgmma_bf16<16>(d, a_desc, b_desc);
  if (mode == 17 && warp() == 2) wgmma_bf16<16>(d, a_desc, b_desc);
  wgmma_commit();
  if (mode == 11) d[3] = 2.0f;
  if (mode == 13) sts32(a + 4 * t, 0);
  if (mode == 24) stg_f32(p.out + 4 * t, d[0]);
  if (mode != 9) wgmma_wait<0>();
  wgmma_hold(d);
  if (mode == 25) {
    wgmma_bf16<16>(d, a_desc, b_desc);
    wgmma_commit();
    wgmma_wait<0>();
  }
  if (cluster_rank() == 0 && mode != 24)
    for (u32 i = 0; i < 8; i++) stg_f32(p.out + 4 * (t * 8 + i), d[i]);
  cluster_sync();
}
TK_EMU_ENTRY(hopper_kernel, HopperParams)
