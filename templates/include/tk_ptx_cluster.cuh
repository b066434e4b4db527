// Clusters in PTX: ids, the cluster barrier, shared memory and mbarriers of other CTAs.
#pragma once

namespace tk {

TK_FN u32 cluster_rank() {
  u32 r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
TK_FN u32 cluster_size() {
  u32 r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
// All threads of all CTAs of the cluster; orders shared memory of all of them.
TK_FN void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
TK_FN void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
TK_FN void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Cluster address of the same place in the shared memory of CTA `rank`; for the functions below alone. No CTA may leave
// the kernel while others still use its shared memory.
TK_FN smem_t mapa(smem_t a, u32 rank) {
  u32 r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
  return r;
}
TK_FN u32 lds32_cluster(smem_t a) {
  u32 r;
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(r) : "r"(a) : "memory");
  return r;
}
TK_FN void sts32_cluster(smem_t a, u32 v) {
  asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}
// (L0)
TK_FN void mbar_arrive_cluster(smem_t bar) {
  if (elect()) asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
TK_FN void mbar_arrive_expect_tx_cluster(smem_t bar, u32 bytes) {
  if (elect())
    asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
// mbar_wait on a barrier of this CTA, for what other CTAs of the cluster released with their arrivals.
TK_FN bool mbar_try_cluster(smem_t bar, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0u;
}
TK_FN void mbar_wait_cluster(smem_t bar, u32 parity, const Watch& w) {
#pragma unroll 1
  for (int burst = 0; burst < 16; burst++)
    if (mbar_try_cluster(bar, parity)) return;
  const u64 start = global_timer();
#pragma unroll 1
  while (!mbar_try_cluster(bar, parity))
    if (global_timer() - start > TK_WATCHDOG_NS) give_up(w, kWaitMbarrier, bar - smem_base(), parity, parity ^ 1u);
}
// Own shared memory -> that of another CTA, completing `bytes` on an mbarrier there; dst and bar from mapa. (L0)
TK_FN void bulk_s2s(smem_t dst, smem_t src, u32 bytes, smem_t bar) {
  if (elect())
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
        "r"(src), "r"(bytes), "r"(bar)
        : "memory");
}

}  // namespace tk
