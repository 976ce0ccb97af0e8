#include "trainer/quantize/compensated_experts.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/quantized/compensated_rounding.h"
#include "kernels/quantized/quantized_linear.h"
#include "modules/errors.h"
#include "modules/models/network/parameter_modules.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/observer.h"

namespace limbeck::quantize {

namespace {

constexpr int64_t kColumnsOfAToken = 4;  // more of them for each token: too few

// What one layer's experts get, and who gets it.
class HeardRouting : public precision::ModuleObserver {
 public:
  explicit HeardRouting(const precision::ContractModule& experts) : experts_(experts) {}
  void input(const precision::ContractModule& module, const at::Tensor& given) override {
    if (&module == &experts_) x = given;
  }
  void routing(const precision::ContractModule& module, const at::Tensor& experts_nk, const at::Tensor&) override {
    if (&module == &experts_) chosen = experts_nk;
  }

  at::Tensor x, chosen;

 private:
  const precision::ContractModule& experts_;
};

class ExpertRounding {
 public:
  ExpertRounding(const models::ExpertWeights& floats, models::ExpertWeights& packed, at::ScalarType scales)
      : floats_(floats), packed_(packed), scales_(scales) {
    const auto& stacks = floats.stacks();
    rounded_.format = kernels::format_name(*packed.precision().quantized);
    fewest_ = std::max(stacks[0]->sizes().in, stacks[1]->sizes().in) / kColumnsOfAToken;
  }

  // Padding is left out.
  void hear(size_t stage, const RowStates& states) {
    std::vector<at::Tensor> x, chosen;
    for (size_t row = 0; row < states.rows(); ++row) {
      HeardRouting heard(packed_);
      {
        const precision::Observing observing(heard);
        states.forward(stage, row);
      }
      if (!heard.x.defined() || !heard.chosen.defined()) continue;
      x.push_back(heard.x.index_select(0, states.valid(row)));
      chosen.push_back(heard.chosen.index_select(0, states.valid(row)));
    }
    if (x.empty()) return;
    x_ = at::cat(x);
    chosen_ = at::cat(chosen);
  }

  RoundedExperts round() {
    for (int64_t expert = 0; expert < packed_.count(); ++expert) {
      if (!round(expert)) rounded_.to_nearest.push_back(expert);
    }
    if (rounded_.tokens > 0) {
      rounded_.nearest /= static_cast<double>(rounded_.tokens);
      rounded_.compensated /= static_cast<double>(rounded_.tokens);
    }
    return std::move(rounded_);
  }

 private:
  bool round(int64_t expert) {
    if (!x_.defined()) return false;
    const at::Tensor rows = x_.index_select(0, chosen_.eq(expert).any(1).nonzero().flatten());
    if (rows.size(0) == 0 || rows.size(0) < fewest_) return false;
    const auto of_inputs = compensation_of(rows);
    if (!of_inputs) return false;
    const models::ExpertStack &first = *floats_.stacks()[0], &down = *floats_.stacks()[1];
    const auto names = models::ExpertStack::packed_names(first.parameter_name());
    const auto matrices = first.weight_rows(expert, 1).squeeze(0).chunk(static_cast<int64_t>(names.size()), 0);
    std::vector<at::Tensor> results;
    for (size_t i = 0; i < names.size(); ++i)
      results.push_back(round_matrix(names[i], expert, matrices[i], *of_inputs, rows));
    at::Tensor given = at::cat(results, -1);
    if (const auto bias = packed_.stacks()[0]->bias()) given = given + bias->detach().select(0, expert);
    const at::Tensor inner = packed_.activated(given);
    const auto of_inner = compensation_of(inner);
    if (of_inner) round_matrix("down_proj", expert, down.weight_rows(expert, 1).squeeze(0), *of_inner, inner);
    rounded_.tokens += rows.size(0);
    return true;
  }

  std::optional<kernels::Compensation> compensation_of(const at::Tensor& rows) const {
    at::Tensor sums = at::zeros({rows.size(1), rows.size(1)}, at::TensorOptions().dtype(at::kDouble));
    kernels::add_second_moments(sums, precision::move(rows, c10::kCPU));
    const double squares = sums.diagonal().sum().item<double>();
    if (!std::isfinite(squares)) {
      throw NumericError(
          fmt::format("{}: what it gets on the calibration rows is not finite: look at the model's "
                      "weights, or take --rounding=nearest",
                      packed_.path()));
    }
    return squares == 0 ? std::nullopt : std::optional(kernels::compensation_of(sums));
  }

  // Gives what the packed matrix makes of the rows.
  at::Tensor round_matrix(const std::string& stack, int64_t expert, const at::Tensor& weight,
                          const kernels::Compensation& compensation, const at::Tensor& rows) {
    const at::Tensor here = precision::move(weight.detach(), c10::kCPU).contiguous();
    const auto found = kernels::quantize_compensated(here, compensation, *packed_.precision().quantized, scales_);
    packed_.replace_packed_member(stack, expert, precision::PackedWeight(found.matrix).on(packed_.placement()));
    rounded_.nearest += found.nearest;
    rounded_.compensated += found.compensated;
    return kernels::quantized_linear(rows, packed_.packed_weight(stack)->member(expert).matrix());
  }

  const models::ExpertWeights& floats_;
  models::ExpertWeights& packed_;
  const at::ScalarType scales_;
  int64_t fewest_ = 0;
  at::Tensor x_, chosen_;  // [T, D], [T, K]
  RoundedExperts rounded_;
};

}  // namespace

std::shared_ptr<models::ExpertWeights> packed_experts(const models::Transformer& model, size_t stage) {
  if (stage >= model.layers().size()) return nullptr;
  for (const auto& module : precision::contract_modules(*model.layers()[stage])) {
    auto experts = std::dynamic_pointer_cast<models::ExpertWeights>(module);
    if (experts != nullptr && experts->precision().quantized) return experts;
  }
  return nullptr;
}

RoundedExperts compensate_experts(size_t stage, const RowStates& states, const models::ExpertWeights& floats,
                                  models::ExpertWeights& packed, at::ScalarType scales) {
  ExpertRounding rounding(floats, packed, scales);
  rounding.hear(stage, states);
  RoundedExperts rounded = rounding.round();
  rounded.path = packed.path();
  return rounded;
}

}  // namespace limbeck::quantize
