#include "trainer/quantize/row_states.h"

#include <algorithm>

#include "modules/precision/contract_modules.h"
#include "trainer/objective/forward_pass.h"

namespace limbeck::quantize {

namespace {

PackedLinears packed_linears(const torch::nn::Module& root) {
  PackedLinears found;
  for (const auto& module : precision::contract_modules(root)) {
    const auto linear = std::dynamic_pointer_cast<models::Linear>(module);
    if (linear != nullptr && !linear->is_tied() && linear->is_quantized()) found.push_back(linear);
  }
  return found;
}

}  // namespace

std::vector<PackedLinears> packed_stages(const models::Transformer& model) {
  std::vector<PackedLinears> stages;
  PackedLinears behind = packed_linears(model);
  for (const auto& layer : model.layers()) {
    stages.push_back(packed_linears(*layer));
    for (const auto& linear : stages.back()) std::erase(behind, linear);
  }
  if (!behind.empty()) stages.push_back(behind);
  const auto has_experts = [&](size_t stage) {
    if (stage >= model.layers().size()) return false;
    const auto modules = precision::contract_modules(*model.layers()[stage]);
    return std::any_of(modules.begin(), modules.end(), [](const auto& module) {
      return module->role() == precision::Role::kExpert && module->precision().quantized;
    });
  };
  while (!stages.empty() && stages.back().empty() && !has_experts(stages.size() - 1)) stages.pop_back();
  return stages;
}

RowStates::RowStates(const models::BuiltModel& model, const RoundingRows& rows) : model_(*model.model) {
  for (int64_t row = 0; row < rows.count; ++row) {
    const data::TokenStream stream = data::place(rows.row(row), model.policy->device()).student;
    inputs_.push_back(objective::model_input(stream, nullptr));
    valid_.push_back(objective::valid_tokens(stream).flatten().nonzero().flatten());
    states_.push_back(model_.embedded(inputs_.back()));
  }
}

at::Tensor RowStates::forward(size_t stage, size_t row, const at::Tensor& x) const {
  return is_layer(stage) ? model_.through_layer(stage, x, inputs_.at(row)) : model_.head(model_.last_of(x));
}

void RowStates::advance(size_t stage) {
  if (!is_layer(stage)) return;
  for (size_t row = 0; row < rows(); ++row) states_[row] = forward(stage, row);
}

}  // namespace limbeck::quantize
