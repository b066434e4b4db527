// Who runs next: ready sets, the three schedules, preemption, blocking.
#include "engine.h"
#include "switch.h"

extern "C" void tk_emu_kernel_entry(const void* params);

namespace tk_emu {

Engine* engine = nullptr;
Fiber* cur = nullptr;
bool preempt_on = false;
bool shadow_on = false;
bool banks_on = false;
Window window[kWindows];

// xorshift64*: the only source of randomness of a run.
uint64_t random_bits() {
  uint64_t x = engine->random;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  engine->random = x;
  return (x * 0x2545f4914f6cdd1dull) >> 16;
}

void ready_warp(WarpState* warp) {
  if (warp->ready_position >= 0) return;
  warp->ready_position = static_cast<int>(engine->ready_list.size());
  engine->ready_list.push_back(warp);
  engine->ready_bits[warp->number >> 6] |= 1ull << (warp->number & 63);
}

static void unready_warp(WarpState* warp) {
  WarpState* last = engine->ready_list.back();
  engine->ready_list[warp->ready_position] = last;
  last->ready_position = warp->ready_position;
  engine->ready_list.pop_back();
  warp->ready_position = -1;
  engine->ready_bits[warp->number >> 6] &= ~(1ull << (warp->number & 63));
}

void make_ready(Thread* thread) {
  thread->wait = Wait::kNone;
  thread->warp->ready |= 1u << thread->lane;
  ready_warp(static_cast<WarpState*>(thread->warp));
}

void unready_self() {
  WarpState* warp = my_warp();
  warp->ready &= ~(1u << cur->lane);
  if (!warp->ready && warp->ready_position >= 0) unready_warp(warp);
}

static inline void jump(Fiber* to) {
  Fiber* from = cur;
  if (to == from) return;
  engine->stats.switches++;
  cur = to;
  void* fake = nullptr;
  const Thread* thread = static_cast<const Thread*>(to);
  leave_stack(&fake, to == &engine->main_thread ? engine->main_stack : StackBounds{thread->stack_low, thread->stack_bytes});
  switch_stack(&from->sp, to->sp);
  enter_stack(fake, nullptr);
}

static inline Fiber* thread_of(Warp* warp, uint32_t lane) { return &engine->threads[warp->number * kLanes + lane]; }

// The first ready lane at or after `turn`, cyclically.
static inline Fiber* ready_lane(Warp* warp, uint32_t turn) {
  const uint32_t rotated = warp->ready >> turn | (turn ? warp->ready << (32 - turn) : 0u);
  return thread_of(warp, (static_cast<uint32_t>(__builtin_ctz(rotated)) + turn) & 31u);
}

static WarpState* round_robin() {
  const std::vector<uint64_t>& bits = engine->ready_bits;
  const uint32_t start = cur == &engine->main_thread ? 0 : cur->warp->number + 1;
  const size_t words = bits.size();
  size_t word = start >> 6;
  uint64_t mask = ~0ull << (start & 63);
  for (size_t i = 0; i <= words; i++, word++, mask = ~0ull) {
    if (word >= words) word = 0, mask = i == 0 ? ~0ull : mask;
    if (bits[word] & mask)
      return &engine->warps[(word << 6) + static_cast<size_t>(__builtin_ctzll(bits[word] & mask))];
  }
  return engine->ready_list[0];
}

// The ready warp of highest priority; a random warp changes its priority now and then.
static WarpState* by_priority() {
  Engine& e = *engine;
  if (e.stats.switches >= e.next_priority_change) {
    e.warps[random_bits() % e.warps.size()].priority = random_bits();
    e.next_priority_change = e.stats.switches + 1 + random_bits() % (e.warps.size() * kLanes * 16);
  }
  WarpState* best = e.ready_list[0];
  for (WarpState* w : e.ready_list)
    if (w->priority > best->priority) best = w;
  return best;
}

static Fiber* pick() {
  Engine& e = *engine;
  if (e.options.landing == TK_EMU_LAND_RANDOM && (random_bits() & 7) == 0) land_one();
  // A thread that yields to itself does not switch: count the decisions too, or its loop never ends.
  e.decisions++;
  if (cur != &e.main_thread) cur->warp->turn = (cur->lane + 1) & 31u;
  if (e.options.max_switches && e.stats.switches + e.decisions > e.options.max_switches && !e.stopped)
    fatal("TC0902", text("the launch did not end within %llu thread switches",
                         static_cast<unsigned long long>(e.options.max_switches)),
          e.slept_at.line() ? e.slept_at : Site::current(), all_waits());
  while (!e.stopped && e.ready_list.empty()) {
    if (land_one()) continue;
    if (e.live) {
      e.deadlocked = true;
      report_deadlock();
    }
    return &e.main_thread;
  }
  if (e.stopped) return &e.main_thread;
  WarpState* warp;
  if (e.options.schedule == TK_EMU_ROUND_ROBIN) {
    warp = round_robin();
  } else {
    warp = e.options.schedule == TK_EMU_RANDOM ? e.ready_list[random_bits() % e.ready_list.size()] : by_priority();
    warp->turn = static_cast<uint32_t>(random_bits()) & 31u;
  }
  return ready_lane(warp, warp->turn);
}

void run_next() { jump(pick()); }

void preempt_slow() {
  if (random_bits() % 100 >= engine->options.preempt) return;
  engine->stats.preemptions++;
  run_next();
}

void next_lane(Warp* warp) {
  if (TK_UNLIKELY(!warp->ready)) {
    unready_warp(static_cast<WarpState*>(warp));
    run_next();
    return;
  }
  jump(ready_lane(warp, (cur->lane + 1) & 31u));
}

void add_to_ready(Warp* warp) { ready_warp(static_cast<WarpState*>(warp)); }

void block(Wait kind, const void* object, uint64_t expected, const tk::Watch* watch, Site site) {
  Thread* t = self();
  // Not the address of a local: newer AddressSanitizers keep locals outside of the stack.
  if (static_cast<const char*>(__builtin_frame_address(0)) - t->stack_low < kStackReserve)
    fatal("TC0917", text("%s used up its emulated stack", who_now().c_str()), site);
  t->wait = kind;
  t->object = object;
  t->expected = expected;
  t->site = site;
  if (watch) {
    t->watch = {watch->role, watch->op, watch->layer, watch->item, watch->status, true};
    t->warp->watch = t->watch;
  }
  unready_self();
  run_next();
}

void stop() {
  engine->stopped = true;
  for (;;) jump(&engine->main_thread);
}

// Body of every fiber.
void thread_main() {
  StackBounds left;
  enter_stack(nullptr, &left);
  if (!engine->main_stack.low) engine->main_stack = left;  // the first fiber is entered from the host's stack
  tk_emu_kernel_entry(engine->params[cur->cta->rank]);
  WarpState* warp = my_warp();
  if (warp->arrived)
    fatal("TC0906", text("%s returns from the kernel while other lanes of its warp wait in %s", who_now().c_str(),
                         warp->what),
          warp->site);
  check_thread_exit();
  if (cur->lane == 0) {
    check_exit(warp);
    check_wgmma_exit(warp);
    check_registers_exit(warp);
  }
  warp->exited |= 1u << cur->lane;
  bool last = true;
  for (const WarpState* w : my_cta()->warps) last = last && w->exited == 0xffffffffu;
  if (last) check_cta_exit(my_cta());
  self()->wait = Wait::kDone;
  engine->live--;
  unready_self();
  for (;;) run_next();
}

void run_all() { run_next(); }

}  // namespace tk_emu
