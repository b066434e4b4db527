// Named barriers, registers, and a ring of CTAs passing a value through counters that may wrap.
#include "tk_prim.cuh"

struct SyncParams {
  uint32_t* counters;  // [ncta + 1], 128 bytes apart, all starting at `base`
  uint32_t* values;    // [ncta]
  uint32_t* out;       // [ncta][4 warps][32]
  uint32_t* status;
  uint32_t base, rounds;
};

using namespace tk;

TK_KERNEL(sync_kernel, 160)(TK_GRID_CONST SyncParams p) {
  const smem_t sb = smem_base();
  const u32 wp = warp(), ln = lane(), me = cta(), n = ncta();
  smem_region("data", sb, 4 * 128);
  name_role(5, "token");
  Watch w{p.status, 5, 0, 0, 0};
  u32 sum = 0;
  if (wp == 4) {
    setmaxnreg_dec<24>();
    // The token goes round: CTA 0 starts each round, every CTA adds its number and passes it on.
    for (u32 r = 0; r < p.rounds; r++) {
      w.item = r;
      wait_ge(p.counters + me * 32, p.base + r + (me == 0 ? 0u : 1u), w);
      syncwarp();
      if (ln == 0) {
        const u32 before = ldg32(p.values + (me + n - 1) % n);
        stg32(p.values + me, before + me + 1u);
      }
      syncwarp();
      if (r % 2 == 0) {
        red_release(p.counters + (me + 1) % n * 32, 1);
      } else {
        st_release(p.counters + (me + 1) % n * 32, p.base + r + 1u);
      }
      fence_gpu();
    }
  } else {
    setmaxnreg_inc<64>();
    // Warps 0 and 1 produce, 2 and 3 consume: bar_arrive / bar_sync on two barriers, then all four meet.
    for (u32 r = 0; r < p.rounds; r++) {
      if (wp < 2) {
        if (r > 0) bar_sync(2, 128);
        sts32(sb + wp * 128 + ln * 4, r * 1000u + wp * 100u + ln);
        bar_arrive(1, 128);
      } else {
        bar_sync(1, 128);
        sum += lds32(sb + (wp - 2) * 128 + (31u - ln) * 4);
        if (r + 1 < p.rounds) bar_arrive(2, 128);
      }
      nanosleep(20);
    }
    bar_sync(3, 128);
    stg32(p.out + (me * 4 + wp) * 32 + ln, sum);
  }
  cta_sync();
}
TK_EMU_ENTRY(sync_kernel, SyncParams)
