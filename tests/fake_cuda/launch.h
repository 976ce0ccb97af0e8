// Runs a kernel as a GPU would see it: blocks one after the other, the threads of a block as fibers that meet at
// barriers and exchange values in warps. A barrier or an exchange that some of its threads never reach ends the process
// with a message. LIMBECK_FAKE_CUDA_SEED (a number other than 0) shuffles the order of blocks, warps and threads; a
// warp always runs as far as it can before the next one, so that what only a barrier holds together falls apart without
// it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fake_cuda/graph.h"

namespace limbeck::fake_cuda {

struct Index3 {
  constexpr Index3(unsigned in_x = 1, unsigned in_y = 1, unsigned in_z = 1) : x(in_x), y(in_y), z(in_z) {}
  unsigned x, y, z;
};

struct Launch {
  Index3 grid, block;
  size_t shared_bytes = 0;
  const char* name = "";  // for messages
  int stream = 0;         // of streams.h
  bool replayed = false;  // by a graph
};

// thread(of) is the kernel with its arguments, called once for each thread.
void run_kernel(const Launch& launch, void (*thread)(const void* of), const void* of);

// A cudaStream_t is the number of a stream.
template <class Kernel>
void launch(const char* name, Index3 grid, Index3 block, size_t shared_bytes, const void* stream,
            const Kernel& kernel) {
  const Launch asked{grid, block, shared_bytes, name, static_cast<int>(reinterpret_cast<intptr_t>(stream))};
  void (*const thread)(const void*) = [](const void* of) { (*static_cast<const Kernel*>(of))(); };
  Graph* const graph = capturing(asked.stream);
  if (graph == nullptr) return run_kernel(asked, thread, &kernel);
  graph->add([asked, thread, kernel](Stream replay) {
    Launch again = asked;
    again.stream = replay, again.replayed = true;
    run_kernel(again, thread, &kernel);
  });
}

// What the device code of a thread asks of the block it is in; `file` and `line` tell one place from another.
void meet_block(const char* file, int line);
// All lanes of the mask give a value; each gets that of `source`, a lane of its warp.
uint64_t exchange(unsigned mask, uint64_t value, int source, const char* file, int line);
int lane();
void* dynamic_shared();

// Why the last launch was refused, or nullptr; asking forgets it.
const char* take_launch_error();

void set_seed(uint64_t seed);

}  // namespace limbeck::fake_cuda
