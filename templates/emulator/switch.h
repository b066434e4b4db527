// Switching between stacks. Two hand-written versions; TK_EMU_UCONTEXT (or another CPU) takes ucontext.
#pragma once
#include <stddef.h>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(TK_EMU_UCONTEXT)
#define TK_EMU_UCONTEXT 1
#endif

namespace tk_emu {

// Prepares a stack so that the first switch to it calls `entry`, which never returns.
void* make_stack(void* low, size_t bytes, void (*entry)());

#ifdef TK_EMU_UCONTEXT
void switch_stack(void** save, void* load);
#else
// Saves the callee-saved registers on the current stack, stores the stack pointer in *save, loads the other.
extern "C" __attribute__((visibility("hidden"))) void tk_emu_switch_stack(void** save, void* load);
inline void switch_stack(void** save, void* load) { tk_emu_switch_stack(save, load); }
#endif

// What AddressSanitizer must know of a switch: the stack that is left, and the one that is entered. `fake` is the
// leaving stack's own; a fiber that starts has none yet.
struct StackBounds {
  const void* low = nullptr;
  size_t bytes = 0;
};
#if defined(__SANITIZE_ADDRESS__)
}  // namespace tk_emu
extern "C" {
void __sanitizer_start_switch_fiber(void** fake, const void* low, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake, const void** low, size_t* bytes);
void __asan_unpoison_memory_region(const volatile void* p, size_t bytes);
}
namespace tk_emu {
inline void leave_stack(void** fake, const StackBounds& to) { __sanitizer_start_switch_fiber(fake, to.low, to.bytes); }
inline void enter_stack(void* fake, StackBounds* from) {
  __sanitizer_finish_switch_fiber(fake, from ? &from->low : nullptr, from ? &from->bytes : nullptr);
}
inline void forget_stacks(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void leave_stack(void**, const StackBounds&) {}
inline void enter_stack(void*, StackBounds*) {}
inline void forget_stacks(const void*, size_t) {}
#endif

}  // namespace tk_emu
