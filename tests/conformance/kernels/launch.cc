// Launches the conformance kernels on a GPU, behind a C interface for ctypes. Device memory is kept between launches.
#include <cuda_runtime.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "tilecc_tmap.h"

extern "C" {
#define KERNEL(name) void conformance_##name();
#include "kernels.inc"
#undef KERNEL
}

namespace {

struct Entry {
  const char* name;
  const void* function;
};
const Entry kEntries[] = {
#define KERNEL(name) {#name, reinterpret_cast<const void*>(&conformance_##name)},
#include "kernels.inc"
#undef KERNEL
};

struct Block {
  void* memory;
  size_t bytes;
};
Block blocks[4];  // in, out, work, status
char message[512];

int failed(cudaError_t error, const char* what) {
  snprintf(message, sizeof message, "%s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
  return static_cast<int>(error);
}

}  // namespace

#define TRY(call)                                                   \
  do {                                                              \
    const cudaError_t error_ = (call);                              \
    if (error_ != cudaSuccess) return failed(error_, #call);        \
  } while (0)

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* conformance_message() { return message; }

// "name, sm_90, 132 SMs, driver 13000, runtime 13000".
EXPORT int conformance_device(char* text, int bytes) {
  cudaDeviceProp p;
  int driver = 0, runtime = 0;
  TRY(cudaGetDeviceProperties(&p, 0));
  TRY(cudaDriverGetVersion(&driver));
  TRY(cudaRuntimeGetVersion(&runtime));
  snprintf(text, static_cast<size_t>(bytes), "%s, sm_%d%d, %d SMs, driver %d, runtime %d", p.name, p.major, p.minor,
           p.multiProcessorCount, driver, runtime);
  return 0;
}

// Device memory of at least `bytes` for block i, filled with 0xff.
EXPORT int conformance_buffer(int i, uint64_t bytes, uint64_t* address) {
  Block& b = blocks[i];
  if (b.bytes < bytes) {
    if (b.memory) TRY(cudaFree(b.memory));
    b = {};
    TRY(cudaMalloc(&b.memory, bytes));
    b.bytes = bytes;
  }
  TRY(cudaMemset(b.memory, 0xff, b.bytes));
  *address = reinterpret_cast<uint64_t>(b.memory);
  return 0;
}

EXPORT int conformance_upload(int i, const void* from, uint64_t bytes) {
  TRY(cudaMemcpy(blocks[i].memory, from, bytes, cudaMemcpyHostToDevice));
  return 0;
}
EXPORT int conformance_download(int i, void* to, uint64_t bytes) {
  TRY(cudaMemcpy(to, blocks[i].memory, bytes, cudaMemcpyDeviceToHost));
  return 0;
}

EXPORT int conformance_encode_map(const struct tilecc_tensor* tensor, void* map) {
  const char* problem = tilecc_encode_tensor_map(tensor, map);
  if (problem) snprintf(message, sizeof message, "%s", problem);
  return problem ? -1 : 0;
}

EXPORT int conformance_launch(const char* kernel, const void* params, uint32_t grid, uint32_t threads, uint32_t cluster,
                              uint32_t smem) {
  const void* function = nullptr;
  for (const Entry& e : kEntries)
    if (!strcmp(e.name, kernel)) function = e.function;
  if (!function) {
    snprintf(message, sizeof message, "no kernel %s in this library", kernel);
    return -1;
  }
  TRY(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = smem;
  cudaLaunchAttribute attribute;
  if (cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  void* arguments[] = {const_cast<void*>(params)};
  TRY(cudaLaunchKernelExC(&config, function, arguments));
  TRY(cudaDeviceSynchronize());
  return 0;
}
