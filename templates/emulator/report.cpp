// Findings as text, and the deadlock report.
#include "engine.h"

#include <stdio.h>
#include <string.h>

namespace tk_emu {

static const char* const kCountNames[kCounts] = {
    "mma", "shfl", "syncwarp", "barrier", "mbar_wait", "mbar_arrive", "counter_wait", "counter_signal",
    "lds", "sts", "lds_bytes", "sts_bytes", "ldg", "stg", "ldg_bytes", "stg_bytes",
    "bulk_load", "bulk_store", "bulk_load_bytes", "bulk_store_bytes", "fence_proxy", "math", "bank_conflicts",
    "matrix_move", "wgmma", "tma", "cp_async", "smem_wavefronts", "prefetch", "prefetch_bytes", "word_poll", "word_push",
    "fence_cta", "fence_gpu", "fence_system", "fence_wgmma", "cp_async_bytes"};

extern "C" __attribute__((visibility("default"))) const char* tk_emu_count_name(int index) {
  return index >= 0 && index < kCounts ? kCountNames[index] : "";
}

std::string text(const char* format, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

std::string place(Site site) { return text("%s:%u:%u", site.file_name(), site.line(), site.column()); }

static std::string name_or_number(const std::unordered_map<uint32_t, std::string>& names, const char* kind, uint32_t id) {
  auto it = names.find(id);
  return it == names.end() ? text("%s %u", kind, id) : it->second;
}

std::string work_of(const WatchCopy& w) {
  if (!w.known) return "";
  return text("op %s, layer %d, item %d", name_or_number(engine->op_names, "op", w.op).c_str(), static_cast<int>(w.layer),
              static_cast<int>(w.item));
}

static std::string warp_text(const Warp* warp) {
  std::string s = engine->options.ranks > 1 ? text("rank %u ", warp->cta->rank) : "";
  s += text("cta %u warp %u", warp->cta->index, warp->index);
  if (warp->watch.known) s += " (" + name_or_number(engine->role_names, "role", warp->watch.role) + ")";
  return s;
}

std::string who(const Warp* warp, uint32_t lane) { return warp_text(warp) + text(" lane %u", lane); }

std::string who_now() {
  if (!cur || cur == &engine->main_thread) return "the launch";
  return who(cur->warp, cur->lane);
}

std::string barrier_text(const MBarrier* b) {
  std::string s = b->name ? text("%s[%u]", b->name, b->index) : text("at shared offset %u", b->addr - kSmemBase);
  return s + text(" (phase %llu, %u of %u arrivals pending, tx-count %lld)", static_cast<unsigned long long>(b->phase),
                  b->pending, b->count, static_cast<long long>(b->tx));
}

void finding(const char* code, const std::string& message, Site site, const std::vector<std::string>& notes) {
  Engine& e = *engine;
  e.stats.findings++;
  if (e.stats.findings <= e.options.max_findings) {
    e.report += text("error[%s]: ", code) + message + "\n  --> " + place(site) + "\n";
    for (const std::string& n : notes) e.report += "  note: " + n + "\n";
    if (cur && cur != &e.main_thread && cur->warp->watch.known)
      e.report += "  note: last waited for " + work_of(cur->warp->watch) + "\n";
  }
  if (e.stats.findings >= e.options.max_findings) stop();
}

void fatal(const char* code, const std::string& message, Site site, const std::vector<std::string>& notes) {
  finding(code, message, site, notes);
  stop();
}

static std::string lanes_text(uint32_t mask) {
  if (mask == 0xffffffffu) return "lanes 0-31";
  std::string s;
  for (uint32_t lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    uint32_t end = lane;
    while (end < 31 && (mask >> (end + 1) & 1)) end++;
    s += s.empty() ? "" : ",";
    s += end > lane ? text("%u-%u", lane, end) : text("%u", lane);
    lane = end;
  }
  return (__builtin_popcount(mask) == 1 ? "lane " : "lanes ") + s;
}

void diverged(Warp* warp, const char* what, Site site) {
  std::vector<std::string> notes;
  if (warp->arrived) notes.push_back(text("%s wait in %s at ", lanes_text(warp->arrived).c_str(), warp->what) + place(warp->site));
  if (warp->exited) notes.push_back(lanes_text(warp->exited) + " returned from the kernel");
  fatal("TC0906", text("%s enters %s while other lanes of its warp are elsewhere", who_now().c_str(), what), site, notes);
}

// ---- deadlock ---------------------------------------------------------------------------------------

// The record the GPU's watchdog would leave, for the first thread of a rank found waiting.
static void write_status(const Thread& t) {
  uint32_t* s = t.watch.status;
  if (!s || s[0]) return;
  const bool barrier = t.wait == Wait::kMbarrier;
  const MBarrier* b = static_cast<const MBarrier*>(t.object);
  s[1] = t.cta->index;
  s[2] = t.watch.role;
  s[3] = t.watch.op;
  s[4] = t.watch.layer;
  s[5] = t.watch.item;
  s[6] = barrier ? b->addr - kSmemBase : static_cast<uint32_t>(reinterpret_cast<uintptr_t>(t.object));
  s[7] = static_cast<uint32_t>(t.expected);
  s[8] = barrier ? s[7] ^ 1u : *static_cast<const uint32_t*>(t.object);
  s[9] = barrier ? tk::kWaitMbarrier : t.wait == Wait::kCounter ? tk::kWaitCounter : tk::kWaitWord;
  s[10] = t.warp->index;
  s[0] = tk::kStatusMagic;
}

static std::string object_text(const Thread& t) {
  if (t.wait == Wait::kMbarrier) {
    const MBarrier* b = static_cast<const MBarrier*>(t.object);
    return text("mbar_wait on %s for parity %u", barrier_text(b).c_str(), static_cast<uint32_t>(t.expected));
  }
  if (t.wait == Wait::kWord) {
    uint64_t seen = 0;
    memcpy(&seen, t.object, t.bytes);
    const char* state = seen == t.expected ? "which still holds the poison" : "which an ordinary store has changed since: use push_word;";
    return text("poll_word on %s, %s 0x%llx", global_name(t.object).c_str(), state, static_cast<unsigned long long>(t.expected));
  }
  const uint32_t seen = *static_cast<const uint32_t*>(t.object), target = static_cast<uint32_t>(t.expected);
  return text("wait_ge on %s for %u, which holds %u", global_name(t.object).c_str(), target, seen) +
         (static_cast<int32_t>(seen - target) >= 0 ? ", by an ordinary store: use st_release" : "");
}

static void waits_of_warp(const WarpState& w, std::vector<std::string>& lines) {
  if (w.parked_in) {
    const bool cluster = w.parked_id == kClusterBarrier;
    const std::string barrier = cluster ? "the barrier of the cluster" : text("named barrier %u", w.parked_id);
    lines.push_back(warp_text(&w) + text(" lanes 0-31: %s on %s, where %u of %u threads arrived, at ", w.what, barrier.c_str(),
                                         w.parked_in->arrived, w.parked_in->threads) + place(w.site));
  }
  if (w.arrived)
    lines.push_back(warp_text(&w) + " " + lanes_text(w.arrived) + text(": %s, not reached by %s, at ", w.what,
                    lanes_text(~w.arrived).c_str()) + place(w.site));
  uint32_t seen = 0;
  const Thread* threads = &engine->threads[w.number * kLanes];
  for (uint32_t lane = 0; lane < 32; lane++) {
    const Thread& t = threads[lane];
    if ((seen >> lane & 1) || t.wait == Wait::kNone || t.wait == Wait::kDone) continue;
    uint32_t mask = 0;  // lanes in the same wait
    for (uint32_t other = lane; other < 32; other++) {
      const Thread& u = threads[other];
      if (u.wait == t.wait && u.object == t.object && u.expected == t.expected && u.site.line() == t.site.line()) mask |= 1u << other;
    }
    seen |= mask;
    std::string line = warp_text(&w) + " " + lanes_text(mask) + ": " + object_text(t);
    if (t.watch.known) line += "; " + work_of(t.watch);
    lines.push_back(line + ", at " + place(t.site));
  }
}

std::vector<std::string> all_waits() {
  std::vector<std::string> lines;
  for (const WarpState& w : engine->warps) waits_of_warp(w, lines);
  return lines;
}

void report_deadlock() {
  Engine& e = *engine;
  const std::vector<std::string> lines = all_waits();
  for (const Thread& t : e.threads)
    if (t.wait == Wait::kMbarrier || t.wait == Wait::kCounter || t.wait == Wait::kWord) write_status(t);
  e.stats.findings++;
  e.report += text("error[TC0901]: deadlock: %llu threads wait and nothing can wake them\n",
                   static_cast<unsigned long long>(e.live));
  const size_t shown = lines.size() < 64 ? lines.size() : 64;
  for (size_t i = 0; i < shown; i++) e.report += "  waits: " + lines[i] + "\n";
  if (shown < lines.size()) e.report += text("  note: and %zu more\n", lines.size() - shown);
}

}  // namespace tk_emu
