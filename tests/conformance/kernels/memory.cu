// Loads and stores of every width, by one warp. in: 4096 bytes; out: 8192 bytes.
#include "conformance.h"

using namespace tk;

struct Words {
  u32 a, b, c;
};

TK_KERNEL(conformance_memory, 32)(TK_GRID_CONST ConformanceParams p) {
  const u32 l = lane();
  const smem_t sb = smem_base();
  smem_region("data", sb, 4096);
  uint8_t* out = p.out;
  // Global, coherent and read-only: 31 bytes a lane at the widths they need.
  stg_u8(out + l, ldg_u8(p.in + l));
  stg_u16(out + 64 + 2 * l, ldg_u16(p.in + 64 + 2 * l));
  stg32(out + 128 + 4 * l, ldg32(p.in + 128 + 4 * l));
  stg64(out + 256 + 8 * l, ldg64(p.in + 256 + 8 * l));
  stg128(out + 512 + 16 * l, ldg128(p.in + 512 + 16 * l));
  stg_f32(out + 1024 + 4 * l, ldg_f32(p.in + 1024 + 4 * l));
  stg_i32(out + 1152 + 4 * l, ldg_i32(p.in + 1152 + 4 * l));
  stg32(out + 1280 + 4 * l, ldg_nc32(p.in + 1280 + 4 * l));
  stg64(out + 1408 + 8 * l, ldg_nc64(p.in + 1408 + 8 * l));
  stg128(out + 1664 + 16 * l, ldg_nc128(p.in + 1664 + 16 * l));
  stg_f32(out + 2176 + 4 * l, ldg_nc_f32(p.in + 2176 + 4 * l));
  stg128(out + 2304 + 16 * l, ldg_nc128_noalloc(p.in + 2304 + 16 * l));
  stg128(out + 2816 + 16 * l, ldg_nc128_stream(p.in + 2816 + 16 * l));
  stg128(out + 3328 + 16 * l, l & 1u ? ldg_nc128_hint(p.in + 3328 + 16 * l, l2_evict_first()) : ldg_nc128_hint(p.in + 3328 + 16 * l, l2_evict_last()));
  const Words w = ld_uniform(reinterpret_cast<const Words*>(p.in + 3840));
  stg32(out + 3840 + 4 * l, w.a + 3u * w.b + 5u * w.c + l);
  stg_u8(out + 32 + l, ldg_u8(p.in + 31 - l));  // fills [32, 64)
  // Shared: each width writes a part, the next lane's part is read at another width.
  sts_u8(sb + l, ldg_u8(p.in + l) ^ 0x5au);
  sts_u8(sb + 32 + l, l);
  sts_u16(sb + 64 + 2 * l, ldg_u16(p.in + 64 + 2 * l) ^ 0x5aa5u);
  sts32(sb + 128 + 4 * l, ldg32(p.in + 128 + 4 * l) ^ 0x12345678u);
  sts64(sb + 256 + 8 * l, ldg64(p.in + 256 + 8 * l));
  sts128(sb + 512 + 16 * l, ldg128(p.in + 512 + 16 * l));
  sts_f32(sb + 1024 + 4 * l, ldg_f32(p.in + 1024 + 4 * l));
  syncwarp();
  const u32 o = l ^ 5u;
  stg32(out + 3968 + 4 * l, lds_u8(sb + o) | lds_u8(sb + 32 + o) << 8 | lds_u16(sb + 64 + 2 * o) << 16);
  stg32(out + 4096 + 4 * l, lds32(sb + 128 + 4 * o));
  stg64(out + 4224 + 8 * l, lds64(sb + 256 + 8 * o));
  stg128(out + 4480 + 16 * l, lds128(sb + 512 + 16 * o));
  stg_f32(out + 4992 + 4 * l, lds_f32(sb + 1024 + 4 * o));
  stg128(out + 5120 + 16 * l, lds128(sb + 16 * (o & 15u)));
}
TK_EMU_ENTRY(conformance_memory, ConformanceParams)
