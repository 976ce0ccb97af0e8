// Cross-entropy of language-model logits against labels, token by token, in float32.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace limbeck::models {

constexpr int64_t kIgnoredLabel = -100;

// logits [B, T, V], labels int64 [B, T] (position t is predicted from t - 1; kIgnoredLabel is left out) -> float32 [B,
// T]: entry t is the loss of predicting labels[t + 1]; the last column and ignored tokens are 0.
at::Tensor next_token_loss(const at::Tensor& logits, const at::Tensor& labels, const std::string& place);
// The same where each token is predicted at its own place (masked language models).
at::Tensor same_token_loss(const at::Tensor& logits, const at::Tensor& labels, const std::string& place);
// Number of tokens that count in next_token_loss.
at::Tensor predicted_tokens(const at::Tensor& labels);
// logits [B, C], labels int64 [B] -> float32 [B]
at::Tensor class_loss(const at::Tensor& logits, const at::Tensor& labels, const std::string& place);

}  // namespace limbeck::models
