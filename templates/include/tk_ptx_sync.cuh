// Counters, fences and data-as-flag words in PTX, at CTA, GPU and system scope.
#pragma once

namespace tk {

// The scope is part of the instruction's name, so every primitive is three instructions.
#define TK_SCOPED(instruction, tail, ...)                                                        \
  if constexpr (S == Scope::kCta) asm volatile(instruction ".cta" tail __VA_ARGS__ : "memory");   \
  else if constexpr (S == Scope::kGpu) asm volatile(instruction ".gpu" tail __VA_ARGS__ : "memory"); \
  else asm volatile(instruction ".sys" tail __VA_ARGS__ : "memory")

// ---- counters: one u32 per 128-byte line ------------------------------------------------------------

template <Scope S = Scope::kGpu>
TK_FN u32 ld_acquire(const u32* p) {
  u32 v;
  TK_SCOPED("ld.acquire", ".global.u32 %0, [%1];", : "=r"(v) : "l"(global_address(p)));
  return v;
}
template <Scope S = Scope::kGpu>
TK_FN u32 ld_relaxed(const u32* p) {
  u32 v;
  TK_SCOPED("ld.relaxed", ".global.u32 %0, [%1];", : "=r"(v) : "l"(global_address(p)));
  return v;
}
template <Scope S = Scope::kGpu>
TK_FN void st_release(u32* p, u32 v) {
  if (elect()) {
    TK_SCOPED("st.release", ".global.u32 [%0], %1;", ::"l"(global_address(p)), "r"(v));
  }
}
template <Scope S = Scope::kGpu>
TK_FN void st_relaxed(u32* p, u32 v) {
  if (elect()) {
    TK_SCOPED("st.relaxed", ".global.u32 [%0], %1;", ::"l"(global_address(p)), "r"(v));
  }
}
template <Scope S = Scope::kGpu>
TK_FN void red_release(u32* p, u32 v) {
  if (elect()) {
    TK_SCOPED("red.release", ".global.add.u32 [%0], %1;", ::"l"(global_address(p)), "r"(v));
  }
}
template <Scope S = Scope::kGpu>
TK_FN void red_relaxed(u32* p, u32 v) {
  if (elect()) {
    TK_SCOPED("red.relaxed", ".global.add.u32 [%0], %1;", ::"l"(global_address(p)), "r"(v));
  }
}
// Lane 0 adds and gets the value before, having acquired what earlier releases published; other lanes get 0. (L0)
template <Scope S = Scope::kGpu>
TK_FN u32 atom_add_acqrel(u32* p, u32 v) {
  u32 old = 0;
  if (elect()) {
    TK_SCOPED("atom.acq_rel", ".global.add.u32 %0, [%1], %2;", : "=r"(old) : "l"(global_address(p)), "r"(v));
  }
  return old;
}
// Orders what the calling thread did, and what it has seen, before what it does next: with a relaxed signal after it,
// it is a release; after a relaxed wait, an acquire.
template <Scope S>
TK_FN void fence() {
  TK_SCOPED("fence.acq_rel", ";", ::);
}
TK_FN void fence_gpu() { fence<Scope::kGpu>(); }

// Lane 0 waits until (int)(*p - target) >= 0, then has acquired what the releases published; the caller
// follows with syncwarp() where other lanes read it. Counters wrap: counter and target must stay within 2^30 of each
// other. (L0)
template <Scope S = Scope::kGpu>
TK_FN void wait_ge(const u32* p, u32 target, const Watch& w) {
  if (!elect()) return;
#pragma unroll 1
  for (int burst = 0; burst < 256; burst++)
    if (static_cast<int>(ld_acquire<S>(p) - target) >= 0) return;
  const u64 start = global_timer();
  u32 seen;
#pragma unroll 1
  while (static_cast<int>((seen = ld_acquire<S>(p)) - target) < 0)
    if (global_timer() - start > TK_WATCHDOG_NS)
      give_up(w, kWaitCounter, static_cast<u32>(global_address(p)), target, seen);
}
// The same wait without acquiring: for a fence<S>() after it. (L0)
template <Scope S = Scope::kGpu>
TK_FN void wait_ge_relaxed(const u32* p, u32 target, const Watch& w) {
  if (!elect()) return;
#pragma unroll 1
  for (int burst = 0; burst < 256; burst++)
    if (static_cast<int>(ld_relaxed<S>(p) - target) >= 0) return;
  const u64 start = global_timer();
  u32 seen;
#pragma unroll 1
  while (static_cast<int>((seen = ld_relaxed<S>(p)) - target) < 0)
    if (global_timer() - start > TK_WATCHDOG_NS)
      give_up(w, kWaitCounter, static_cast<u32>(global_address(p)), target, seen);
}

// ---- data as flag -------------------------------------------------------------------------------------
//
// A word that holds the poison is not there yet; anything else is the datum. Each word of 32 or 64 bits speaks for
// itself alone and orders nothing else. The receiver fills its words with poison before anybody may push (prefill), and
// poisons a word again after taking it; a chain of fences, releases and acquires orders that before the next push.
// Pushed floats are canonical(): no NaN equals the poison.

template <Scope S>
TK_FN u32 ld_word(const u32* p) {
  return ld_relaxed<S>(p);
}
template <Scope S>
TK_FN u64 ld_word(const u64* p) {
  u64 v;
  TK_SCOPED("ld.relaxed", ".global.u64 %0, [%1];", : "=l"(v) : "l"(global_address(p)));
  return v;
}
// Every calling lane waits for its own word and returns it.
template <Scope S, class Word>
TK_FN Word poll_word_of(const Word* p, Word poison, const Watch& w) {
  Word v;
#pragma unroll 1
  for (int burst = 0; burst < 256; burst++)
    if ((v = ld_word<S>(p)) != poison) return v;
  const u64 start = global_timer();
#pragma unroll 1
  while ((v = ld_word<S>(p)) == poison)
    if (global_timer() - start > TK_WATCHDOG_NS)
      give_up(w, kWaitWord, static_cast<u32>(global_address(p)), static_cast<u32>(poison), static_cast<u32>(v));
  return v;
}
template <Scope S>
TK_FN u32 poll_word(const u32* p, u32 poison, const Watch& w) {
  return poll_word_of<S, u32>(p, poison, w);
}
template <Scope S>
TK_FN u64 poll_word(const u64* p, u64 poison, const Watch& w) {
  return poll_word_of<S, u64>(p, poison, w);
}
// Every calling lane waits for N words of its own, whose loads are in flight together; only the first one that is missing
// is polled. `at(i)`: address of word i.
template <Scope S, u32 N, class At, class Word>
TK_FN void poll_words(const At& at, Word poison, const Watch& w, Word (&v)[N]) {
#pragma unroll 1
  for (;;) {
    u32 missing = N;
#pragma unroll
    for (u32 i = 0; i < N; i++) v[i] = ld_word<S>(at(i));
#pragma unroll
    for (u32 i = N; i > 0; i--)
      if (v[i - 1] == poison) missing = i - 1;
    if (missing == N) return;
    poll_word<S>(at(missing), poison, w);
  }
}
// By every calling lane.
template <Scope S>
TK_FN void push_word(u32* p, u32 v) {
  TK_SCOPED("st.relaxed", ".global.u32 [%0], %1;", ::"l"(global_address(p)), "r"(v));
}
template <Scope S>
TK_FN void push_word(u64* p, u64 v) {
  TK_SCOPED("st.relaxed", ".global.u64 [%0], %1;", ::"l"(global_address(p)), "l"(v));
}
// The receiver's prefill, or its word after it was taken. An ordinary store: order it before the next push.
TK_FN void poison_word(u32* p, u32 poison) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(global_address(p)), "r"(poison) : "memory");
}
TK_FN void poison_word(u64* p, u64 poison) {
  asm volatile("st.global.u64 [%0], %1;" ::"l"(global_address(p)), "l"(poison) : "memory");
}

#undef TK_SCOPED

}  // namespace tk
