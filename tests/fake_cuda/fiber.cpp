#include "fake_cuda/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__has_feature)  // clang's way to say it
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// limbeck_switch_stacks(save, to): keeps what a call must keep on this stack, its place in *save, and goes on with what
// is kept at `to`. A system call less than swapcontext, which a norm makes a million times.
extern "C" void limbeck_switch_stacks(void** save, void* to);
asm(R"(
.text
.type limbeck_switch_stacks, @function
limbeck_switch_stacks:
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
.size limbeck_switch_stacks, .-limbeck_switch_stacks
)");
#endif

namespace limbeck::fake_cuda {
namespace {

constexpr size_t kPage = 4096, kStack = 128 * 1024;

thread_local Fiber* running = nullptr;

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kPage + kStack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory) + kPage;
  if (mprotect(stack_, kStack, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
}

Fiber::~Fiber() { munmap(stack_ - kPage, kPage + kStack); }

void Fiber::start() {
  Fiber* self = running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->resumer_stack_, &self->resumer_size_);
#endif
  self->entry_();
  __builtin_trap();
}

void Fiber::begin(void (*entry)()) {
  entry_ = entry;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStack);  // of frames that were never left
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack_ + kStack);
  *--top = nullptr;  // where a caller would go on; it also aligns the stack as a call does
  *--top = reinterpret_cast<void*>(&Fiber::start);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  own_ = top;
#else
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = kStack;
  own_.uc_link = nullptr;
  makecontext(&own_, &Fiber::start, 0);
#endif
}

void Fiber::resume() {
  running = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&resumer_shadow_, stack_, kStack);
#endif
#if defined(__x86_64__)
  limbeck_switch_stacks(&resumer_, own_);
#else
  swapcontext(&resumer_, &own_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(resumer_shadow_, nullptr, nullptr);
#endif
}

void Fiber::hand_back(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &own_shadow_, resumer_stack_, resumer_size_);
#endif
  (void)last;
#if defined(__x86_64__)
  limbeck_switch_stacks(&own_, resumer_);
#else
  swapcontext(&own_, &resumer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own_shadow_, &resumer_stack_, &resumer_size_);
#endif
}

}  // namespace limbeck::fake_cuda
