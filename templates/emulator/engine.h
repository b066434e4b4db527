// Internal state of the emulator: threads, warps, CTAs, barriers, copies in flight, registered buffers.
// One launch at a time, on one host thread; the same seed gives the same run.
#pragma once
#include <stdarg.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "abi.h"
#include "clocks.h"
#include "shadow.h"
#include "switch.h"
#include "tk_prim.cuh"

namespace tk_emu {

enum class Wait : uint8_t { kNone, kMbarrier, kCounter, kWord, kNamedBarrier, kDone };

// A cp_async, from issue to the wait that guarantees it.
struct ThreadCopy {
  uint32_t dst, bytes;  // bytes read; the rest of 16 is zero
  const uint8_t* src;
  uint64_t group;       // 0 while not committed
  bool landed;
  Site site;
};

// What the runtime itself may need of a thread's stack, to report that it is nearly used up.
constexpr ptrdiff_t kStackReserve = 8 << 10;

struct Thread : Fiber {
  Wait wait = Wait::kNone;
  const void* object = nullptr;  // MBarrier, counter or word
  uint64_t expected = 0;         // parity, target or poison
  uint8_t bytes = 4;             // of the word
  Site site;
  WatchCopy watch;
  char* stack_low = nullptr;
  size_t stack_bytes = 0;
  std::vector<ThreadCopy> copies;  // cp_async, oldest first
  uint64_t copy_groups = 0;               // committed so far
};

// Lanes of a warp that waited for a phase, at one time of the warp.
struct PhaseWait {
  uint64_t phase;
  uint32_t warp, lanes, epoch, release;
  Site site;
};

struct MBarrier {
  struct CtaState* cta = nullptr;
  uint32_t addr = 0, count = 0, pending = 0;
  int64_t tx = 0;
  uint64_t phase = 0;  // phases completed
  const char* name = nullptr;
  uint32_t index = 0;
  uint32_t id = 0;     // over all CTAs
  Site site;
  std::vector<Thread*> waiters;
  Clocks arriving, done;  // published to the running phase, and to the last complete one
  uint32_t agent = 0;
  uint32_t in_flight = 0;                      // loads
  uint64_t loads_until = 0, waited_until = 0;  // phases that the last load completes; that some wait has seen complete
  Site load_site;
  // The mbar_init: a generic write of lane 0 that every use must come after, an asynchronous one behind a fence.
  uint32_t init_warp = 0, init_epoch = 0, init_release = 0;
  bool init_fenced = false;
  uint32_t init_seen = 0;       // warps of the CTA that came after it
  std::vector<int64_t> waited;  // last phase each thread of the CTA waited for, -2 = none
  std::vector<PhaseWait> waits; // of the last complete phase
};

struct NamedBarrier {
  uint32_t threads = 0, arrived = 0;
  Site site;
  std::vector<struct WarpState*> members;  // warps that arrived in this round
  std::vector<struct WarpState*> parked;
  Clocks arriving;
};

struct Region {
  std::string name;
  uint32_t addr, bytes;
  Site site;
};

struct CtaState : Cta {
  std::vector<uint8_t> smem_storage;
  std::vector<uint16_t> granule_storage;
  std::vector<Region> regions;
  std::vector<MBarrier*> barriers;
  NamedBarrier named[16];
  std::vector<struct WarpState*> warps;
  ShadowSpace shadow;
  std::unordered_map<uint32_t, std::pair<const char*, uint32_t>> early_names;  // of barriers not yet initialised
  struct ClusterState* cluster = nullptr;
  uint32_t agents = 0;    // asynchronous ones beyond those of the warps
  bool declared = false;  // some region was declared: undeclared shared memory is out of bounds
};

constexpr uint32_t kClusterBarrier = 16;

// CTAs that reach each other's shared memory.
struct ClusterState {
  std::vector<CtaState*> ctas;
  NamedBarrier barrier;  // of the running round
  uint64_t round = 0;    // complete rounds of the barrier
  Clocks done;           // published to the last of them
};

// A bulk store, from issue to the wait that guarantees it.
struct Store {
  uint8_t* dst;
  uint32_t src, bytes;
  uint64_t group;  // 0 while not committed
  bool read = false, written = false;
  std::vector<uint8_t> data;
  Site site;
  std::function<void(const uint8_t* data)> write;  // a reduction or a tensor; empty: a plain copy to dst
};

struct WarpState : Warp {
  int ready_position = -1;
  uint64_t priority = 0;
  NamedBarrier* parked_in = nullptr;
  uint32_t parked_id = 0;       // named barrier, or kClusterBarrier
  uint64_t cluster_round = 0;   // of the cluster's barrier that this warp arrived at and has not waited for
  std::vector<Store> stores;
  uint64_t groups = 0;  // committed so far
  std::vector<int> registers;  // of its setmaxnreg, in order
  Site registers_site;
  WarpClocks clocks;
  std::shared_ptr<struct WgmmaState> wgmma;  // wgmma.cpp; null until the first
};

// A bulk load, from issue to its landing.
struct Load {
  CtaState* cta;
  uint32_t dst, bytes;
  const uint8_t* src;
  MBarrier* bar;
  Site site;
  std::function<void(uint8_t* to)> fill;  // a tensor: writes the box; empty: a plain copy from src
};

struct Buffer {
  uintptr_t lo;
  uint64_t bytes;
  std::string name;
  int mode, rank;
  bool peer;  // other ranks may touch it, too
  ShadowSpace shadow;
};

constexpr int kNoRank = -1, kSeveralRanks = -2;

// What one signal of a counter published.
struct Publication {
  uint32_t value = 0;    // of the counter, after it
  tk::Scope scope = tk::Scope::kSys;
  bool releases = false; // false: relaxed, and no fence before it; `own` then holds what a release had published, as `narrow`
  const Cta* cta = nullptr;
  const char* what = "";
  Site site;
  Clocks own;
  // Together with the signals before it, one chain of read-modify-writes:
  Clocks all;
  uint64_t chain = 0;    // number of the publication that it starts with
  tk::Scope narrowest = tk::Scope::kSys;
  bool all_release = true;
  int rank = kNoRank;    // of all who published
};

struct Counter {
  std::vector<Thread*> waiters;
  std::deque<Publication> history;
  std::vector<Publication> old;  // of the running chain, before the history: by CTA and scope
  uint64_t forgotten = 0;        // publications before the history
  uint64_t first = 0;            // number of the first that followed `initial`
  uint32_t initial = 0;          // value before the first
};

// A data-as-flag word.
struct Word {
  std::vector<Thread*> waiters;
  uint64_t poison = 0;
  uint64_t found = 0;              // by the first push
  bool has_poison = false;
  uint32_t pushes = 0, taken = 0;  // taken: the push that `taker` took last
  const Thread* taker = nullptr;
  std::unique_ptr<Publication> last;
};

// Why a signal and a wait that met order nothing.
enum class Lost : uint8_t { kScope, kRelaxedSignal, kRelaxedWait };
struct NarrowEdge {
  Lost why;
  const char *from_what, *what;
  Site from, to;
  tk::Scope from_scope, scope;
  bool other_rank;
  Clocks lost;
};

struct SiteEntry {
  const char* what;
  Site site;
  WatchCopy watch;
};

struct Engine {
  tk_emu_options options{};
  std::vector<Thread> threads;
  std::vector<WarpState> warps;
  std::vector<CtaState> ctas;
  std::vector<ClusterState> clusters;
  std::vector<MBarrier*> barriers;
  std::vector<Load> loads;
  std::vector<Buffer> buffers;  // sorted by address
  std::unordered_map<const void*, Counter> counters;
  std::unordered_map<const void*, Word> words;
  std::unordered_map<uint32_t, std::string> role_names, op_names;

  std::vector<WarpState*> ready_list;  // warps with a lane that can run
  std::vector<uint64_t> ready_bits;    // the same, as a set ordered by warp number
  Thread main_thread;
  StackBounds main_stack;              // known to a sanitizer alone
  std::vector<const void*> params;     // per rank
  uint64_t random = 0;
  uint64_t next_priority_change = 0;
  uint64_t live = 0;
  uint64_t decisions = 0;  // of the scheduler
  uint64_t clock_reads = 0;
  bool stopped = false;
  Site slept_at;           // of the latest nanosleep: where a launch that does not end may be polling
  bool deadlocked = false;

  // Detectors.
  bool races = false, uninitialised = false, parity = false;
  std::vector<SiteEntry> sites;
  std::unordered_map<uint64_t, uint32_t> site_indices;
  std::vector<std::pair<uint64_t, uint32_t>> recent_sites = std::vector<std::pair<uint64_t, uint32_t>>(1024);
  std::unordered_set<uint64_t> reported_pairs;
  std::vector<NarrowEdge> narrow_edges;
  std::vector<std::vector<Access>> more_accesses;
  std::vector<uint32_t> free_lists;

  std::string report;
  tk_emu_stats stats{};
};

extern Engine* engine;

inline Thread* self() { return static_cast<Thread*>(cur); }
inline WarpState* my_warp() { return static_cast<WarpState*>(cur->warp); }
inline CtaState* my_cta() { return static_cast<CtaState*>(cur->cta); }

// scheduler.cpp
uint64_t random_bits();
void ready_warp(WarpState* warp);
void make_ready(Thread* thread);
void unready_self();
void run_next();                 // the current thread gives up the processor
void block(Wait kind, const void* object, uint64_t expected, const tk::Watch* watch, Site site);

// The first wait of a warp tells its role, whether it blocks or not: counts of every warp belong to a role.
inline void know_role(const tk::Watch& w) {
  if (TK_UNLIKELY(!cur->warp->watch.known)) cur->warp->watch = {w.role, w.op, w.layer, w.item, w.status, true};
}
[[noreturn]] void stop();        // ends the launch
void run_all();
void thread_main();

// async.cpp
uint32_t new_agent(CtaState* cta);  // number of a further asynchronous agent of the race detector
bool land_one();                 // lands a pending load; false if there is none
void issue_load(Load load);      // it is checked and its destination poisoned
void issue_store(Store s);       // to the bulk groups of the current warp
void check_exit(WarpState* warp);
void check_cta_exit(CtaState* cta);
void check_thread_exit();        // copy.cpp
void check_wgmma_exit(WarpState* warp);
void check_registers_exit(WarpState* warp);  // barrier.cpp

// barrier.cpp
void check_init(MBarrier* bar, bool async, const char* what, Site site);
MBarrier* barrier_at(CtaState* cta, uint32_t addr, const char* what, Site site);
void arrive_at(CtaState* cta, uint32_t addr, uint32_t tx_bytes, const char* what, Site site);
void complete_tx(MBarrier* bar, uint32_t bytes, Site site);
void wake_counter(const void* p);

// memory.cpp
void smem_range(CtaState* cta, uint32_t addr, uint32_t bytes, uint32_t align, const char* what, Site site);
const Buffer* buffer_of(const void* p);
const Buffer* global_range(const void* p, uint64_t bytes, uint32_t align, bool write, const char* what,
                           Site site);
std::string smem_name(CtaState* cta, uint32_t addr);
std::string global_name(const void* p);

// banks.cpp
void start_banks();
void finish_banks();             // after the last thread has returned

// report.cpp
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string place(Site site);
std::string who(const Warp* warp, uint32_t lane);
std::string who_now();
std::string work_of(const WatchCopy& watch);
std::string barrier_text(const MBarrier* bar);
void finding(const char* code, const std::string& message, Site site, const std::vector<std::string>& notes = {});
[[noreturn]] void fatal(const char* code, const std::string& message, Site site,
                        const std::vector<std::string>& notes = {});
void report_deadlock();
std::vector<std::string> all_waits();  // who waits, and for what

}  // namespace tk_emu
