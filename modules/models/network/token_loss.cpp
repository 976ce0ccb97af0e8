#include "modules/models/network/token_loss.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/nll_loss.h>

#include "kernels/operator/wide_type.h"
#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

at::Tensor row_loss(const at::Tensor& logits_nv, const at::Tensor& labels_n, const std::string& place) {
  const at::ScalarType dtype = logits_nv.scalar_type();
  const at::ScalarType wide = kernels::wide_type(dtype);
  const at::Tensor logits = precision::cast(logits_nv, dtype, wide, place);
  return at::nll_loss(at::log_softmax(logits, -1), labels_n, {}, at::Reduction::None, kIgnoredLabel);
}

}  // namespace

at::Tensor next_token_loss(const at::Tensor& logits, const at::Tensor& labels, const std::string& place) {
  const int64_t batch = logits.size(0), length = logits.size(1);
  // Shift the labels, not the logits: a slice of the logits would be a copy of the largest tensor of the step.
  const at::Tensor next = at::constant_pad_nd(labels.narrow(1, 1, length - 1), {0, 1}, kIgnoredLabel);
  return row_loss(logits.reshape({batch * length, -1}), next.reshape({-1}), place).view({batch, length});
}

at::Tensor same_token_loss(const at::Tensor& logits, const at::Tensor& labels, const std::string& place) {
  return row_loss(logits.flatten(0, 1), labels.flatten(), place).view(labels.sizes());
}

at::Tensor predicted_tokens(const at::Tensor& labels) {
  return labels.narrow(1, 1, labels.size(1) - 1).ne(kIgnoredLabel).sum();
}

at::Tensor class_loss(const at::Tensor& logits, const at::Tensor& labels, const std::string& place) {
  return row_loss(logits, labels, place);
}

}  // namespace limbeck::models
