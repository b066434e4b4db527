// Makes tensor maps with the CUDA driver, found at run time: nothing links against libcuda.
#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#include <string.h>

#include "tilecc_tensor.h"

// Fills the 128 bytes of a map. Returns null, or what is wrong.
static inline const char* tilecc_encode_tensor_map(const struct tilecc_tensor* t, void* map) {
  const char* problem = tilecc_tensor_problem(t);
  if (problem) return problem;
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess)
    return "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12.0";
  static const CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_UINT8,   CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                               CU_TENSOR_MAP_DATA_TYPE_UINT32,  CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                               CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32};
  const cuuint32_t steps[3] = {1, 1, 1};
  cuuint64_t dims[3] = {t->dims[0], t->dims[1], t->dims[2]}, strides[2] = {t->strides[0], t->strides[1]};
  cuuint32_t box[3] = {t->box[0], t->box[1], t->box[2]};
  CUtensorMap made;
  const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
      &made, kTypes[t->type], t->rank, reinterpret_cast<void*>(t->address), dims, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, t->swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return "the driver refuses the tensor map";
  memcpy(map, &made, sizeof made);
  return nullptr;
}
