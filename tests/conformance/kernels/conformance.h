// Parameters of every conformance kernel; mirrored by tests/conformance/case.py.
#pragma once
#include "tk_prim.cuh"

struct ConformanceParams {
  tk::tmap_t maps[2];
  const uint8_t* in;  // read-only
  uint8_t* out;       // every byte is written
  uint8_t* work;      // initialised; read and written
  uint32_t* status;   // [64], of the watchdog
  uint32_t op, n;
  uint32_t arg[6];
};
