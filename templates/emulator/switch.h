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

}  // namespace tk_emu
