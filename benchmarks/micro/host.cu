// Host side of the micro-benchmarks: a plain C interface over the CUDA runtime. Nothing here decides; device.py does.
// Every function returns 0, a CUDA error code, or kTimedOut.
#include <cuda_runtime.h>
#include <string.h>
#include <time.h>

#include "sync.cu"
#include "copy.cu"
#include "rates.cu"

namespace {
constexpr int kTimedOut = -2, kBadArgument = -1;
const void* const kKernels[] = {reinterpret_cast<const void*>(micro_sync), reinterpret_cast<const void*>(micro_copy),
                                reinterpret_cast<const void*>(micro_rates)};
constexpr int kThreads[] = {micro::sync::kThreads, micro::copy::kThreads, micro::rates::kThreads};
cudaStream_t stream;
cudaEvent_t began, ended;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
// The kernels' own watchdog ends a wait; this ends the program's wait for the kernel.
int finish(double seconds) {
  const double limit = now() + seconds;
  for (;;) {
    const cudaError_t e = cudaStreamQuery(stream);
    if (e != cudaErrorNotReady) return e;
    if (now() > limit) return kTimedOut;
  }
}
}  // namespace

#define API extern "C" __attribute__((visibility("default")))
#define CHECK(call)                            \
  do {                                         \
    const cudaError_t e_ = (call);             \
    if (e_ != cudaSuccess) return e_;          \
  } while (0)

struct MicroDevice {
  char name[256];
  int driver, runtime, sms, l2_bytes, clock_khz, memory_clock_khz, smem_per_cta, cooperative;
  unsigned long long memory_bytes, free_bytes;
};

API int micro_open(MicroDevice* d) {
  cudaDeviceProp prop;
  CHECK(cudaGetDeviceProperties(&prop, 0));
  strncpy(d->name, prop.name, sizeof d->name - 1);
  CHECK(cudaDriverGetVersion(&d->driver));
  CHECK(cudaRuntimeGetVersion(&d->runtime));
  d->sms = prop.multiProcessorCount;
  d->l2_bytes = prop.l2CacheSize;
  CHECK(cudaDeviceGetAttribute(&d->clock_khz, cudaDevAttrClockRate, 0));
  CHECK(cudaDeviceGetAttribute(&d->memory_clock_khz, cudaDevAttrMemoryClockRate, 0));
  d->smem_per_cta = static_cast<int>(prop.sharedMemPerBlockOptin);
  d->cooperative = prop.cooperativeLaunch;
  size_t unused, total;
  CHECK(cudaMemGetInfo(&unused, &total));
  d->memory_bytes = total;
  d->free_bytes = unused;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&began));
  CHECK(cudaEventCreate(&ended));
  for (const void* k : kKernels)
    CHECK(cudaFuncSetAttribute(k, cudaFuncAttributeMaxDynamicSharedMemorySize, d->smem_per_cta));
  return 0;
}

API int micro_alloc(unsigned long long bytes, void** p) { return cudaMalloc(p, bytes); }
API int micro_free(void* p) { return cudaFree(p); }
// Host memory that the GPU writes through: the status record outlives a trap.
API int micro_alloc_host(unsigned long long bytes, void** p) { return cudaHostAlloc(p, bytes, cudaHostAllocMapped); }
API int micro_set(void* p, int byte, unsigned long long bytes) { return cudaMemsetAsync(p, byte, bytes, stream); }
API int micro_to_device(void* to, const void* from, unsigned long long bytes) {
  CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
  return finish(20);
}
API int micro_to_host(void* to, const void* from, unsigned long long bytes) {
  CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
  return finish(20);
}
API const char* micro_error(int code) {
  return code == kTimedOut ? "the kernel did not end in time" : code == kBadArgument ? "bad argument"
                           : cudaGetErrorString(static_cast<cudaError_t>(code));
}

// One launch, waited for. ms: event time. Cooperative: all CTAs are resident or the launch is refused.
API int micro_launch(int kernel, const MicroParams* params, int grid, int smem, int cooperative, double timeout, float* ms) {
  if (kernel < 0 || kernel > 2 || grid < 1) return kBadArgument;
  MicroParams copy = *params;
  void* arguments[] = {&copy};
  const dim3 threads(kThreads[kernel]);
  CHECK(cudaEventRecord(began, stream));
  if (cooperative) CHECK(cudaLaunchCooperativeKernel(kKernels[kernel], dim3(grid), threads, arguments, smem, stream));
  else CHECK(cudaLaunchKernel(kKernels[kernel], dim3(grid), threads, arguments, smem, stream));
  CHECK(cudaGetLastError());
  CHECK(cudaEventRecord(ended, stream));
  const int rc = finish(timeout);
  if (rc != 0) return rc;
  return cudaEventElapsedTime(ms, began, ended);
}

// Device-to-device copy of the runtime, n in one timed stretch.
API int micro_copy_rate(void* to, const void* from, unsigned long long bytes, int n, float* ms) {
  CHECK(cudaEventRecord(began, stream));
  for (int i = 0; i < n; i++) CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
  CHECK(cudaEventRecord(ended, stream));
  const int rc = finish(20);
  if (rc != 0) return rc;
  return cudaEventElapsedTime(ms, began, ended);
}

// An empty kernel of `grid` CTAs with `smem` bytes. kind 0 launch, 1 cooperative launch, 2 a graph of one kernel node, 3 a
// graph of 64. device_us: event time of n of them back to back, over n kernels. host_us: one, from the call to the end.
__global__ void __launch_bounds__(256, 1) micro_empty(TK_GRID_CONST MicroParams p) {
  if (p.mode == 0xffffffffu) tk::stg32(p.work, p.a);
}
API int micro_launches(int kind, int grid, int smem, int n, float* device_us, double* host_us) {
  const void* f = reinterpret_cast<const void*>(micro_empty);
  CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
  MicroParams p;
  memset(&p, 0, sizeof p);
  void* arguments[] = {&p};
  const int nodes = kind == 3 ? 64 : 1;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  if (kind >= 2) {
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < nodes; i++) CHECK(cudaLaunchKernel(f, dim3(grid), dim3(256), arguments, smem, stream));
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphUpload(exec, stream));
  }
  const auto once = [&]() -> cudaError_t {
    if (kind == 0) return cudaLaunchKernel(f, dim3(grid), dim3(256), arguments, smem, stream);
    if (kind == 1) return cudaLaunchCooperativeKernel(f, dim3(grid), dim3(256), arguments, smem, stream);
    return cudaGraphLaunch(exec, stream);
  };
  for (int i = 0; i < 8; i++) CHECK(once());
  int rc = finish(10);
  if (rc != 0) return rc;
  CHECK(cudaEventRecord(began, stream));
  for (int i = 0; i < n; i++) CHECK(once());
  CHECK(cudaEventRecord(ended, stream));
  if ((rc = finish(10)) != 0) return rc;
  float ms;
  CHECK(cudaEventElapsedTime(&ms, began, ended));
  *device_us = ms * 1e3f / (n * nodes);
  const double t0 = now();
  CHECK(once());
  if ((rc = finish(10)) != 0) return rc;
  *host_us = (now() - t0) * 1e6;
  if (exec) CHECK(cudaGraphExecDestroy(exec));
  if (graph) CHECK(cudaGraphDestroy(graph));
  return 0;
}
