#include "switch.h"

#include <stdint.h>
#include <string.h>

#ifdef TK_EMU_UCONTEXT
#include <ucontext.h>
#include <new>
#endif

#if defined(TK_EMU_UCONTEXT)
// The saved "stack pointer" is a ucontext that lives at the low end of the fiber's stack (or, for the
// scheduler, in static storage). About five times slower: swapcontext makes two system calls.
namespace tk_emu {
namespace {
ucontext_t scheduler_context;
ucontext_t* running = &scheduler_context;
}  // namespace

void switch_stack(void** save, void* load) {
  ucontext_t* from = running;
  *save = from;
  running = static_cast<ucontext_t*>(load);
  swapcontext(from, running);
}

void* make_stack(void* low, size_t bytes, void (*entry)()) {
  ucontext_t* context = new (low) ucontext_t;
  getcontext(context);
  const size_t head = (sizeof(ucontext_t) + 63) & ~static_cast<size_t>(63);
  context->uc_stack.ss_sp = static_cast<char*>(low) + head;
  context->uc_stack.ss_size = bytes - head;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
}  // namespace tk_emu

#elif defined(__x86_64__)
// System V: rbx rbp r12-r15 are callee-saved; the kernel changes neither mxcsr nor the x87 word.
asm(R"(
.text
.globl tk_emu_switch_stack
.hidden tk_emu_switch_stack
.type tk_emu_switch_stack,@function
tk_emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tk_emu_switch_stack,.-tk_emu_switch_stack
)");
namespace tk_emu {
void* make_stack(void* low, size_t bytes, void (*entry)()) {
  void** sp = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(low) + bytes) & ~static_cast<uintptr_t>(15));
  *--sp = nullptr;  // a return address for entry, keeps the stack aligned as after a call
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  return sp;
}
}  // namespace tk_emu

#elif defined(__aarch64__)
// AAPCS64: x19-x28, the frame pointer, the link register and d8-d15 are callee-saved.
asm(R"(
.text
.globl tk_emu_switch_stack
.hidden tk_emu_switch_stack
.type tk_emu_switch_stack,%function
tk_emu_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size tk_emu_switch_stack,.-tk_emu_switch_stack
)");
namespace tk_emu {
void* make_stack(void* low, size_t bytes, void (*entry)()) {
  char* sp = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(low) + bytes) & ~static_cast<uintptr_t>(15));
  sp -= 160;
  memset(sp, 0, 160);
  memcpy(sp + 88, &entry, sizeof entry);  // x30: where the switch returns to
  return sp;
}
}  // namespace tk_emu
#endif
