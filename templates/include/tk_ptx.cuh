// PTX implementation of the device primitives (sm_90a, sm_100a). The only place with inline assembly.
#pragma once
#include <cuda_bf16.h>

#define TK_FN __device__ __forceinline__
#define TK_KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads, 1) name
#define TK_GRID_CONST const __grid_constant__
#define TK_UNROLL _Pragma("unroll")
#define TK_EMU_ENTRY(name, Params)

#ifndef TK_WATCHDOG_NS
#define TK_WATCHDOG_NS 4000000000ull
#endif

#include "tk_ptx_core.cuh"
#include "tk_ptx_async.cuh"
#include "tk_ptx_sync.cuh"
#include "tk_ptx_mem.cuh"
#include "tk_ptx_math.cuh"
#include "tk_ptx_cvt.cuh"
#include "tk_ptx_matrix.cuh"
#include "tk_ptx_copy.cuh"
#include "tk_ptx_tensor.cuh"
#include "tk_ptx_cluster.cuh"
#include "tk_ptx_wgmma.cuh"
