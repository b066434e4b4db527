// Tensor copies through a tensor map in the emulation.
#pragma once

namespace tk_emu {

struct BoxAt {
  int32_t at[3];
};
TK_HIDDEN void tma_load(uint32_t dst, const tk::tmap_t* map, uint32_t rank, BoxAt box, uint32_t bar, const char* what,
                        Site site);
TK_HIDDEN void tma_store(const tk::tmap_t* map, uint32_t src, uint32_t rank, BoxAt box, const char* what, Site site);
TK_HIDDEN void tma_prefetch_map(const tk::tmap_t* map, Site site);

}  // namespace tk_emu

namespace tk {

TK_FN void tma_load_1d(smem_t dst, const tmap_t* map, i32 x, smem_t bar, TK_SITE) {
  if (elect()) tk_emu::tma_load(dst, map, 1, {{x, 0, 0}}, bar, "tma_load_1d", site);
}
TK_FN void tma_load_2d(smem_t dst, const tmap_t* map, i32 x, i32 y, smem_t bar, TK_SITE) {
  if (elect()) tk_emu::tma_load(dst, map, 2, {{x, y, 0}}, bar, "tma_load_2d", site);
}
TK_FN void tma_load_3d(smem_t dst, const tmap_t* map, i32 x, i32 y, i32 z, smem_t bar, TK_SITE) {
  if (elect()) tk_emu::tma_load(dst, map, 3, {{x, y, z}}, bar, "tma_load_3d", site);
}
TK_FN void tma_store_1d(const tmap_t* map, smem_t src, i32 x, TK_SITE) {
  if (elect()) tk_emu::tma_store(map, src, 1, {{x, 0, 0}}, "tma_store_1d", site);
}
TK_FN void tma_store_2d(const tmap_t* map, smem_t src, i32 x, i32 y, TK_SITE) {
  if (elect()) tk_emu::tma_store(map, src, 2, {{x, y, 0}}, "tma_store_2d", site);
}
TK_FN void tma_store_3d(const tmap_t* map, smem_t src, i32 x, i32 y, i32 z, TK_SITE) {
  if (elect()) tk_emu::tma_store(map, src, 3, {{x, y, z}}, "tma_store_3d", site);
}
TK_FN void tma_prefetch_map(const tmap_t* map, TK_SITE) {
  if (elect()) tk_emu::tma_prefetch_map(map, site);
}

}  // namespace tk
