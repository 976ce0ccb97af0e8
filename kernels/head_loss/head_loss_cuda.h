// Launchers of the CUDA kernels of the fused head, over the float32 logits of one run of tokens. All pointers are
// device pointers; nothing synchronises, and equal shapes give equal bits.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/head_loss/logit_formula.h"

namespace limbeck::kernels {

// What the statistics leave of one token for its gradient.
struct HeadRow {
  LogitRow<float> divergence;
  float plain_max, plain_inverse;  // of the softmax of cross-entropy
};

struct HeadTokens {
  HeadFormula formula;
  const float* student;  // [tokens, vocabulary], rows `stride` apart
  const float* teacher;  // the same; nullptr: no divergence
  int64_t stride;
  const int64_t* labels;  // nullptr: no cross-entropy; negative: none for this token
  const float* divergence_weight;
  const float* ce_weight;
  float value_factor;     // of the divergence: T^2 or 1 / vocabulary
  float gradient_factor;  // of its gradient, without its weight
  float ce_factor;        // of the gradient of cross-entropy, without its weight
  HeadRow* rows;
};

// Fills rows, divergence and cross_entropy (0 where the weight is), and largest: no entry of the token's gradient is
// larger in size. A token that does not count has its logits left unread.
void launch_head_statistics(const HeadTokens& args, int64_t tokens, float* divergence, float* cross_entropy,
                            float* largest, cudaStream_t stream);

// The gradient by the products of hidden state and weight, over the student's logits: rows of `storage`, each where the
// row of float32 logits began, 0 for tokens that do not count. Of float16 it is given in units of *largest /
// kHalfUnits.
inline constexpr float kHalfUnits = 16384.0f;  // what rounding adds stays below float16's 65504
void launch_head_gradients(const HeadTokens& args, int64_t tokens, Storage storage, const float* largest,
                           cudaStream_t stream);

}  // namespace limbeck::kernels
