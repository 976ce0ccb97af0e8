#include "trainer/quantize/compensated_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/observer.h"
#include "trainer/objective/forward_pass.h"

namespace limbeck::quantize {

namespace {

using PackedLinears = std::vector<std::shared_ptr<models::Linear>>;

PackedLinears packed_linears(const torch::nn::Module& root) {
  PackedLinears found;
  for (const auto& module : precision::contract_modules(root)) {
    const auto linear = std::dynamic_pointer_cast<models::Linear>(module);
    if (linear != nullptr && !linear->is_tied() && linear->is_quantized()) found.push_back(linear);
  }
  return found;
}

// The layers that have packed weights or come before one that has, then what is behind them.
std::vector<PackedLinears> stages_of(const models::Transformer& model) {
  std::vector<PackedLinears> stages;
  PackedLinears behind = packed_linears(model);
  for (const auto& layer : model.layers()) {
    stages.push_back(packed_linears(*layer));
    for (const auto& linear : stages.back()) std::erase(behind, linear);
  }
  if (!behind.empty()) stages.push_back(behind);
  while (!stages.empty() && stages.back().empty()) stages.pop_back();
  return stages;
}

class HeardInputs : public precision::ModuleObserver {
 public:
  void input(const precision::ContractModule& module, const at::Tensor& x) override { all.emplace_back(&module, x); }

  std::vector<std::pair<const precision::ContractModule*, at::Tensor>> all;
};

class RoundingWalk {
 public:
  RoundingWalk(const models::BuiltModel& floats, const models::BuiltModel& packed, at::ScalarType scales,
               const RoundingRows& rows)
      : model_(*packed.model), scales_(scales), root_(packed.model->path() + ".") {
    for (const auto& module : precision::contract_modules(*floats.model)) float_modules_[module->path()] = module;
    for (int64_t row = 0; row < rows.count; ++row) {
      const data::TokenStream stream = data::place(rows.row(row), packed.policy->device()).student;
      inputs_.push_back(objective::model_input(stream, nullptr));
      valid_.push_back(objective::valid_tokens(stream).flatten().nonzero().flatten());
      states_.push_back(model_.embedded(inputs_.back()));
    }
  }

  std::vector<RoundedModule> run(const std::function<void(int64_t)>& done) {
    int64_t finished = 0;
    for (const PackedLinears& modules : stages_of(model_)) {
      const auto stage = static_cast<size_t>(finished);
      for (const PackedLinears& together : in_order_of_forward(stage, modules)) round(stage, together);
      if (stage + 1 < model_.layers().size()) {
        for (size_t row = 0; row < states_.size(); ++row) states_[row] = forward(stage, row);
      } else if (stage + 1 == model_.layers().size()) {
        for (size_t row = 0; row < states_.size(); ++row) states_[row] = model_.last_of(forward(stage, row));
      }
      done(++finished);
    }
    rounded_.insert(rounded_.end(), unheard_.begin(), unheard_.end());
    return std::move(rounded_);
  }

 private:
  at::Tensor forward(size_t stage, size_t row) const {
    if (stage == model_.layers().size()) return model_.head(states_[row]);
    return model_.through_layer(stage, states_[row], inputs_[row]);
  }

  HeardInputs heard(size_t stage, size_t row) const {
    HeardInputs inputs;
    const precision::Observing observing(inputs);
    forward(stage, row);
    return inputs;
  }

  // Those that get one and the same tensor together.
  std::vector<PackedLinears> in_order_of_forward(size_t stage, PackedLinears rest) {
    std::vector<PackedLinears> groups;
    for (size_t row = 0; row < states_.size() && !rest.empty(); ++row) {
      at::Tensor before;
      for (const auto& [module, x] : heard(stage, row).all) {
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

  RoundedModule not_rounded(const models::Linear& module) const {
    return {.path = module.path().substr(root_.size()), .format = kernels::format_name(module.packed()->format())};
  }

  // Second moments of what the module gets, padding left out; how many tokens.
  std::pair<at::Tensor, int64_t> moments(size_t stage, const models::Linear& module) const {
    const int64_t columns = module.in_features();
    at::Tensor sums = at::zeros({columns, columns}, at::TensorOptions().dtype(at::kDouble));
    int64_t tokens = 0;
    for (size_t row = 0; row < states_.size(); ++row) {
      for (const auto& [heard_of, x] : heard(stage, row).all) {
        if (heard_of != &module) continue;
        const at::Tensor valid = x.reshape({-1, columns}).index_select(0, valid_[row]);
        kernels::add_second_moments(sums, precision::move(valid, c10::kCPU));
        tokens += valid.size(0);
      }
    }
    return {sums, tokens};
  }

  void round(size_t stage, const PackedLinears& together) {
    const auto [sums, tokens] = moments(stage, *together.front());
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
    for (const auto& module : together) round(*module, compensation, tokens);
  }

  void round(models::Linear& module, const kernels::Compensation& compensation, int64_t tokens) {
    const auto& original = dynamic_cast<const models::Linear&>(*float_modules_.at(module.path()));
    rounded_.push_back(round_module(original, module, compensation, tokens, scales_));
    rounded_.back().path = not_rounded(module).path;
  }

  const models::Transformer& model_;
  const at::ScalarType scales_;
  const std::string root_;
  std::map<std::string, std::shared_ptr<precision::ContractModule>> float_modules_;
  std::vector<models::ModelInput> inputs_;  // by row
  std::vector<at::Tensor> valid_, states_;
  std::vector<RoundedModule> rounded_, unheard_;
};

}  // namespace

RoundingPlan plan_rounding(const models::BuiltModel& packed, const RoundingRows& rows) {
  constexpr int64_t kDouble = 8, kFloat = 4;
  RoundingPlan plan;
  int64_t columns = 0;
  for (const PackedLinears& modules : stages_of(*packed.model)) {
    ++plan.stages;
    plan.modules += static_cast<int64_t>(modules.size());
    for (const auto& module : modules) columns = std::max(columns, module->in_features());
  }
  plan.state_bytes = rows.count * rows.length * packed.config.architecture.hidden * kFloat;
  plan.moment_bytes = 2 * columns * columns * kDouble;  // the sums, and the factor that is made of them
  return plan;
}

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

std::vector<RoundedModule> round_compensated(const models::BuiltModel& floats, const models::BuiltModel& packed,
                                             at::ScalarType scales, const RoundingRows& rows,
                                             const std::function<void(int64_t)>& done) {
  const at::NoGradGuard no_gradient;
  return RoundingWalk(floats, packed, scales, rows).run(done);
}

}  // namespace limbeck::quantize
