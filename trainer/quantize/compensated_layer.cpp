#include "trainer/quantize/compensated_layer.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/precision/observer.h"

namespace limbeck::quantize {

namespace {

class HeardInputs : public precision::ModuleObserver {
 public:
  void input(const precision::ContractModule& module, const at::Tensor& x) override { all.emplace_back(&module, x); }

  std::vector<std::pair<const precision::ContractModule*, at::Tensor>> all;
};

class CompensatedStage {
 public:
  CompensatedStage(size_t stage, const RowStates& states, const LinearsByPath& floats, at::ScalarType scales)
      : stage_(stage), states_(states), floats_(floats), scales_(scales) {}

  std::vector<RoundedModule> round(const PackedLinears& modules) {
    for (const PackedLinears& together : in_order_of_forward(modules)) round_together(together);
    rounded_.insert(rounded_.end(), unheard_.begin(), unheard_.end());
    return std::move(rounded_);
  }

 private:
  HeardInputs heard(size_t row) const {
    HeardInputs inputs;
    const precision::Observing observing(inputs);
    states_.forward(stage_, row);
    return inputs;
  }

  // Those that get one and the same tensor together.
  std::vector<PackedLinears> in_order_of_forward(PackedLinears rest) {
    std::vector<PackedLinears> groups;
    for (size_t row = 0; row < states_.rows() && !rest.empty(); ++row) {
      at::Tensor before;
      for (const auto& [module, x] : heard(row).all) {
        const auto found =
            std::find_if(rest.begin(), rest.end(), [&, m = module](const auto& one) { return one.get() == m; });
        if (found == rest.end()) continue;
        if (!before.defined() || !before.is_same(x)) groups.emplace_back();
        groups.back().push_back(*found);
        rest.erase(found);
        before = x;
      }
    }
    for (const auto& module : rest) unheard_.push_back(not_rounded(*module));
    return groups;
  }

  static RoundedModule not_rounded(const models::Linear& module) {
    return {.path = module.path(), .format = kernels::format_name(module.packed()->format())};
  }

  // Second moments of what the module gets, padding left out; how many tokens.
  std::pair<at::Tensor, int64_t> moments(const models::Linear& module) const {
    const int64_t columns = module.in_features();
    at::Tensor sums = at::zeros({columns, columns}, at::TensorOptions().dtype(at::kDouble));
    int64_t tokens = 0;
    for (size_t row = 0; row < states_.rows(); ++row) {
      for (const auto& [heard_of, x] : heard(row).all) {
        if (heard_of != &module) continue;
        const at::Tensor valid = x.reshape({-1, columns}).index_select(0, states_.valid(row));
        kernels::add_second_moments(sums, precision::move(valid, c10::kCPU));
        tokens += valid.size(0);
      }
    }
    return {sums, tokens};
  }

  void round_together(const PackedLinears& together) {
    const auto [sums, tokens] = moments(*together.front());
    const double squares = sums.diagonal().sum().item<double>();
    if (!std::isfinite(squares)) {
      throw NumericError(
          fmt::format("{}: what it gets on the calibration rows is not finite: look at the model's "
                      "weights, or take --rounding=nearest",
                      together.front()->path()));
    }
    if (squares == 0) {
      for (const auto& module : together) unheard_.push_back(not_rounded(*module));
      return;
    }
    const kernels::Compensation compensation = kernels::compensation_of(sums);
    for (const auto& module : together)
      rounded_.push_back(round_module(*floats_.at(module->path()), *module, compensation, tokens, scales_));
  }

  const size_t stage_;
  const RowStates& states_;
  const LinearsByPath& floats_;
  const at::ScalarType scales_;
  std::vector<RoundedModule> rounded_, unheard_;
};

}  // namespace

RoundedModule round_module(const models::Linear& floats, models::Linear& packed,
                           const kernels::Compensation& compensation, int64_t tokens, at::ScalarType scales) {
  const at::Tensor weight = precision::move(floats.weight().detach(), c10::kCPU);
  const kernels::QuantizedFormat format = packed.packed()->format();
  const kernels::CompensatedMatrix found = kernels::quantize_compensated(weight, compensation, format, scales);
  packed.replace_packed_weight("weight", precision::PackedWeight(found.matrix).on(packed.placement()));
  return {.path = packed.path(),
          .format = kernels::format_name(format),
          .tokens = tokens,
          .damping = compensation.damping,
          .nearest = found.nearest / static_cast<double>(tokens),
          .compensated = found.compensated / static_cast<double>(tokens)};
}

std::vector<RoundedModule> compensate_stage(size_t stage, const RowStates& states, const PackedLinears& modules,
                                            const LinearsByPath& floats, at::ScalarType scales) {
  return CompensatedStage(stage, states, floats, scales).round(modules);
}

}  // namespace limbeck::quantize
