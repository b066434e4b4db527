// Clusters in the emulation. A cluster address is the offset plus (rank + 1) << 24.
#pragma once

namespace tk_emu {

TK_HIDDEN void cluster_arrive(Site site);
TK_HIDDEN void cluster_wait(Site site);
TK_HIDDEN uint32_t mapa(uint32_t addr, uint32_t rank, Site site);
TK_HIDDEN uint32_t cluster_load(uint32_t addr, Site site);
TK_HIDDEN void cluster_store(uint32_t addr, uint32_t value, Site site);
TK_HIDDEN void cluster_mbar_arrive(uint32_t addr, uint32_t tx_bytes, const char* what, Site site);
TK_HIDDEN void bulk_s2s(uint32_t dst, uint32_t src, uint32_t bytes, uint32_t bar, Site site);

}  // namespace tk_emu

namespace tk {

TK_FN u32 cluster_rank() { return tk_emu::cur->cta->cluster_rank; }
TK_FN u32 cluster_size() { return tk_emu::cur->cta->cluster_size; }
TK_FN void cluster_arrive(TK_SITE) { tk_emu::cluster_arrive(site); }
TK_FN void cluster_wait(TK_SITE) { tk_emu::cluster_wait(site); }
TK_FN void cluster_sync(TK_SITE) {
  tk_emu::cluster_arrive(site);
  tk_emu::cluster_wait(site);
}
TK_FN smem_t mapa(smem_t a, u32 rank, TK_SITE) { return tk_emu::mapa(a, rank, site); }
TK_FN u32 lds32_cluster(smem_t a, TK_SITE) { return tk_emu::cluster_load(a, site); }
TK_FN void sts32_cluster(smem_t a, u32 v, TK_SITE) { tk_emu::cluster_store(a, v, site); }
TK_FN void mbar_arrive_cluster(smem_t bar, TK_SITE) {
  if (elect()) tk_emu::cluster_mbar_arrive(bar, 0, "mbar_arrive_cluster", site);
}
TK_FN void mbar_arrive_expect_tx_cluster(smem_t bar, u32 bytes, TK_SITE) {
  if (elect()) tk_emu::cluster_mbar_arrive(bar, bytes, "mbar_arrive_expect_tx_cluster", site);
}
TK_FN void mbar_wait_cluster(smem_t bar, u32 parity, const Watch& watch, TK_SITE) {
  tk_emu::mbar_wait(bar, parity, watch, site);
}
TK_FN void bulk_s2s(smem_t dst, smem_t src, u32 bytes, smem_t bar, TK_SITE) {
  if (elect()) tk_emu::bulk_s2s(dst, src, bytes, bar, site);
}

}  // namespace tk
