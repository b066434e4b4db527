// Device primitives of tilecc: one API, two implementations.
//
//   nvcc  -> tk_ptx.cuh  (inline PTX, sm_90a and newer)
//   other -> tk_emu.cuh  (CPU emulation: one fiber per CUDA thread)
//
// Emitted kernels reach shared memory, global memory, barriers, async copies, tensor cores and other
// lanes only through namespace tk. Rules the text must follow (design: emulator section 9):
//   * shared memory is addressed by smem_t byte offsets, smem_base() + offset, inside declared regions;
//   * every wait is a blocking primitive (mbar_wait, wait_ge, poll_word, ...), never a hand-written spin loop;
//   * the elected lane is lane 0. Functions marked (L0) act in lane 0 only; the other lanes of a
//     converged warp may call them too. Work of several lanes before an (L0) call needs syncwarp();
//   * warp collectives (mma_*, shfl_*, syncwarp, ballot, bar_*, setmaxnreg_*) are called by all 32 lanes
//     at one place of the source.
#pragma once
#include <stdint.h>

namespace tk {

using u32 = uint32_t;
using i32 = int32_t;
using u64 = uint64_t;
using smem_t = uint32_t;

struct u32x2 {
  u32 x, y;
};
struct alignas(16) u32x4 {
  u32 x, y, z, w;
};

// A tensor map: made on the host (templates/host/tilecc_tmap.h for CUDA, tk_emu_encode_map for the emulator), passed as a
// __grid_constant__ kernel parameter. The emulator's content differs from the driver's.
struct alignas(64) tmap_t {
  u64 opaque[16];
};

// Who takes part in a release, an acquire or an atomic access: the CTA, the GPU (one rank), or all ranks and the host.
// An edge from a release to an acquire exists only when each lies in the scope of the other.
enum class Scope : u32 { kCta, kGpu, kSys };

// The poison of data-as-flag words: poll_word returns once a word holds something else. Read as float32 or as two
// bf16 it is a NaN that no conversion makes and canonical() never returns, so no datum equals it; and it is not the
// 0xff of the emulator's unwritten memory, so a missing prefill shows.
constexpr u32 kFlagPoison = 0x7fa57fa5u;
constexpr u64 kFlagPoison64 = 0x7fa57fa57fa57fa5ull;

// Who waits and for whose sake. A blocking wait takes it last; a GPU that gives up after TK_WATCHDOG_NS
// writes it to `status`, the emulator prints it in its reports.
struct Watch {
  u32* status;
  u32 role, op, layer, item;
};

// Status record, 64 words, written once by the first lane that gives up:
//  0 magic  1 cta  2 role  3 op  4 layer  5 item  6 object  7 expected  8 seen  9 kind  10 warp
// object: shared-memory offset of a barrier, or the low half of a counter's address.
// seen: the value found; for a barrier the parity bit that never came.
constexpr u32 kStatusMagic = 0x7443c0deu;
constexpr u32 kStatusClaimed = 0x7443c1a1u;
constexpr u32 kWaitMbarrier = 1, kWaitCounter = 2, kWaitWord = 3;  // kind

}  // namespace tk

#if defined(__CUDACC__)
#include "tk_ptx.cuh"
#else
#include "tk_emu.cuh"
#endif
