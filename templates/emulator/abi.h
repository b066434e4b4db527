// C interface of an emulated kernel library; mirrored by runtime/devices/emu_lib.py.
#pragma once
#include <stdint.h>

#define TK_EMU_ABI_VERSION 4u
#define TK_EMU_MAX_COUNTS 48
#define TK_EMU_MAX_ROLES 16

enum { TK_EMU_ROUND_ROBIN = 0, TK_EMU_RANDOM = 1, TK_EMU_PCT = 2 };
enum { TK_EMU_LAND_AT_ONCE = 0, TK_EMU_LAND_RANDOM = 1, TK_EMU_LAND_LAST = 2 };
enum { TK_EMU_READ_ONLY = 0, TK_EMU_UNINITIALISED = 1, TK_EMU_INITIALISED = 2, TK_EMU_MODE_MASK = 15, TK_EMU_PEER = 16 };
enum { TK_EMU_OK = 0, TK_EMU_FINDINGS = 1, TK_EMU_DEADLOCK = 2, TK_EMU_BAD_ARGUMENTS = 3 };
// Detectors, bit flags of options.detect.
enum { TK_EMU_DETECT_RACES = 1, TK_EMU_DETECT_UNINIT = 2, TK_EMU_DETECT_PARITY = 4, TK_EMU_DETECT_BANKS = 8 };

struct tk_emu_options {
  uint32_t abi_version;
  uint32_t grid;      // CTAs per rank
  uint32_t threads;   // per CTA
  uint32_t smem_bytes;
  uint32_t schedule;
  uint32_t landing;
  uint32_t detect;
  uint32_t preempt;   // percent of primitives after which another warp may run
  uint64_t seed;
  uint64_t max_switches;  // 0 = no limit
  uint32_t ranks;     // params of rank r start at params + r * params_bytes
  uint32_t max_findings;
  uint32_t cluster;   // CTAs per cluster, 0 = 1; divides grid
  uint32_t reserved;
};

struct tk_emu_buffer {
  void* ptr;
  uint64_t bytes;
  const char* name;
  int32_t mode;  // | TK_EMU_PEER: other ranks may touch it, too
  int32_t rank;  // owner; -1 = the host, every rank may touch it
};

struct tk_emu_role_stats {
  char name[24];
  uint64_t counts[TK_EMU_MAX_COUNTS];
};

struct tk_emu_stats {
  uint64_t switches, preemptions, landings, findings;
  uint64_t shadow_bytes;  // of shadow memory, at the end
  uint32_t n_roles, n_counts;
  uint64_t counts[TK_EMU_MAX_COUNTS];
  struct tk_emu_role_stats roles[TK_EMU_MAX_ROLES];
};

#ifdef __cplusplus
extern "C" {
#endif
// params_bytes is the size of ONE rank's parameters. The report is zero-terminated text.
int tk_emu_launch(const struct tk_emu_options*, const void* params, uint64_t params_bytes,
                  const struct tk_emu_buffer*, int n_buffers, struct tk_emu_stats*, char* report,
                  int report_bytes);
const char* tk_emu_count_name(int index);
// Shared-memory accesses of the last launch with TK_EMU_DETECT_BANKS, by source position: lines of
// file:line:column, primitive, role, warp accesses, wavefronts, wavefronts without conflicts; tabs between. Valid until
// the next launch.
const char* tk_emu_bank_sites(void);
// A tensor map for the kernel's parameters (struct tilecc_tensor of tilecc_tensor.h -> 128 bytes). 0, or 1 and why not.
int tk_emu_encode_map(const struct tilecc_tensor*, void* map, char* message, int message_bytes);
#ifdef __cplusplus
}
#endif
