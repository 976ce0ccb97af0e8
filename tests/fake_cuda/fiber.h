// One thread of an emulated block: a function on a stack of its own, which runs until it hands itself back. Fibers are
// resumed by one system thread at a time, and never by themselves.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace limbeck::fake_cuda {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From now on resume() runs `entry`, which ends by hand_back() and is never resumed after that.
  void begin(void (*entry)());
  void resume();
  // Called on the fiber: back to who resumed it. `last`: it will not be resumed again.
  void hand_back(bool last = false);

 private:
  static void start();

  char* stack_;
  void (*entry_)() = nullptr;
#if defined(__x86_64__)
  void *own_ = nullptr, *resumer_ = nullptr;  // stack pointers
#else
  ucontext_t own_, resumer_;
#endif
  // What AddressSanitizer wants to know of a change of stacks.
  void *own_shadow_ = nullptr, *resumer_shadow_ = nullptr;
  const void* resumer_stack_ = nullptr;
  size_t resumer_size_ = 0;
};

}  // namespace limbeck::fake_cuda
