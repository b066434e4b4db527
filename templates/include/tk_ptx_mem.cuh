// Shared and global memory accesses in PTX.
#pragma once

namespace tk {

TK_FN u32 lds32(smem_t a) {
  u32 r;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(r) : "r"(a) : "memory");
  return r;
}
TK_FN u32x2 lds64(smem_t a) {
  u32x2 r;
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "r"(a) : "memory");
  return r;
}
TK_FN u32x4 lds128(smem_t a) {
  u32x4 r;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(a)
               : "memory");
  return r;
}
TK_FN u32 lds_u8(smem_t a) {
  u32 r;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(r) : "r"(a) : "memory");
  return r;
}
TK_FN u32 lds_u16(smem_t a) {
  u32 r;
  asm volatile("{\n.reg .b16 h;\nld.shared.b16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(r) : "r"(a) : "memory");
  return r;
}
TK_FN float lds_f32(smem_t a) { return __uint_as_float(lds32(a)); }

TK_FN void sts32(smem_t a, u32 v) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
TK_FN void sts64(smem_t a, u32x2 v) {
  asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(a), "r"(v.x), "r"(v.y) : "memory");
}
TK_FN void sts128(smem_t a, u32x4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
TK_FN void sts_u8(smem_t a, u32 v) { asm volatile("st.shared.u8 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
TK_FN void sts_u16(smem_t a, u32 v) {
  asm volatile("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\nst.shared.b16 [%0], h;\n}" ::"r"(a), "r"(v) : "memory");
}
TK_FN void sts_f32(smem_t a, float v) { sts32(a, __float_as_uint(v)); }

// Coherent loads: data written during the launch.
TK_FN u32 ldg32(const void* p) {
  u32 r;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(r) : "l"(__cvta_generic_to_global(p)) : "memory");
  return r;
}
TK_FN u32x2 ldg64(const void* p) {
  u32x2 r;
  asm volatile("ld.global.v2.b32 {%0,%1}, [%2];"
               : "=r"(r.x), "=r"(r.y)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return r;
}
TK_FN u32x4 ldg128(const void* p) {
  u32x4 r;
  asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return r;
}
TK_FN u32 ldg_u8(const void* p) {
  u32 r;
  asm volatile("ld.global.u8 %0, [%1];" : "=r"(r) : "l"(__cvta_generic_to_global(p)) : "memory");
  return r;
}
TK_FN u32 ldg_u16(const void* p) {
  u32 r;
  asm volatile("{\n.reg .b16 h;\nld.global.b16 h, [%1];\ncvt.u32.u16 %0, h;\n}"
               : "=r"(r)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return r;
}
TK_FN float ldg_f32(const void* p) { return __uint_as_float(ldg32(p)); }
TK_FN i32 ldg_i32(const void* p) { return static_cast<i32>(ldg32(p)); }

// Read-only loads: nothing writes this memory during the launch.
TK_FN u32 ldg_nc32(const void* p) {
  u32 r;
  asm("ld.global.nc.b32 %0, [%1];" : "=r"(r) : "l"(__cvta_generic_to_global(p)));
  return r;
}
TK_FN u32x2 ldg_nc64(const void* p) {
  u32x2 r;
  asm("ld.global.nc.v2.b32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(__cvta_generic_to_global(p)));
  return r;
}
TK_FN u32x4 ldg_nc128(const void* p) {
  u32x4 r;
  asm("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];"
      : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
      : "l"(__cvta_generic_to_global(p)));
  return r;
}
TK_FN float ldg_nc_f32(const void* p) { return __uint_as_float(ldg_nc32(p)); }

TK_FN void stg_u8(void* p, u32 v) {
  asm volatile("st.global.u8 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}
TK_FN void stg_u16(void* p, u32 v) {
  asm volatile("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\nst.global.b16 [%0], h;\n}" ::"l"(__cvta_generic_to_global(p)),
               "r"(v)
               : "memory");
}
TK_FN void stg32(void* p, u32 v) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");
}
TK_FN void stg64(void* p, u32x2 v) {
  asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y)
               : "memory");
}
TK_FN void stg128(void* p, u32x4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
TK_FN void stg_f32(void* p, float v) { stg32(p, __float_as_uint(v)); }
TK_FN void stg_i32(void* p, i32 v) { stg32(p, static_cast<u32>(v)); }

// A POD struct of 4-byte words that every lane reads from read-only memory.
template <class T>
TK_FN T ld_uniform(const T* p) {
  static_assert(sizeof(T) % 4 == 0, "ld_uniform reads whole 4-byte words");
  T value;
  u32 words[sizeof(T) / 4];
  TK_UNROLL for (int i = 0; i < static_cast<int>(sizeof(T) / 4); i++)
    words[i] = ldg_nc32(reinterpret_cast<const u32*>(p) + i);
  memcpy(&value, words, sizeof(T));
  return value;
}

}  // namespace tk
