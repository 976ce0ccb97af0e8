#include "kernels/elementary_loops.h"

#include "kernels/cpu/blocks.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

void exp_of_vectors(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<float>) store(to + i, exp_of_nonpositive(load(from + i)));
}
void exp_of_blocks(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kBlockLanes) store(to + i, exp_of_nonpositive(load(from + i, Whole{})), Whole{});
}

}  // namespace

const ElementaryLoops elementary_loops{&exp_of_vectors, &exp_of_blocks};

}  // namespace limbeck::kernels::LIMBECK_ISA
