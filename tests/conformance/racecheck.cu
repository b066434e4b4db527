// What compute-sanitizer's racecheck makes of one warp handing 32 words to another through an mbarrier, with the
// intrinsics of the CUDA toolkit and nothing of tilecc:
//
//   racecheck every    every lane of the writer arrives (32 arrivals a phase): no race
//   racecheck elected  __syncwarp, then lane 0 arrives for all (1 arrival a phase), as tk::mbar_arrive does: no race
//   racecheck none     nobody waits or arrives: a race
#include <cstdio>
#include <cstring>
#include <cuda_awbarrier_primitives.h>

constexpr unsigned kLaps = 64;

template <int kMode>
__global__ void hand_over(unsigned* out) {
  __shared__ unsigned words[2][32];
  __shared__ __mbarrier_t full[2], empty[2];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, arrivals = kMode == 0 ? 32 : 1;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) __mbarrier_init(&full[i], arrivals), __mbarrier_init(&empty[i], arrivals);
  }
  __syncthreads();
  const auto arrive = [&](__mbarrier_t* bar) {
    if (kMode == 2) return;
    if (kMode != 0) __syncwarp();
    if (kMode == 0 || lane == 0) (void)__mbarrier_arrive(bar);
  };
  const auto wait = [&](__mbarrier_t* bar, unsigned parity) {
    while (kMode != 2 && !__mbarrier_test_wait_parity(bar, parity)) {
    }
    if (kMode != 2) __syncwarp();
  };
  unsigned sum = 0;
  for (unsigned lap = 0; lap < kLaps; ++lap) {
    const unsigned slot = lap % 2, phase = lap / 2 & 1;
    if (warp == 0) {
      wait(&empty[slot], phase ^ 1);
      words[slot][lane] = lap * 32 + lane;
      arrive(&full[slot]);
    } else {
      wait(&full[slot], phase);
      sum += words[slot][lane ^ 5];
      arrive(&empty[slot]);
    }
  }
  if (warp == 1) out[lane] = sum;
}

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "";
  unsigned *out = nullptr, got[32] = {};
  if (cudaMalloc(&out, sizeof got) != cudaSuccess) return 2;
  if (!strcmp(mode, "every")) hand_over<0><<<1, 64>>>(out);
  else if (!strcmp(mode, "elected")) hand_over<1><<<1, 64>>>(out);
  else if (!strcmp(mode, "none")) hand_over<2><<<1, 64>>>(out);
  else return 3;
  if (cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost) != cudaSuccess) return 1;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned want = 32 * kLaps * (kLaps - 1) / 2 + kLaps * (lane ^ 5);
    if (strcmp(mode, "none") && got[lane] != want) return 1;
  }
  printf("%s: done\n", mode);
  return 0;
}
