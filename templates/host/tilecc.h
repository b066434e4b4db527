/* The plain C interface of a built package. No CUDA headers, fixed-width types only, nothing is allocated.
 *
 * Each library exports, for a package called NAME, the functions that TILECC_KERNEL_API(NAME) declares:
 *
 *   uint32_t    tilecc_NAME_abi_version(void);       equals TILECC_HOST_ABI_VERSION of a matching header
 *   int32_t     tilecc_NAME_info(info*);             sizes and limits; needs no GPU
 *   int32_t     tilecc_NAME_occupancy(int32_t* ctas_per_sm, int32_t* sms);
 *   int32_t     tilecc_NAME_launch(const launch*, void* stream);
 *   const char* tilecc_NAME_last_error(void);        text of this thread's last failure
 *
 * They return TILECC_OK or a negative code. A launch is asynchronous on the caller's stream (a cudaStream_t,
 * NULL for the default stream) and can be captured into a CUDA graph. kv and workspace must be zeroed once
 * before the first launch of a session and after a launch that did not finish.
 */
#ifndef TILECC_HOST_H_
#define TILECC_HOST_H_

#include <stdint.h>

#include "tilecc_params.h"

#define TILECC_HOST_ABI_VERSION 1

#define TILECC_OK 0
#define TILECC_BAD_ARGUMENT (-1)
#define TILECC_NO_DEVICE (-2)
#define TILECC_CUDA_ERROR (-3)

/* Fields are only ever appended; `size` says which ones the caller knows. */
struct tilecc_info {
  uint32_t size; /* in: sizeof(struct tilecc_info) */
  uint32_t params_version; /* TILECC_ABI_VERSION of tilecc_params.h */
  uint32_t threads;
  uint32_t smem_bytes;
  uint32_t default_grid;
  uint32_t max_rows;
  uint32_t max_context;
  uint32_t max_seqs;
  uint32_t vocab;
  uint32_t hidden;
  uint64_t image_bytes;
  uint64_t tables_bytes;
  uint64_t kv_bytes;
  uint64_t workspace_bytes;
};

struct tilecc_launch {
  uint32_t size; /* in: sizeof(struct tilecc_launch) */
  uint32_t grid; /* number of CTAs; 0 = the package's own, at most what the GPU holds at once */
  struct tilecc_params params; /* device pointers; status may be pinned host memory */
};

#if defined(__GNUC__)
#define TILECC_VISIBLE __attribute__((visibility("default")))
#else
#define TILECC_VISIBLE
#endif
#ifdef __cplusplus
#define TILECC_EXTERN extern "C" TILECC_VISIBLE
#else
#define TILECC_EXTERN extern TILECC_VISIBLE
#endif

#define TILECC_KERNEL_API(NAME)                                                           \
  TILECC_EXTERN uint32_t tilecc_##NAME##_abi_version(void);                               \
  TILECC_EXTERN int32_t tilecc_##NAME##_info(struct tilecc_info*);                        \
  TILECC_EXTERN int32_t tilecc_##NAME##_occupancy(int32_t* ctas_per_sm, int32_t* sms);    \
  TILECC_EXTERN int32_t tilecc_##NAME##_launch(const struct tilecc_launch*, void* stream); \
  TILECC_EXTERN const char* tilecc_##NAME##_last_error(void)

#endif /* TILECC_HOST_H_ */
