// Schema, checks and Meta kernel of sampling.
#include "kernels/sampling/sampling.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <limits>

#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/sampling/sampling_operators.h"
#include "kernels/sampling/sampling_plan.h"

namespace limbeck::kernels {

at::Tensor sampled_ids(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t, int64_t,
                       bool) {
  check_floating("sample_ids", "logits", logits);
  TORCH_CHECK(logits.dim() == 2 && logits.sym_size(1) > 0, "[sample_ids] logits is ", described(logits),
              ", wanted [B, V] with V of 1 or more");
  TORCH_CHECK(temperature >= 0, "[sample_ids] temperature is ", temperature, ", wanted 0 or more");
  TORCH_CHECK(top_k >= 0, "[sample_ids] top_k is ", top_k, ", wanted 0 (all) or more");
  TORCH_CHECK(top_p > 0 && top_p <= 1, "[sample_ids] top_p is ", top_p, ", wanted above 0 and at most 1");
  return at::empty_symint({logits.sym_size(0)}, logits.options().dtype(at::kLong));
}

void check_sampled_on_cuda(const at::Tensor& logits) {
  TORCH_CHECK(logits.size(0) <= kMostSampledRows && logits.size(1) <= kMostSampled, "[sample_ids] logits is ",
              described(logits), ", wanted at most ", kMostSampledRows, " rows of ", kMostSampled, " on CUDA");
}

void greatest_ids(const at::Tensor& logits, bool allow_nonfinite, const at::Tensor& ids) {
  if (!allow_nonfinite) {
    // x - x is 0 but for NaN and infinity; isfinite() has no body on meta.
    ids.copy_(logits.argmax(-1).masked_fill_((logits - logits).ne_(0).any(-1), -1));
  } else {
    ids.copy_(logits.nan_to_num(-std::numeric_limits<double>::infinity()).nan_to_num_().argmax(-1));
  }
}

namespace {

at::Tensor sample_meta(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed,
                       int64_t step, bool allow_nonfinite) {
  const at::Tensor ids = sampled_ids(logits, temperature, top_k, top_p, seed, step, allow_nonfinite);
  if (planned_device() == at::kCUDA) {
    check_sampled_on_cuda(logits);
    hold_for_a_moment(logits, sampling_workspace_bytes(ids.numel()));
  } else if (temperature == 0) {
    const at::DisableRecordFunctionGuard inside;  // who records operators sees this one
    greatest_ids(logits, allow_nonfinite, ids);
  }
  return ids;
}

double largest_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return std::numeric_limits<float>::max();
    case at::kBFloat16:
      return std::numeric_limits<at::BFloat16>::max();
    case at::kHalf:
      return std::numeric_limits<at::Half>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

}  // namespace

SamplingWork::SamplingWork(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed,
                           int64_t step, bool allow_nonfinite, const at::Tensor& ids)
    : rows(logits) {
  const int64_t kept = top_k == 0 || top_k > rows.width ? rows.width : top_k;
  arguments = {rows.data,
               rows.stride,
               rows.width,
               ids.mutable_data_ptr<int64_t>(),
               temperature,
               kept,
               top_p,
               static_cast<uint64_t>(seed),
               static_cast<uint64_t>(step),
               largest_of(logits.scalar_type()),
               allow_nonfinite};
}

namespace {

using Sample = at::Tensor(const at::Tensor&, double, int64_t, double, int64_t, int64_t, bool);

const auto& sample_operator() {
  static const auto op = typed_operator<Sample>("limbeck::sample_ids");
  return op;
}

// Ids have no derivative.
at::Tensor autograd_sample(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed,
                           int64_t step, bool allow_nonfinite) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return sample_operator().call(logits, temperature, top_k, top_p, seed, step, allow_nonfinite);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def(
      "sample_ids(Tensor logits, float temperature=0., int top_k=0, float top_p=1., int seed=0, int step=0, "
      "bool allow_nonfinite=False) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("sample_ids", sample_meta); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("sample_ids", autograd_sample); }

}  // namespace

at::Tensor sample_ids(const at::Tensor& logits_bv, const SamplingOptions& o) {
  return sample_operator().call(logits_bv, o.temperature, o.top_k, o.top_p, static_cast<int64_t>(o.seed), o.step,
                                o.allow_nonfinite);
}

}  // namespace limbeck::kernels
