// Thread ids, the watchdog, barriers and warp collectives in PTX.
#pragma once

namespace tk {

TK_FN u32 lane() { return threadIdx.x & 31u; }
TK_FN u32 warp() { return threadIdx.x >> 5; }
TK_FN u32 cta() { return blockIdx.x; }
TK_FN u32 ncta() { return gridDim.x; }
// Nothing derived from v before this line is kept for after it: what a lane computes from its number is cheap, and kept in
// registers over a whole kernel it is not.
TK_FN void opaque(u32& v) { asm volatile("" : "+r"(v)); }
TK_FN bool elect() { return (threadIdx.x & 31u) == 0u; }

TK_FN smem_t smem_base() {
  extern __shared__ __align__(1024) uint8_t tk_dynamic_smem[];
  u32 base = static_cast<u32>(__cvta_generic_to_shared(tk_dynamic_smem));
  opaque(base);  // a register: as a constant it would be read from a special register wherever it is used
  return base;
}

// Annotations for the emulator's reports; nothing on the GPU.
TK_FN void smem_region(const char*, smem_t, u32) {}
TK_FN void mbar_name(smem_t, const char*, u32) {}
TK_FN void name_role(u32, const char*) {}
TK_FN void name_op(u32, const char*) {}

// ---- clocks, for records only: no decision of a kernel depends on one ------------------------------

// Cycles of this SM, the low 32 bits. Not reordered with other volatile primitives.
TK_FN u32 clock32() {
  u32 t;
  asm volatile("mov.u32 %0, %clock;" : "=r"(t)::"memory");
  return t;
}
// Nanoseconds, the same on every SM; advances in steps of some 32 ns.
TK_FN u64 global_timer() {
  u64 t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// ---- watchdog -------------------------------------------------------------------------------------

// The first lane of the grid that gives up writes the record, then every one of them traps. Out of line, and Watch by
// value: inlined into every wait it cost a kernel a hundred registers.
static __device__ __noinline__ void give_up(const Watch w, u32 kind, u32 object, u32 expected, u32 seen) {
  if (w.status != nullptr && atomicCAS(w.status, 0u, kStatusClaimed) == 0u) {
    volatile u32* s = w.status;
    s[1] = cta();
    s[2] = w.role;
    s[3] = w.op;
    s[4] = w.layer;
    s[5] = w.item;
    s[6] = object;
    s[7] = expected;
    s[8] = seen;
    s[9] = kind;
    s[10] = warp();
    __threadfence_system();
    s[0] = kStatusMagic;
    __threadfence_system();
  }
  asm volatile("trap;");
}

// ---- mbarrier -------------------------------------------------------------------------------------

TK_FN void mbar_init(smem_t bar, u32 count) {
  if (elect()) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
TK_FN void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
TK_FN void mbar_arrive(smem_t bar) {
  if (elect())
    asm volatile("{\n.reg .b64 st;\nmbarrier.arrive.shared::cta.b64 st, [%0];\n}" ::"r"(bar) : "memory");
}
TK_FN void mbar_arrive_expect_tx(smem_t bar, u32 bytes) {
  if (elect())
    asm volatile("{\n.reg .b64 st;\nmbarrier.arrive.expect_tx.shared::cta.b64 st, [%0], %1;\n}" ::"r"(bar),
                 "r"(bytes)
                 : "memory");
}
// One try_wait: true once the phase of this parity has completed. Sleeps in hardware for a while.
TK_FN bool mbar_try(smem_t bar, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0u;
}
// A wait that is already satisfied costs one try_wait; the rest is out of line, so that main loops stay short. The clock is
// read only after a first burst of failed tries.
static __device__ __noinline__ void mbar_wait_on(smem_t bar, u32 parity, const Watch w) {
#pragma unroll 1
  for (int burst = 0; burst < 16; burst++)
    if (mbar_try(bar, parity)) return;
  const u64 start = global_timer();
#pragma unroll 1
  while (!mbar_try(bar, parity))
    if (global_timer() - start > TK_WATCHDOG_NS) give_up(w, kWaitMbarrier, bar - smem_base(), parity, parity ^ 1u);
}
TK_FN void mbar_wait(smem_t bar, u32 parity, const Watch& w) {
  if (__builtin_expect(!mbar_try(bar, parity), 0)) mbar_wait_on(bar, parity, w);
}

// ---- warps and CTAs -------------------------------------------------------------------------------

TK_FN void syncwarp() { __syncwarp(); }
TK_FN void bar_sync(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
TK_FN void bar_arrive(u32 id, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
TK_FN void cta_sync() { __syncthreads(); }
template <int N>
TK_FN void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
TK_FN void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
TK_FN void nanosleep(u32 ns) { __nanosleep(ns); }

TK_FN float shfl_xor(float v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
TK_FN u32 shfl_xor(u32 v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
TK_FN i32 shfl_xor(i32 v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
TK_FN float shfl_idx(float v, u32 src) { return __shfl_sync(0xffffffffu, v, src); }
TK_FN u32 shfl_idx(u32 v, u32 src) { return __shfl_sync(0xffffffffu, v, src); }
TK_FN i32 shfl_idx(i32 v, u32 src) { return __shfl_sync(0xffffffffu, v, src); }
TK_FN float shfl_up(float v, u32 by) { return __shfl_up_sync(0xffffffffu, v, by); }
TK_FN u32 shfl_up(u32 v, u32 by) { return __shfl_up_sync(0xffffffffu, v, by); }
TK_FN i32 shfl_up(i32 v, u32 by) { return __shfl_up_sync(0xffffffffu, v, by); }
TK_FN float shfl_down(float v, u32 by) { return __shfl_down_sync(0xffffffffu, v, by); }
TK_FN u32 shfl_down(u32 v, u32 by) { return __shfl_down_sync(0xffffffffu, v, by); }
TK_FN i32 shfl_down(i32 v, u32 by) { return __shfl_down_sync(0xffffffffu, v, by); }
TK_FN u32 ballot(bool pred) { return __ballot_sync(0xffffffffu, pred); }

}  // namespace tk
