#include "modules/adapters/merge.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "modules/adapters/adapted_linears.h"
#include "modules/adapters/weight_rounding.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

using models::Linear;

void put_back(const at::Tensor& parameter, const at::Tensor& original) {
  at::Tensor target = parameter.detach();
  precision::cast_into(target, original);  // of the same dtype: its bits
}

}  // namespace

int64_t Merged::original_bytes() const {
  int64_t bytes = 0;
  for (const Original& one : originals_) {
    bytes += static_cast<int64_t>(one.weight.nbytes() + (one.bias ? one.bias->nbytes() : 0));
  }
  return bytes;
}

void Merged::undo() {
  if (originals_.empty()) {
    throw UsageError(
        "merging cannot be undone: it kept no original weights, or they are back already: merge with "
        "KeepOriginals::kYes, and undo once");
  }
  const at::NoGradGuard no_gradient;
  for (const Original& one : originals_) {
    put_back(one.linear->weight(), one.weight);
    if (one.bias) put_back(*one.linear->bias(), *one.bias);
    one.linear->use_adapter(one.adapter);
  }
  originals_.clear();
}

Merged merge_adapter(models::BuiltModel& built, KeepOriginals keep) {
  const at::NoGradGuard no_gradient;
  const std::vector<Linear*> adapted = adapted_linears(built);
  for (const Linear* linear : adapted) {
    if (!linear->is_quantized()) continue;
    throw UsageError(
        fmt::format("[{}] stores its weight in {}, where the change of an adapter would drown in rounding: use the "
                    "adapter beside the model (--adapter), or say what it is added to (limbeck merge --into)",
                    linear->path(), precision::storage_name(linear->precision())));
  }
  Merged merged;
  merged.model_ = built.model;
  MergeReport& report = merged.report_;
  for (Linear* linear : adapted) {
    const models::MergedLinear sum = linear->adapter()->merged(*linear);
    if (keep == KeepOriginals::kYes) {
      std::optional<at::Tensor> bias = linear->bias();
      if (bias) bias = bias->detach().clone();
      merged.originals_.push_back({linear, working_adapter(*linear), linear->weight().detach().clone(), bias});
    }
    const double error = store_rounded(linear->weight(), sum.weight, linear->path()).relative();
    if (sum.bias) store_rounded(*linear->bias(), *sum.bias, linear->path());
    if (error >= report.worst_error) report.worst_error = error, report.worst_module = linear->path();
    linear->use_adapter("");
    ++report.modules;
  }
  return merged;
}

}  // namespace limbeck::adapters
