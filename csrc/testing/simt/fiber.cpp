#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;

}  // namespace

#if defined(__x86_64__)

// Saves the callee-saved registers on the current stack, its top in *from, and continues on the stack at `to`.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
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
.size simt_switch, .-simt_switch
)");

using Context = void*;

void switch_context(Context& from, Context& to) { simt_switch(&from, to); }

// A stack whose first switch "returns" into `start`, with the alignment of a called function: 8 below a multiple of 16.
void make_context(Context& context, char* stack, size_t bytes, void (*start)()) {
  auto** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}

#else

using Context = ucontext_t;

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void make_context(Context& context, char* stack, size_t bytes, void (*start)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
}

#endif

struct Fiber::State {
  Context fiber{};
  Context host{};
  char* memory = nullptr;
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;
  void* fake_stack = nullptr;       // of the fiber while the host runs
  void* host_fake_stack = nullptr;  // of the host while the fiber runs
  const void* host_stack = nullptr;
  size_t host_stack_bytes = 0;

  char* stack() const { return memory + kGuardBytes; }

  void enter_fiber() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &host_stack, &host_stack_bytes);
#endif
  }
};

namespace {

Fiber::State* starting = nullptr;

}  // namespace

static void start_fiber() {
  Fiber::State* const state = starting;
  state->enter_fiber();
  state->entry(state->argument);
  __builtin_trap();  // entry suspends for good
}

Fiber::Fiber() : state_(new State) {
  const size_t bytes = kStackBytes + 2 * kGuardBytes;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  state_->memory = static_cast<char*>(memory);
  mprotect(state_->memory, kGuardBytes, PROT_NONE);
  mprotect(state_->memory + kGuardBytes + kStackBytes, kGuardBytes, PROT_NONE);
}

Fiber::~Fiber() {
  munmap(state_->memory, kStackBytes + 2 * kGuardBytes);
  delete state_;
}

void Fiber::reset(void (*entry)(void*), void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(state_->stack(), kStackBytes);  // a fiber left for good leaves its frames poisoned
#endif
  state_->entry = entry;
  state_->argument = argument;
  state_->fake_stack = nullptr;
  make_context(state_->fiber, state_->stack(), kStackBytes, &start_fiber);
}

void Fiber::resume() {
  starting = state_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state_->host_fake_stack, state_->stack(), kStackBytes);
#endif
  switch_context(state_->host, state_->fiber);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state_->host_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &state_->fake_stack, state_->host_stack,
                                 state_->host_stack_bytes);
#endif
  switch_context(state_->fiber, state_->host);
  state_->enter_fiber();
}

}  // namespace simt
