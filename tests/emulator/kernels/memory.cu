// Every width of shared and global access, bulk copies both ways, and a struct read: copies `in` to `out` in
// pieces, in several ways, so that out is a known permutation of in. One CTA of 4 warps.
#include "tk_prim.cuh"

struct Header {
  int32_t a, b, c;
};
struct MemoryParams {
  const uint8_t* in;  // [4096]
  uint8_t* out;       // [8192]
  const Header* header;
  uint32_t* status;
};

using namespace tk;
constexpr u32 kBar = 0, kA = 128, kB = kA + 4096;

TK_KERNEL(memory_kernel, 128)(TK_GRID_CONST MemoryParams p) {
  const smem_t sb = smem_base();
  const u32 wp = warp(), ln = lane();
  smem_region("bar", sb, 128);
  smem_region("a", sb + kA, 4096);
  smem_region("b", sb + kB, 4096);
  const Watch w{p.status, 1, 2, 3, 4};
  if (wp == 0) {
    mbar_init(sb + kBar, 1);
    fence_mbar_init();
    syncwarp();
    prefetch_l2(p.in, 4096);
    mbar_arrive_expect_tx(sb + kBar, 4096);
    bulk_g2s(sb + kA, p.in, 2048, sb + kBar);
    bulk_g2s(sb + kA + 2048, p.in + 2048, 2048, sb + kBar);
  }
  cta_sync();
  mbar_wait(sb + kBar, 0, w);
  const smem_t a = sb + kA + wp * 1024, b = sb + kB + wp * 1024;
  if (wp == 0) {
    TK_UNROLL for (u32 i = 0; i < 8; i++) sts32(b + i * 128 + ln * 4, lds32(a + i * 128 + ln * 4) ^ 1u);
  } else if (wp == 1) {
    TK_UNROLL for (u32 i = 0; i < 4; i++) {
      const u32x2 v = lds64(a + i * 256 + ln * 8);
      sts64(b + i * 256 + ln * 8, u32x2{v.y, v.x});
    }
  } else if (wp == 2) {
    TK_UNROLL for (u32 i = 0; i < 2; i++) {
      const u32x4 v = lds128(a + i * 512 + ln * 16);
      sts128(b + i * 512 + ln * 16, u32x4{v.w, v.z, v.y, v.x});
    }
  } else {
    for (u32 i = 0; i < 8; i++) {
      const u32 o = i * 128 + ln * 4;
      sts_u8(b + o, lds_u8(a + o + 1));
      sts_u8(b + o + 1, lds_u8(a + o));
      sts_u16(b + o + 2, lds_u16(a + o + 2) + 1u);
    }
    if (ln == 0) sts_f32(b, lds_f32(a) + 1.0f);
  }
  fence_proxy_async();
  cta_sync();
  if (wp == 0) {
    bulk_s2g(p.out, sb + kB, 4096);
    bulk_commit();
    bulk_wait_read<0>();
    bulk_wait<0>();
  }
  // Global accesses of every width: out[4096..] from in.
  const Header h = ld_uniform(p.header);
  const uint8_t* in = p.in + wp * 1024 + ln * 32;
  uint8_t* out = p.out + 4096 + wp * 1024 + ln * 32;
  if (wp == 0) {
    stg128(out, ldg128(in));
    stg128(out + 16, ldg_nc128(in + 16));
  } else if (wp == 1) {
    stg64(out, ldg64(in));
    stg64(out + 8, ldg_nc64(in + 8));
    stg32(out + 16, ldg32(in + 16));
    stg32(out + 20, ldg_nc32(in + 20));
    stg_f32(out + 24, ldg_f32(in + 24) + ldg_nc_f32(in + 24));
    stg_i32(out + 28, ldg_i32(in + 28) + h.a * h.b + h.c);
  } else {
    for (u32 i = 0; i < 16; i++) stg_u8(out + i, ldg_u8(in + i) + 1u);
    for (u32 i = 16; i < 32; i += 2) stg_u16(out + i, ldg_u16(in + i) * 3u);
  }
}
TK_EMU_ENTRY(memory_kernel, MemoryParams)
