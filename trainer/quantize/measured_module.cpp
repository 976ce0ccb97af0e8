#include "trainer/quantize/measured_module.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include "kernels/linear/linear.h"
#include "kernels/quantized/quantized_linear.h"
#include "modules/errors.h"
#include "modules/io/finite_check.h"
#include "modules/models/network/experts.h"
#include "modules/precision/casts.h"

namespace limbeck::quantize {

namespace {

at::Tensor rows_of(const at::Tensor& x) { return x.detach().reshape({-1, x.size(-1)}); }

// [matrices, rows, columns]
at::Tensor as_matrices(const at::Tensor& weight, int64_t matrices) {
  return weight.view({matrices, -1, weight.size(-1)});
}

}  // namespace

WeightsInPlace::WeightsInPlace(precision::ContractModule& module, const NamedWeights& weights) : module_(module) {
  for (const auto& [name, weight] : weights) {
    own_.emplace_back(name, module.parameter(name));
    module.replace_parameter(name, weight);
  }
}

WeightsInPlace::~WeightsInPlace() {
  for (const auto& [name, weight] : own_) module_.replace_parameter(name, weight);
}

MeasuredModule::MeasuredModule(std::shared_ptr<precision::ContractModule> module, const Candidate& candidate,
                               const std::vector<StoredFormat>& formats, at::ScalarType floats)
    : module_(std::move(module)), users_{module_.get()}, path_(candidate.path), floats_(floats) {
  if (const auto* experts = dynamic_cast<const models::ExpertWeights*>(module_.get())) {
    for (const auto& stack : experts->stacks()) {
      const auto parts = static_cast<int64_t>(models::ExpertStack::packed_names(stack->parameter_name()).size());
      weights_.push_back({stack->parameter_name(), parts * experts->count()});
    }
  } else {
    weights_.push_back({"weight", 1});
  }
  for (Weight& weight : weights_) {
    const at::Tensor values = precision::move(module_->parameter(weight.name).detach(), c10::kCPU);
    if (io::first_nonfinite(values)) {
      throw WeightsError(
          fmt::format("{}: its weight holds NaN or infinity, which no code stands for: mend the model", path_));
    }
    for (size_t i = 0; i < formats.size(); ++i) {
      weight.packed.emplace_back();
      if (!formats[i].packed || !candidate.bytes[i]) continue;
      const at::Tensor matrices = as_matrices(values, weight.matrices);
      for (int64_t m = 0; m < weight.matrices; ++m)
        weight.packed[i].emplace_back(matrices.select(0, m), *formats[i].packed, module_->placement(), floats);
    }
  }
}

std::vector<at::Tensor> MeasuredModule::weights() const {
  std::vector<at::Tensor> all;
  for (const Weight& weight : weights_) all.push_back(module_->parameter(weight.name));
  return all;
}

at::Tensor MeasuredModule::stored(const Weight& weight, size_t format) const {
  const at::Tensor own = module_->parameter(weight.name).detach();
  at::Tensor values = at::empty_like(own);
  const auto& packed = weight.packed[format];
  if (packed.empty()) {
    at::Tensor narrow = at::empty(own.sizes(), own.options().dtype(floats_));
    precision::cast_into(narrow, own);
    precision::cast_into(values, narrow);
    return values;
  }
  const at::Tensor matrices = as_matrices(values, weight.matrices);
  for (int64_t m = 0; m < weight.matrices; ++m) {
    at::Tensor matrix = matrices.select(0, m);
    precision::cast_into(matrix, packed[static_cast<size_t>(m)].rows(0, matrix.size(0)));
  }
  return values;
}

NamedWeights MeasuredModule::stored(size_t format) const {
  NamedWeights all;
  for (const Weight& weight : weights_) all.emplace_back(weight.name, stored(weight, format));
  return all;
}

std::vector<at::Tensor> MeasuredModule::expert_changes(size_t format, const std::vector<HeardPass>& passes) const {
  const auto& experts = dynamic_cast<const models::ExpertWeights&>(*module_);
  const WeightsInPlace other(*module_, stored(format));
  std::vector<at::Tensor> changes;
  for (const HeardPass& pass : passes)
    changes.push_back(rows_of(experts.forward(rows_of(pass.x), pass.experts_nk, pass.weights_nk)) - rows_of(pass.y));
  return changes;
}

std::vector<at::Tensor> MeasuredModule::changes(size_t format, const std::vector<HeardPass>& passes) const {
  if (dynamic_cast<const models::ExpertWeights*>(module_.get()) != nullptr) return expert_changes(format, passes);
  const at::Tensor weight = module_->parameter("weight").detach();
  const auto& packed = weights_.front().packed[format];
  std::vector<at::Tensor> changes;
  if (!packed.empty() && packed.front().format().dynamic) {  // which rounds the inputs too
    const precision::PackedWeight codes = packed.front().on(weight.device());
    for (const HeardPass& pass : passes) {
      const at::Tensor x = rows_of(pass.x);
      changes.push_back(kernels::quantized_linear(x, codes.matrix()) - kernels::linear(x, weight));
    }
    return changes;
  }
  const at::Tensor error = stored(weights_.front(), format) - weight;
  for (const HeardPass& pass : passes) {
    changes.push_back(pass.looks_up ? error.index_select(0, pass.x.flatten())
                                    : kernels::linear(rows_of(pass.x), error));
  }
  return changes;
}

}  // namespace limbeck::quantize
