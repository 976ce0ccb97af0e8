#include "modules/models/network/draws.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>

#include "kernels/random/normal_values.h"

namespace limbeck::models {
namespace {

constexpr int64_t kMostTokensOfRow = 1 << 24;  // data.sequence_length is below

}  // namespace

kernels::DropoutMask Draws::mask(const std::string& path, double rate) const {
  return {token_n, kernels::key_of(seed, path), rate};
}

Draws Draws::of_first_tokens(int64_t rows) const {
  return any() ? Draws{seed, token_n.view({rows, -1}).select(1, 0).contiguous()} : *this;
}

Draws draws_of(uint64_t seed, const at::Tensor& first_row, at::IntArrayRef batch_shape) {
  const at::TensorOptions whole = first_row.options();
  const at::Tensor rows = (at::arange(batch_shape[0], whole) + first_row).mul_(kMostTokensOfRow);
  return {seed, (rows.unsqueeze(1) + at::arange(batch_shape[1], whole)).flatten()};
}

Draws draws_of(uint64_t seed, int64_t first_row, at::IntArrayRef batch_shape, c10::Device device) {
  return draws_of(seed, at::full({}, first_row, at::TensorOptions().dtype(at::kLong).device(device)), batch_shape);
}

}  // namespace limbeck::models
