// The launch ABI between the runtime and an emitted kernel (plain C, both compilers).
// Version 1. The host zeroes kv and workspace once per session; counters and epochs then continue
// from launch to launch.
#pragma once
#include <stdint.h>

#define TILECC_ABI_VERSION 1
// Rows of a step: 8, or what the package was compiled for (--rows), defined before this header.
#ifndef TILECC_MAX_ROWS
#define TILECC_MAX_ROWS 8
#endif
#define TILECC_STATUS_WORDS 64

// One row of the row table: a (sequence, position) pair. token -1 takes the argmax of the last row of
// the previous step.
struct tilecc_row {
  int32_t token;
  int32_t position;
  int32_t seq;
  int32_t flags;
};

// One decode step: up to TILECC_MAX_ROWS rows. 144 bytes with eight.
struct tilecc_step {
  int32_t n_rows;
  int32_t reserved[3];
  struct tilecc_row rows[TILECC_MAX_ROWS];
};

struct tilecc_params {
  const uint8_t* image;             // weight image, read-only
  const uint8_t* tables;            // per-CTA tables of the Program, read-only
  uint8_t* kv;                      // key/value rings
  uint8_t* workspace;               // counters, epochs, activations, partials
  const struct tilecc_step* steps;  // [n_steps]
  int32_t* tokens_out;              // [n_steps][TILECC_MAX_ROWS]; -1 where a row did not run
  float* logits;                    // null, or [n_steps][TILECC_MAX_ROWS][vocab]
  const int32_t* stop_ids;          // [n_stop]
  uint32_t* status;                 // [64]; see the status record in tk_prim.cuh
  uint32_t n_steps;
  uint32_t n_stop;
  uint32_t flags;
  uint32_t reserved;
};
