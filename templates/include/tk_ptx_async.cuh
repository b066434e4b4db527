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

}  // namespace tk
