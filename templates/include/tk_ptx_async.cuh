// Bulk copies, proxy fences and global counters in PTX.
#pragma once

namespace tk {

TK_FN u64 global_address(const void* p) { return static_cast<u64>(__cvta_generic_to_global(p)); }

// Global -> shared, completing `bytes` on `bar`. Addresses and size are multiples of 16. (L0)
TK_FN void bulk_g2s(smem_t dst, const void* src, u32 bytes, smem_t bar) {
  if (elect())
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
        "l"(global_address(src)), "r"(bytes), "r"(bar)
        : "memory");
}
// Shared -> global, tracked by the bulk groups of lane 0. (L0)
TK_FN void bulk_s2g(void* dst, smem_t src, u32 bytes) {
  if (elect())
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global_address(dst)),
                 "r"(src), "r"(bytes)
                 : "memory");
}
TK_FN void bulk_commit() {
  if (elect()) asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// All but the newest N groups are complete: their writes are visible to this thread. (L0)
template <int N>
TK_FN void bulk_wait() {
  if (elect()) asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
// All but the newest N groups have read their source: shared memory may be reused. (L0)
template <int N>
TK_FN void bulk_wait_read() {
  if (elect()) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// Generic-proxy accesses before it are ordered against async-proxy accesses after it, both ways.
TK_FN void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
TK_FN void prefetch_l2(const void* src, u32 bytes) {
  if (elect())
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global_address(src)), "r"(bytes)
                 : "memory");
}

// ---- global counters: one u32 per 128-byte line ----------------------------------------------------

TK_FN u32 ld_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(global_address(p)) : "memory");
  return v;
}
TK_FN void st_release(u32* p, u32 v) {
  if (elect())
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(global_address(p)), "r"(v) : "memory");
}
TK_FN void red_release(u32* p, u32 v) {
  if (elect())
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(global_address(p)), "r"(v) : "memory");
}
TK_FN void red_relaxed(u32* p, u32 v) {
  if (elect())
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(global_address(p)), "r"(v) : "memory");
}
TK_FN void fence_gpu() { __threadfence(); }

// Lane 0 waits until (int)(*p - target) >= 0, then has acquired what the releases published; the caller
// follows with syncwarp() where other lanes read it. (L0)
TK_FN void wait_ge(const u32* p, u32 target, const Watch& w) {
  if (!elect()) return;
#pragma unroll 1
  for (int burst = 0; burst < 256; burst++)
    if (static_cast<int>(ld_acquire(p) - target) >= 0) return;
  const u64 start = global_timer();
  u32 seen;
#pragma unroll 1
  while (static_cast<int>((seen = ld_acquire(p)) - target) < 0)
    if (global_timer() - start > TK_WATCHDOG_NS)
      give_up(w, kWaitCounter, static_cast<u32>(global_address(p)), target, seen);
}

}  // namespace tk
