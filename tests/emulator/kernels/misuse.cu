// One mistake per mode; mode 0 is right. Two warps.
#include "tk_prim.cuh"

struct MisuseParams {
  const uint8_t* in;  // [256], read-only
  uint8_t* out;       // [256]
  uint32_t* counter;
  uint32_t* status;
  uint32_t mode;
};

using namespace tk;
constexpr u32 kBar = 0, kData = 128, kDataBytes = 256, kTail = kData + kDataBytes;

TK_KERNEL(misuse_kernel, 64)(TK_GRID_CONST MisuseParams p) {
  const smem_t sb = smem_base(), data = sb + kData;
  const u32 wp = warp(), ln = lane(), mode = p.mode;
  smem_region("bars", sb, 64);
  smem_region("data", data, kDataBytes);
  smem_region("tail", data + kDataBytes, 64);
  name_role(3, "tester");
  name_op(4, "mistake");
  const Watch w{p.status, 3, 4, 5, 6};
  if (wp == 0) {
    mbar_init(sb + kBar, 1);
    mbar_init(sb + kBar + 8, 2);
    mbar_name(sb + kBar, "first", 0);
    mbar_name(sb + kBar + 8, "second", 1);
    if (mode == 1) mbar_init(sb + kBar, 1);
    fence_mbar_init();
  }
  cta_sync();
  sts32(data + wp * 128 + ln * 4, 0);
  syncwarp();
  if (wp == 0) {
    if (mode == 2) sts32(data + kDataBytes + 64, 0);            // beyond the last region
    if (mode == 3) lds128(data + kDataBytes - 8);               // misaligned
    if (mode == 4) lds64(sb + kBar);                            // an mbarrier
    if (mode == 5) lds32(sb + 4096);                            // outside shared memory
    if (mode == 6) lds32(kData);                                // smem_base() forgotten
    if (mode == 7) ldg32(p.in + 256);
    if (mode == 8) stg32(const_cast<uint8_t*>(p.in), 1);
    if (mode == 9) ldg64(p.in + 4);
    if (mode == 10) ldg32(nullptr);
    if (mode == 11) {
      if (ln < 16) syncwarp(); else tk::ballot(true);
    }
    if (mode == 12 && ln == 7) return;
    if (mode == 13) {
      mbar_arrive(sb + kBar + 8);
      mbar_arrive(sb + kBar + 8);
      mbar_arrive_expect_tx(sb + kBar, 16);
      mbar_arrive(sb + kBar);
    }
    if (mode == 14) mbar_wait(sb + kBar + 16, 0, w);
    if (mode == 15) bar_sync(1, 48);
    if (mode == 17) {
      mbar_arrive_expect_tx(sb + kBar, 32);
      bulk_g2s(data + 8, p.in, 32, sb + kBar);
    }
    if (mode == 18) bulk_g2s(data, p.in, 24, sb + kBar);
    if (mode == 19) bulk_g2s(data + 128, p.in, 192, sb + kBar);
    if (mode == 20) bulk_g2s(data, p.in + 128, 144, sb + kBar);
    if (mode == 21 || mode == 22) {
      bulk_s2g(p.out, data, 64);
      if (mode == 22) bulk_commit();
    }
    if (mode == 23) {
      mbar_arrive_expect_tx(sb + kBar, 48);
      bulk_g2s(data, p.in, 32, sb + kBar);
      mbar_wait(sb + kBar, 0, w);
    }
    if (mode == 24) wait_ge(p.counter, 7, w);
    if (mode == 25) bar_sync(4, 64);
    if (mode == 26) {
      while (ld_acquire(p.counter) == 0) nanosleep(100);
    }
    if (mode == 27) smem_region("overlap", data + 128, 256);
    if (mode == 28) red_release(p.counter + 1000, 1);
    if (mode == 29) setmaxnreg_inc<40>();
    if (mode == 30) {
      mbar_arrive_expect_tx(sb + kBar, 32);
      bulk_g2s(data, p.in, 32, sb + kBar);  // nobody waits for it
    }
    if (mode >= 31) {
      fence_proxy_async();
      syncwarp();
    }
    if (mode == 31) {
      mbar_arrive_expect_tx(sb + kBar, 32);
      bulk_g2s(data, p.in, 32, sb + kBar);
      bulk_g2s(data + 32, p.in, 32, sb + kBar);
      mbar_wait(sb + kBar, 0, w);
      syncwarp();
      mbar_arrive_expect_tx(sb + kBar, 32);
      mbar_wait(sb + kBar, 1, w);
    }
    if (mode == 32) {
      stg32(p.out + 4 * ln, ln);
      syncwarp();
      ldg_nc32(p.out + 4 * (31 - ln));
    }
    if (mode == 33) {
      ld_uniform(reinterpret_cast<const u32*>(p.counter));
      syncwarp();
      if (elect()) stg32(p.counter, 5);
    }
    if (mode >= 34 && mode <= 36) {
      const smem_t unwritten = sb + kTail;
      bulk_s2g(p.out, mode == 36 ? data : unwritten, 32);
      bulk_commit();
      bulk_wait<0>();
      syncwarp();
      if (mode == 34) ldg32(p.out + 16);
      if (mode == 35) {
        mbar_arrive_expect_tx(sb + kBar, 32);
        bulk_g2s(data, p.out, 32, sb + kBar);
        mbar_wait(sb + kBar, 0, w);
        syncwarp();
        lds32(data + 28);
      }
      if (mode == 36) {
        bulk_reduce_add_u32(p.out + 16, data, 32);
        bulk_commit();
        bulk_wait<0>();
      }
    }
    if (mode == 37) {
      if (ln < 8) cp_async16(data + 16 * ln, reinterpret_cast<const uint8_t*>(p.counter) + 16 * ln);
      cp_async_commit();
      syncwarp();
      bar_arrive(2, 64);
      cp_async_wait<0>();
    }
    syncwarp();
  } else {
    if (mode == 37) {
      bar_sync(2, 64);
      if (ln < 8) stg32(p.counter + 4 * ln, 1);
    }
    if (mode == 16) bar_sync(1, 32);
  }
  if (mode == 16 && wp == 0) bar_sync(1, 64);
}
TK_EMU_ENTRY(misuse_kernel, MisuseParams)
