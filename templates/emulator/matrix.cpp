// 8x8 matrices between registers and shared memory; mma.sync in f16 and fp8.
#include <string.h>

#include "engine.h"

namespace tk_emu {

static MatrixSlot* slot_of(Warp* warp, int lane) { return static_cast<MatrixSlot*>(warp->slot[lane]); }

void load_matrices(Warp* warp, int matrices, bool transposed) {
  for (int m = 0; m < matrices; m++) {
    uint16_t tile[8][8];
    for (int r = 0; r < 8; r++) memcpy(tile[r], slot_of(warp, 8 * m + r)->row, 16);
    for (int lane = 0; lane < kLanes; lane++) {
      const int r = lane >> 2, c = 2 * (lane & 3);
      const uint32_t lo = transposed ? tile[c][r] : tile[r][c], hi = transposed ? tile[c + 1][r] : tile[r][c + 1];
      slot_of(warp, lane)->registers[m] = lo | hi << 16;
    }
  }
}

void store_matrices(Warp* warp, int matrices, bool transposed) {
  for (int m = 0; m < matrices; m++) {
    uint16_t tile[8][8];
    for (int lane = 0; lane < kLanes; lane++) {
      const int r = lane >> 2, c = 2 * (lane & 3);
      const uint32_t v = slot_of(warp, lane)->registers[m];
      (transposed ? tile[c][r] : tile[r][c]) = static_cast<uint16_t>(v);
      (transposed ? tile[c + 1][r] : tile[r][c + 1]) = static_cast<uint16_t>(v >> 16);
    }
    for (int r = 0; r < 8; r++) memcpy(slot_of(warp, 8 * m + r)->row, tile[r], 16);
  }
}

float element_value(MmaType type, uint32_t bits) {
  switch (type) {
    case MmaType::kF16: return half_to_float(bits);
    case MmaType::kE4m3: return half_to_float(e4m3_to_half(bits));
    default: return half_to_float(e5m2_to_half(bits));
  }
}

void mma_warp(Warp* warp, MmaType type) {
  warp->counts[kMma]++;
  const int width = type == MmaType::kF16 ? 16 : 8, per = 32 / width, K = 8 * per;  // bits, elements a register
  const uint32_t mask = (1u << width) - 1u;
  float a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; lane++) {
    const MmaOperands* s = static_cast<MmaOperands*>(warp->slot[lane]);
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 4; i++)
      for (int e = 0; e < per; e++)
        a[g + 8 * (i & 1)][per * t + e + K / 2 * (i >> 1)] = element_value(type, s->a[i] >> (width * e) & mask);
    for (int i = 0; i < 2; i++)
      for (int e = 0; e < per; e++) b[per * t + e + K / 2 * i][g] = element_value(type, s->b[i] >> (width * e) & mask);
  }
  for (int lane = 0; lane < kLanes; lane++) {
    const MmaOperands* s = static_cast<MmaOperands*>(warp->slot[lane]);
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 4; i++) {
      const int row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
      float sum = s->c[i];
      for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
      s->c[i] = tk::canonical(sum);
    }
  }
}

}  // namespace tk_emu
