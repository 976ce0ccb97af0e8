// Where the fused head keeps its logits and what that costs, decided from shapes and the processor alone. Either the
// float32 logits of a run of tokens are kept between the passes and the weight's gradient is summed in float32 over the
// runs (one product for every logit), or only statistics are kept and logits are made anew in each pass, a group of
// tiles at a time for all tokens (almost no memory, whatever the vocabulary).
#pragma once
#include <cstdint>

#include "kernels/head_loss/head_loss_loops.h"

namespace limbeck::kernels {

enum class HeadLossPath { kAutomatic, kKept, kAnew };
// Overrides the choice, for tests and benchmarks. LIMBECK_HEAD_LOSS=kept|anew does it for a process.
void set_head_loss_path(HeadLossPath path);

struct HeadShape {
  int64_t tokens = 0;            // those that count
  HeadOperand student, teacher;  // depth 0: no teacher
  int64_t vocabulary = 0;
  bool two_steps = false;  // the logits are needed once more before the gradient
  bool hidden_gradient = false, weight_gradient = false;
  int64_t threads = 1;

  // A float32 gradient of the weight is its own sum over the tokens: no copy of it in panels.
  bool sums_in_place() const { return student.storage == Storage::kFloat32 && student.depth % kProductBlock == 0; }
};

// Byte offsets into one scratch allocation of `bytes`.
struct HeadPlan {
  bool kept = false;
  int64_t tiles = 0, blocks = 0;  // of the vocabulary, of the tokens
  int64_t run = 0;                // blocks whose logits (or dz) are there at once
  int64_t group = 0;              // tiles between two sums into the hidden gradient
  int64_t statistics_tiles = 0;   // tiles whose statistics wait to be merged
  int64_t chunk_bytes = 0;        // of one tile and one block
  int64_t left_student_bytes = 0, worker_bytes = 0;
  int64_t student_columns = 0, teacher_columns = 0, student_rows = 0;
  int64_t running = 0, constants = 0, labels = 0, statistics = 0, values = 0;
  int64_t hidden_sums = 0, chunks = 0, weight_right = 0, weight_sums = 0, workers = 0;
  int64_t bytes = 0;
};

HeadPlan head_plan(const HeadShape& shape);

// The body of CUDA keeps the float32 logits of a run of tokens, [run, stride] of each head, and nothing else that grows
// with the vocabulary but the float32 sums of the weight's gradient.
struct CudaHeadPlan {
  int64_t run = 0, stride = 0;
  int64_t bytes = 0;  // of logits and of what statistics leave
};
CudaHeadPlan cuda_head_plan(int64_t tokens, int64_t vocabulary, bool teacher);
int64_t cuda_head_scratch(const HeadShape& shape);  // all that the body holds at its peak beside its results
void set_cuda_head_run(int64_t most_tokens);        // for tests; 0: as the memory has it

// Whether a head of this dtype is multiplied as pairs of bfloat16 here.
HeadOperand head_operand(Storage storage, int64_t depth);

}  // namespace limbeck::kernels
