// tk_emu_launch: sets up one run, runs it, collects its statistics.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "engine.h"
#include "switch.h"

extern "C" const unsigned tk_emu_kernel_threads;
extern "C" const unsigned long tk_emu_kernel_params_bytes;

namespace tk_emu {

uint32_t grid_ctas() { return engine->options.grid; }
uint64_t read_clock() { return ++engine->clock_reads; }
void name_role(uint32_t id, const char* name) {
  if (!engine->role_names.count(id)) engine->role_names[id] = name;
}
void name_op(uint32_t id, const char* name) {
  if (!engine->op_names.count(id)) engine->op_names[id] = name;
}

namespace {

#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
constexpr size_t kStack = (256 << 10) + kStackReserve;
#else
constexpr size_t kStack = (64 << 10) + kStackReserve;
#endif
constexpr size_t kPage = 4096;
constexpr size_t kGuardedThreads = 16384;  // a guard page costs two mappings; the kernel allows 65530

std::string bad_arguments(const tk_emu_options& o, uint64_t params_bytes) {
  if (o.abi_version != TK_EMU_ABI_VERSION)
    return text("the caller speaks emulator ABI %u, this library %u", o.abi_version, TK_EMU_ABI_VERSION);
  if (o.threads != tk_emu_kernel_threads)
    return text("launched with %u threads, but the kernel is declared with %u", o.threads, tk_emu_kernel_threads);
  if (params_bytes != tk_emu_kernel_params_bytes)
    return text("parameters of %llu bytes given, the kernel takes %lu", static_cast<unsigned long long>(params_bytes),
                tk_emu_kernel_params_bytes);
  if (!o.grid || !o.ranks || !o.threads || o.threads % 32 || o.threads > 1024)
    return text("cannot launch %u ranks of %u CTAs of %u threads", o.ranks, o.grid, o.threads);
  if (o.cluster > 16 || (o.cluster > 1 && o.grid % o.cluster))
    return text("clusters of %u CTAs in a grid of %u; at most 16, and the grid must be a multiple", o.cluster, o.grid);
  if (o.smem_bytes > 232448 || o.smem_bytes % 16)
    return text("%u bytes of shared memory; at most 232448 and a multiple of 16", o.smem_bytes);
  if (o.schedule > TK_EMU_PCT || o.landing > TK_EMU_LAND_LAST || o.preempt > 100)
    return text("unknown schedule %u or landing %u, or preemption %u %%", o.schedule, o.landing, o.preempt);
  return "";
}

void set_up_ctas(Engine& e) {
  const uint32_t warps = e.options.threads / 32;
  e.ctas.resize(e.options.grid * e.options.ranks);
  e.warps.resize(e.ctas.size() * warps);
  e.ready_bits.assign((e.warps.size() + 63) / 64, 0);
  for (size_t i = 0; i < e.ctas.size(); i++) {
    CtaState& c = e.ctas[i];
    c.index = static_cast<uint32_t>(i) % e.options.grid;
    c.rank = static_cast<uint32_t>(i) / e.options.grid;
    c.number = static_cast<uint32_t>(i);
    c.smem_bytes = e.options.smem_bytes;
    c.smem_storage.assign(c.smem_bytes + 16, 0xff);
    c.smem = c.smem_storage.data();
    c.granule_storage.assign(c.smem_bytes / 8 + 2, 1);
    c.granule = c.granule_storage.data();
    for (uint32_t w = 0; w < warps; w++) {
      WarpState& warp = e.warps[i * warps + w];
      warp.cta = &c;
      warp.index = w;
      warp.number = static_cast<uint32_t>(i * warps + w);
      warp.priority = random_bits();
      warp.clocks.agent = c.number << kCtaShift | w * kWarpAgents;
      c.warps.push_back(&warp);
    }
  }
  const uint32_t size = e.options.cluster ? e.options.cluster : 1;
  e.clusters.resize(e.ctas.size() / size);
  for (size_t i = 0; i < e.ctas.size(); i++) {
    CtaState& c = e.ctas[i];
    c.cluster = &e.clusters[i / size];
    c.cluster_rank = static_cast<uint32_t>(i % size);
    c.cluster_size = size;
    c.cluster->ctas.push_back(&c);
  }
}

void set_up_shadow(Engine& e) {
  for (CtaState& c : e.ctas) c.shadow.resize(c.smem_bytes, false);
  for (Buffer& b : e.buffers)  // nothing can go wrong in memory that nobody writes
    if (b.mode != TK_EMU_READ_ONLY) b.shadow.resize(b.bytes, b.mode == TK_EMU_INITIALISED);
}

char* set_up_threads(Engine& e, size_t& bytes) {
  const size_t n = e.warps.size() * kLanes;
  const size_t each = kStack + 2 * kPage;
  bytes = each * n;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  char* arena = static_cast<char*>(memory);
  e.threads.resize(n);
  for (size_t i = 0; i < n; i++) {
    Thread& t = e.threads[i];
    char* low = arena + each * i;
    if (n <= kGuardedThreads) mprotect(low, kPage, PROT_NONE);
    t.stack_low = low + kPage;
    // Stack tops at different offsets in their pages: 32 lanes at equal depth do not share cache sets.
    const size_t colour = (i * 832) % kPage & ~static_cast<size_t>(63);
    t.stack_bytes = kStack + kPage - colour;
    t.sp = make_stack(t.stack_low, t.stack_bytes, thread_main);
    t.lane = static_cast<uint32_t>(i % kLanes);
    t.warp = &e.warps[i / kLanes];
    t.cta = t.warp->cta;
    t.warp->watch.known = false;
    make_ready(&t);
  }
  e.live = n;
  return arena;
}

void collect(Engine& e, tk_emu_stats* out) {
  tk_emu_stats& s = e.stats;
  s.n_counts = kCounts;
  for (const CtaState& c : e.ctas) s.shadow_bytes += c.shadow.bytes();
  for (const Buffer& b : e.buffers) s.shadow_bytes += b.shadow.bytes();
  for (const WarpState& w : e.warps) {
    auto it = w.watch.known ? e.role_names.find(w.watch.role) : e.role_names.end();
    const std::string name = it == e.role_names.end() ? "-" : it->second;
    uint32_t r = 0;
    while (r < s.n_roles && name != s.roles[r].name) r++;
    if (r == s.n_roles && r < TK_EMU_MAX_ROLES) {
      snprintf(s.roles[r].name, sizeof s.roles[r].name, "%s", name.c_str());
      s.n_roles++;
    }
    for (int i = 0; i < kCounts; i++) {
      s.counts[i] += w.counts[i];
      if (r < s.n_roles) s.roles[r].counts[i] += w.counts[i];
    }
  }
  *out = s;
}

int launch(const tk_emu_options& options, const void* params, uint64_t params_bytes, const tk_emu_buffer* buffers,
           int n_buffers, tk_emu_stats* stats, std::string& report) {
  report = bad_arguments(options, params_bytes);
  if (!report.empty()) {
    report = "error[TC0916]: " + report + "\n";
    return TK_EMU_BAD_ARGUMENTS;
  }
  Engine e;
  engine = &e;
  e.options = options;
  if (!e.options.max_findings) e.options.max_findings = 20;
  e.random = (options.seed + 1) * 0x9e3779b97f4a7c15ull | 1;
  for (int i = 0; i < 8; i++) random_bits();
  for (int i = 0; i < n_buffers; i++) {
    const tk_emu_buffer& b = buffers[i];
    if (b.bytes) e.buffers.push_back({reinterpret_cast<uintptr_t>(b.ptr), b.bytes, b.name, b.mode & TK_EMU_MODE_MASK, b.rank,
                                  options.ranks == 1 || b.rank < 0 || (b.mode & TK_EMU_PEER), {}});
  }
  std::sort(e.buffers.begin(), e.buffers.end(), [](const Buffer& a, const Buffer& b) { return a.lo < b.lo; });
  // Tensor maps make the struct stricter than the caller's bytes may be.
  const uint64_t padded = (params_bytes + 127) / 128 * 128;
  std::vector<uint8_t> copies(padded * options.ranks + 128);
  uint8_t* first = copies.data() + (-reinterpret_cast<uintptr_t>(copies.data()) & 127);
  for (uint32_t r = 0; r < options.ranks; r++) {
    memcpy(first + r * padded, static_cast<const char*>(params) + r * params_bytes, params_bytes);
    e.params.push_back(first + r * padded);
  }
  for (Window& w : window) w = {};
  preempt_on = options.preempt > 0;
  e.races = options.detect & TK_EMU_DETECT_RACES;
  e.uninitialised = options.detect & TK_EMU_DETECT_UNINIT;
  e.parity = options.detect & TK_EMU_DETECT_PARITY;
  banks_on = options.detect & TK_EMU_DETECT_BANKS;
  shadow_on = e.races || e.uninitialised;
  Clock::set_ctas(options.grid * options.ranks);
  set_up_ctas(e);
  if (banks_on) start_banks();
  if (shadow_on) set_up_shadow(e);
  size_t arena_bytes = 0;
  char* arena = set_up_threads(e, arena_bytes);
  if (!arena) {
    engine = nullptr;
    report = "error[TC0916]: no memory for the stacks of the emulated threads\n";
    return TK_EMU_BAD_ARGUMENTS;
  }
  e.main_thread.warp = &e.warps[0];
  cur = &e.main_thread;
  run_all();
  forget_stacks(arena, arena_bytes);
  munmap(arena, arena_bytes);
  for (MBarrier* b : e.barriers) delete b;
  if (banks_on) finish_banks();
  collect(e, stats);
  report = e.report;
  engine = nullptr;
  cur = nullptr;
  return e.deadlocked ? TK_EMU_DEADLOCK : e.stats.findings ? TK_EMU_FINDINGS : TK_EMU_OK;
}

}  // namespace
}  // namespace tk_emu

extern "C" __attribute__((visibility("default"))) int tk_emu_launch(const tk_emu_options* options, const void* params,
                                                                    uint64_t params_bytes, const tk_emu_buffer* buffers,
                                                                    int n_buffers, tk_emu_stats* stats, char* report,
                                                                    int report_bytes) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  memset(stats, 0, sizeof *stats);
  std::string written;
  const int rc = tk_emu::launch(*options, params, params_bytes, buffers, n_buffers, stats, written);
  tk_emu::Clock::free_pools();
  if (report_bytes > 0) snprintf(report, static_cast<size_t>(report_bytes), "%s", written.c_str());
  return rc;
}
