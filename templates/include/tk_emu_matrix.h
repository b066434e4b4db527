// Matrix fragments and tensor cores of one warp in the emulation: ldmatrix, stmatrix, mma.sync.
#pragma once

namespace tk_emu {

// One lane's part: the row it addresses (null: none) and its registers.
struct MatrixSlot {
  uint8_t* row;
  uint32_t* registers;
};
TK_HIDDEN void load_matrices(Warp* warp, int matrices, bool transposed);
TK_HIDDEN void store_matrices(Warp* warp, int matrices, bool transposed);

enum class MmaType : int { kF16, kE4m3, kE5m2 };
struct MmaOperands {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};
TK_HIDDEN float element_value(MmaType type, uint32_t bits);
TK_HIDDEN void mma_warp(Warp* warp, MmaType type);

template <int N>
TK_ALWAYS void move_matrices(uint32_t* registers, uint32_t row, bool store, bool transposed, const char* what,
                             Site site) {
  preempt_point();
  const bool mine = cur->lane < 8 * N;
  if (mine) count(store ? kStsBytes : kLdsBytes, 16);
  MatrixSlot slot{mine ? smem_at(row, 16, store, what, site) : nullptr, registers};
  collective(&slot, what, site, [=](Warp* w) {
    w->counts[kMatrixMove]++;
    if (store)
      store_matrices(w, N, transposed);
    else
      load_matrices(w, N, transposed);
    release_all(w);
  });
}

}  // namespace tk_emu

namespace tk {

#define TK_LDMATRIX(name, n, transposed) \
  TK_FN void name(u32(&r)[n], smem_t row, TK_SITE) { tk_emu::move_matrices<n>(r, row, false, transposed, #name, site); }
TK_LDMATRIX(ldmatrix_x1, 1, false)
TK_LDMATRIX(ldmatrix_x2, 2, false)
TK_LDMATRIX(ldmatrix_x4, 4, false)
TK_LDMATRIX(ldmatrix_trans_x1, 1, true)
TK_LDMATRIX(ldmatrix_trans_x2, 2, true)
TK_LDMATRIX(ldmatrix_trans_x4, 4, true)
#undef TK_LDMATRIX

#define TK_STMATRIX(name, n, transposed)                                               \
  TK_FN void name(smem_t row, const u32(&r)[n], TK_SITE) {                             \
    tk_emu::move_matrices<n>(const_cast<u32*>(r), row, true, transposed, #name, site); \
  }
TK_STMATRIX(stmatrix_x1, 1, false)
TK_STMATRIX(stmatrix_x2, 2, false)
TK_STMATRIX(stmatrix_x4, 4, false)
TK_STMATRIX(stmatrix_trans_x1, 1, true)
TK_STMATRIX(stmatrix_trans_x2, 2, true)
TK_STMATRIX(stmatrix_trans_x4, 4, true)
#undef TK_STMATRIX

// float32 sums, k ascending, products exact, one rounding per addition.
#define TK_MMA(name, type)                                                      \
  TK_FN void name(float (&c)[4], const u32(&a)[4], const u32(&b)[2], TK_SITE) { \
    tk_emu::MmaOperands slot{c, a, b};                                          \
    tk_emu::collective(&slot, #name, site, [](tk_emu::Warp* w) {                \
      tk_emu::mma_warp(w, tk_emu::MmaType::type);                               \
      tk_emu::release_all(w);                                                   \
    });                                                                         \
  }
TK_MMA(mma_f16, kF16)
TK_MMA(mma_e4m3, kE4m3)
TK_MMA(mma_e5m2, kE5m2)
#undef TK_MMA

}  // namespace tk
