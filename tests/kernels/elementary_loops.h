// The exp of kernels/cpu/elementary.h over an array, as each instruction set compiles it, for elementary_test.cpp.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"

namespace limbeck::kernels {

struct ElementaryLoops {
  using Loop = void (*)(const float* from, float* to, int64_t count);  // count: of whole vectors of 64 bytes
  Loop exp_of_vectors, exp_of_blocks;
};

LIMBECK_LOOPS(ElementaryLoops, elementary_loops)

}  // namespace limbeck::kernels
