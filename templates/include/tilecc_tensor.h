// What a tensor map describes; the same for the CUDA driver (templates/host/tilecc_tmap.h) and the emulator. C and C++.
#pragma once
#include <stdint.h>

enum {
  TILECC_U8 = 0,  // also fp8 codes
  TILECC_U16 = 1,
  TILECC_U32 = 2,
  TILECC_F16 = 3,
  TILECC_BF16 = 4,
  TILECC_F32 = 5
};

// Dimensions innermost first. Limits of the hardware: address a multiple of 16, strides multiples of 16 below 2^40,
// boxes of 1 to 256 elements, the inner box a multiple of 16 bytes. swizzle 0, or 128 with an inner box of 128 bytes:
// the 16-byte piece j of row r of a box then lies at piece j ^ (r % 8).
struct tilecc_tensor {
  uint64_t address;
  uint64_t dims[3];
  uint64_t strides[2];  // bytes from one index of dimension 1 and 2 to the next
  uint32_t box[3];
  uint32_t rank;        // 1 to 3
  uint32_t type;
  uint32_t swizzle;
};

static inline uint32_t tilecc_element_bytes(uint32_t type) {
  return type == TILECC_U8 ? 1u : type == TILECC_U32 || type == TILECC_F32 ? 4u : type <= TILECC_F32 ? 2u : 0u;
}

// Null, or what is wrong.
static inline const char* tilecc_tensor_problem(const struct tilecc_tensor* t) {
  const uint32_t size = tilecc_element_bytes(t->type);
  if (!size) return "unknown element type";
  if (t->rank < 1 || t->rank > 3) return "the rank must be 1, 2 or 3";
  if (!t->address || t->address % 16) return "the address must be a multiple of 16";
  for (uint32_t d = 0; d < t->rank; d++) {
    if (!t->dims[d] || t->dims[d] > 1ull << 32) return "a dimension must have 1 to 2^32 elements";
    if (!t->box[d] || t->box[d] > 256) return "a box has 1 to 256 elements in each dimension";
    if (d && (t->strides[d - 1] % 16 || t->strides[d - 1] >= 1ull << 40 || !t->strides[d - 1]))
      return "a stride must be a multiple of 16 below 2^40";
  }
  if (t->box[0] * size % 16) return "the inner box must be a multiple of 16 bytes";
  if (t->swizzle != 0 && t->swizzle != 128) return "the swizzle must be 0 or 128";
  if (t->swizzle && t->box[0] * size != 128) return "the 128-byte swizzle needs an inner box of 128 bytes";
  return 0;
}
