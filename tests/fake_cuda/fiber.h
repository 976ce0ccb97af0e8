// One stack of an emulated block: it runs one function for ever, and hands over to another where that has to wait.
// Fibers run on one system thread at a time, and never by themselves.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace limbeck::fake_cuda {

class Fiber {
 public:
  Fiber() = default;                // the stack of who calls
  explicit Fiber(void (*entry)());  // a stack of its own, on which `entry` begins when it is first switched to
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From this one, which runs, to another. It goes on behind the call when somebody switches to it.
  void switch_to(Fiber& next);

 private:
  static void start();

  char* stack_ = nullptr;
  void (*entry_)() = nullptr;
#if defined(__x86_64__)
  void* kept_ = nullptr;  // its stack pointer while another runs
#else
  ucontext_t kept_;
#endif
  // What AddressSanitizer wants to know of a change of stacks.
  void arrive();
  void* shadow_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace limbeck::fake_cuda
