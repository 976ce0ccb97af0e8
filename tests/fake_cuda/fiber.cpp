#include "fake_cuda/fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__has_feature)  // clang's way to say it
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
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
// Stacks that all end at the same place of a page would all lie in the same few lines of the processor's cache.
constexpr size_t kApart = 448;

Fiber *running = nullptr, *before = nullptr;  // who has switched to it

}  // namespace

Fiber::Fiber(void (*entry)()) : entry_(entry), size_(kStack) {
  void* memory = mmap(nullptr, kPage + kStack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory) + kPage;
  bottom_ = stack_;
  if (mprotect(stack_, kStack, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
#if defined(__x86_64__)
  static size_t count = 0;
  void** top = reinterpret_cast<void**>(stack_ + kStack - count++ * kApart % kPage);
  *--top = nullptr;  // where a caller would go on; it also aligns the stack as a call does
  *--top = reinterpret_cast<void*>(&Fiber::start);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  kept_ = top;
#else
  getcontext(&kept_);
  kept_.uc_stack.ss_sp = stack_;
  kept_.uc_stack.ss_size = kStack;
  kept_.uc_link = nullptr;
  makecontext(&kept_, &Fiber::start, 0);
#endif
}

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_ - kPage, kPage + kStack);
}

void Fiber::start() {
  Fiber* self = running;
  self->arrive();
  self->entry_();
  __builtin_trap();
}

void Fiber::arrive() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(shadow_, &bottom, &size);
  if (before->stack_ == nullptr) before->bottom_ = bottom, before->size_ = size;
#endif
}

void Fiber::switch_to(Fiber& next) {
  before = this, running = &next;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&shadow_, next.bottom_, next.size_);
#endif
#if defined(__x86_64__)
  limbeck_switch_stacks(&kept_, next.kept_);
#else
  swapcontext(&kept_, &next.kept_);
#endif
  arrive();
}

}  // namespace limbeck::fake_cuda
