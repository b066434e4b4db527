// CPU emulation of the device primitives: one fiber per CUDA thread, against the precompiled runtime in
// templates/emulator. Needs C++20 (std::source_location); the kernel text itself stays C++17.
#pragma once

#define TK_FN inline
#define TK_KERNEL(name, threads)             \
  enum { tk_threads_of_##name = (threads) }; \
  extern "C" void name
#define TK_GRID_CONST const
#define TK_UNROLL
// Exports the kernel to tk_emu_launch.
#define TK_EMU_ENTRY(name, Params)                                              \
  extern "C" const unsigned tk_emu_kernel_threads = tk_threads_of_##name;       \
  extern "C" const unsigned long tk_emu_kernel_params_bytes = sizeof(Params);   \
  extern "C" void tk_emu_kernel_entry(const void* params) { name(*static_cast<const Params*>(params)); }

#include "tk_emu_state.h"
#include "tk_emu_sync.h"
#include "tk_emu_mem.h"
#include "tk_emu_math.h"
#include "tk_emu_cvt.h"
#include "tk_emu_matrix.h"
#include "tk_emu_copy.h"
#include "tk_emu_tensor.h"
#include "tk_emu_cluster.h"
#include "tk_emu_wgmma.h"
