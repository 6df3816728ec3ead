// Where a thread of execution stands, to be left and resumed. On x86-64 by hand: the library's way asks the kernel for
// its signal mask at every switch, and a kernel's threads switch millions of times.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

extern "C" void tiledattn_switch_stack(void** from, void* to);

asm(R"(
.text
.weak tiledattn_switch_stack
.type tiledattn_switch_stack, @function
tiledattn_switch_stack:
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
)");

namespace emulator {

struct Context {
  void* stack = nullptr;

  /// To begin in `enter`, which must not return.
  void prepare(char* memory, size_t bytes, void (*enter)()) {
    auto top = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~uintptr_t{15};
    auto* place = reinterpret_cast<void**>(top);
    *--place = nullptr;  // a return address that nobody uses: calls expect the stack to be off by one word
    *--place = reinterpret_cast<void*>(enter);
    for (int i = 0; i < 6; ++i) *--place = nullptr;
    stack = place;
  }
};

inline void leave(Context& from, Context& to) { tiledattn_switch_stack(&from.stack, to.stack); }

}  // namespace emulator

#else

#include <ucontext.h>

namespace emulator {

struct Context {
  ucontext_t place;

  void prepare(char* memory, size_t bytes, void (*enter)()) {
    getcontext(&place);
    place.uc_stack.ss_sp = memory;
    place.uc_stack.ss_size = bytes;
    place.uc_link = nullptr;
    makecontext(&place, enter, 0);
  }
};

inline void leave(Context& from, Context& to) { swapcontext(&from.place, &to.place); }

}  // namespace emulator

#endif
