// Matrix fragments and tensor cores of one warp in PTX: ldmatrix, stmatrix, mma.sync.
#pragma once

namespace tk {

// 8x8 matrices of 16-bit elements. Lanes 8i .. 8i+7 give the addresses (multiples of 16) of the rows of matrix i;
// lane l gets row l/4, columns 2(l%4) and 2(l%4)+1; of the transposed matrix in the _trans forms.
#define TK_LDMATRIX(name, trans)                                                                                      \
  TK_FN void name##_x1(u32(&r)[1], smem_t row) {                                                                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(row) : "memory"); \
  }                                                                                                                   \
  TK_FN void name##_x2(u32(&r)[2], smem_t row) {                                                                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0,%1}, [%2];"                                   \
                 : "=r"(r[0]), "=r"(r[1])                                                                             \
                 : "r"(row)                                                                                           \
                 : "memory");                                                                                         \
  }                                                                                                                   \
  TK_FN void name##_x4(u32(&r)[4], smem_t row) {                                                                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0,%1,%2,%3}, [%4];"                             \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                                     \
                 : "r"(row)                                                                                           \
                 : "memory");                                                                                         \
  }
TK_LDMATRIX(ldmatrix, "")
TK_LDMATRIX(ldmatrix_trans, ".trans")
#undef TK_LDMATRIX

#define TK_STMATRIX(name, trans)                                                                                     \
  TK_FN void name##_x1(smem_t row, const u32(&r)[1]) {                                                               \
    asm volatile("stmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 [%0], {%1};" ::"r"(row), "r"(r[0]) : "memory");  \
  }                                                                                                                  \
  TK_FN void name##_x2(smem_t row, const u32(&r)[2]) {                                                               \
    asm volatile("stmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 [%0], {%1,%2};" ::"r"(row), "r"(r[0]), "r"(r[1]) \
                 : "memory");                                                                                        \
  }                                                                                                                  \
  TK_FN void name##_x4(smem_t row, const u32(&r)[4]) {                                                               \
    asm volatile("stmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row), "r"(r[0]),     \
                 "r"(r[1]), "r"(r[2]), "r"(r[3])                                                                     \
                 : "memory");                                                                                        \
  }
TK_STMATRIX(stmatrix, "")
TK_STMATRIX(stmatrix_trans, ".trans")
#undef TK_STMATRIX

// C[16][8] += A[16][K] B[K][8] in float32. mma_f16: K = 16, fragments as in mma_bf16. fp8: K = 32, four codes a
// register: a = (g,4t..) (g+8,4t..) (g,4t+16..) (g+8,4t+16..), b = (4t..,g) (4t+16..,g), c as in mma_bf16.
#define TK_MMA(name, shape, type)                                                     \
  TK_FN void name(float (&c)[4], const u32(&a)[4], const u32(&b)[2]) {                \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type              \
                 ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"            \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
  }
TK_MMA(mma_f16, "m16n8k16", "f16")
TK_MMA(mma_e4m3, "m16n8k32", "e4m3")
TK_MMA(mma_e5m2, "m16n8k32", "e5m2")
#undef TK_MMA

}  // namespace tk
