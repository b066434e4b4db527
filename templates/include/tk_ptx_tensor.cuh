// Tensor copies through a tensor map in PTX.
#pragma once

namespace tk {

// One box: global -> shared, completing the bytes of the whole box on `bar`. Coordinates innermost first, in elements;
// the innermost must be a multiple of 16 bytes, and those of a store not negative, or the GPU raises an illegal
// instruction. What lies outside the tensor arrives as zero and is not stored, except the rest of the last 16 bytes of a
// row. Shared addresses are multiples of 128, of 1024 with the 128-byte swizzle. (L0)
#define TK_TMA_LOAD(dims, coordinates, ...)                                                                            \
  asm volatile("cp.async.bulk.tensor." dims                                                                            \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates "}], [%2];" ::"r"(dst), \
               "l"(map), "r"(bar), __VA_ARGS__                                                                         \
               : "memory")
TK_FN void tma_load_1d(smem_t dst, const tmap_t* map, i32 x, smem_t bar) {
  if (elect()) TK_TMA_LOAD("1d", "%3", "r"(x));
}
TK_FN void tma_load_2d(smem_t dst, const tmap_t* map, i32 x, i32 y, smem_t bar) {
  if (elect()) TK_TMA_LOAD("2d", "%3, %4", "r"(x), "r"(y));
}
TK_FN void tma_load_3d(smem_t dst, const tmap_t* map, i32 x, i32 y, i32 z, smem_t bar) {
  if (elect()) TK_TMA_LOAD("3d", "%3, %4, %5", "r"(x), "r"(y), "r"(z));
}
#undef TK_TMA_LOAD

// One box: shared -> global, in the bulk groups of lane 0; what lies outside the tensor is not written. (L0)
#define TK_TMA_STORE(dims, coordinates, ...)                                                    \
  asm volatile("cp.async.bulk.tensor." dims ".global.shared::cta.bulk_group [%0, {" coordinates \
               "}], [%1];" ::"l"(map),                                                          \
               "r"(src), __VA_ARGS__                                                            \
               : "memory")
TK_FN void tma_store_1d(const tmap_t* map, smem_t src, i32 x) {
  if (elect()) TK_TMA_STORE("1d", "%2", "r"(x));
}
TK_FN void tma_store_2d(const tmap_t* map, smem_t src, i32 x, i32 y) {
  if (elect()) TK_TMA_STORE("2d", "%2, %3", "r"(x), "r"(y));
}
TK_FN void tma_store_3d(const tmap_t* map, smem_t src, i32 x, i32 y, i32 z) {
  if (elect()) TK_TMA_STORE("3d", "%2, %3, %4", "r"(x), "r"(y), "r"(z));
}
#undef TK_TMA_STORE

// The map itself, before its first use. (L0)
TK_FN void tma_prefetch_map(const tmap_t* map) {
  if (elect()) asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace tk
