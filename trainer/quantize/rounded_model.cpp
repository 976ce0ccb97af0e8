#include "trainer/quantize/rounded_model.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>

#include "modules/precision/contract_modules.h"
#include "trainer/quantize/rounding_work.h"

namespace limbeck::quantize {

namespace {

class RoundingWalk {
 public:
  RoundingWalk(const models::BuiltModel& floats, const models::BuiltModel& packed, const RoundingRows& rows,
               const RoundingRequest& request)
      : model_(*packed.model), request_(request), root_(packed.model->path() + "."), states_(packed, rows) {
    for (const auto& module : precision::contract_modules(*floats.model)) {
      if (auto linear = std::dynamic_pointer_cast<models::Linear>(module)) floats_[module->path()] = std::move(linear);
      if (auto experts = std::dynamic_pointer_cast<models::ExpertWeights>(module))
        float_experts_[module->path()] = std::move(experts);
    }
    if (request.way == RoundingWay::kLearned) float_states_.emplace(floats, rows);
  }

  RoundedModel run(const std::function<void(int64_t)>& done) {
    const std::vector<PackedLinears> stages = packed_stages(model_);
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      const StageModules modules{stages[stage], packed_experts(model_, stage)};
      std::optional<FinishedStage> finished;
      if (request_.work != nullptr) finished = request_.work->take(stage, modules);
      if (finished) {
        if (float_states_) float_states_->advance(stage);
      } else {
        finished = round(stage, modules);
        if (request_.work != nullptr) request_.work->keep(stage, modules, *finished);
      }
      add(std::move(*finished));
      states_.advance(stage);
      done(static_cast<int64_t>(stage) + 1);
    }
    std::stable_partition(rounded_.modules.begin(), rounded_.modules.end(),
                          [](const RoundedModule& module) { return module.tokens > 0; });
    return std::move(rounded_);
  }

 private:
  std::string below_root(const std::string& path) const { return path.substr(root_.size()); }

  // Of a layer, by the weights of the float model.
  std::vector<LearnedWeight> learned_weights(const StageModules& all) const {
    std::vector<LearnedWeight> weights;
    for (const auto& module : all.linears)
      weights.push_back({floats_.at(module->path()), "weight", {{module, "weight"}}});
    if (all.experts == nullptr) return weights;
    for (const auto& stack : all.experts->stacks()) {
      const std::string& parameter = stack->parameter_name();
      weights.push_back({float_experts_.at(all.experts->path()), parameter, {}});
      for (int64_t expert = 0; expert < all.experts->count(); ++expert) {
        for (const std::string& name : models::ExpertStack::packed_names(parameter))
          weights.back().matrices.push_back({all.experts, name, expert});
      }
    }
    return weights;
  }

  FinishedStage round(size_t stage, const StageModules& all) {
    FinishedStage finished;
    const bool learns = float_states_ && states_.is_layer(stage);
    std::vector<LearnedWeight> weights;
    if (learns) weights = learned_weights(all);
    const Codes nearest = codes_of(weights);
    finished.modules = compensate_stage(stage, states_, all.linears, floats_, request_.scales);
    for (RoundedModule& module : finished.modules) module.path = below_root(module.path);
    if (all.experts != nullptr) {
      finished.experts =
          compensate_experts(stage, states_, *float_experts_.at(all.experts->path()), *all.experts, request_.scales);
      finished.experts->path = below_root(finished.experts->path);
    }
    if (!learns) return finished;
    float_states_->advance(stage);
    if (weights.empty()) return finished;
    if (finished.experts) leave_to_nearest(finished.experts->to_nearest, weights);
    finished.layer = learn_layer(stage, *float_states_, states_, weights, nearest,
                                 {.steps = request_.steps, .scales = request_.scales});
    finished.layer->path = below_root(model_.layers()[stage]->path());
    return finished;
  }

  // Experts that would be fitted to a few tokens.
  static void leave_to_nearest(const std::vector<int64_t>& experts, std::vector<LearnedWeight>& weights) {
    for (LearnedWeight& weight : weights) {
      for (PackedPlace& matrix : weight.matrices)
        matrix.learns = std::find(experts.begin(), experts.end(), matrix.member) == experts.end();
    }
  }

  void add(FinishedStage finished) {
    std::move(finished.modules.begin(), finished.modules.end(), std::back_inserter(rounded_.modules));
    if (finished.experts) rounded_.experts.push_back(std::move(*finished.experts));
    if (finished.layer) rounded_.layers.push_back(std::move(*finished.layer));
  }

  const models::Transformer& model_;
  const RoundingRequest request_;
  const std::string root_;
  RowStates states_;
  std::optional<RowStates> float_states_;
  LinearsByPath floats_;
  std::map<std::string, std::shared_ptr<models::ExpertWeights>> float_experts_;
  RoundedModel rounded_;
};

}  // namespace

RoundingPlan plan_rounding(const models::BuiltModel& packed, const RoundingRows& rows, RoundingWay way) {
  constexpr int64_t kDouble = 8, kFloat = 4;
  // Of a weight: moved, what its codes stand for and the slope of that, its offset, the best one, and their slope.
  constexpr int64_t kLearned = 6 * kFloat;
  RoundingPlan plan;
  int64_t columns = 0, weights = 0;
  bool experts = false;
  const std::vector<PackedLinears> stages = packed_stages(*packed.model);
  for (const PackedLinears& modules : stages) {
    int64_t values = 0;
    if (const auto of_layer = packed_experts(*packed.model, static_cast<size_t>(plan.stages)); of_layer != nullptr) {
      experts = true;
      for (const auto& stack : of_layer->stacks()) columns = std::max(columns, stack->sizes().in);
      values = of_layer->footprint().values;
    }
    ++plan.stages;
    plan.modules += static_cast<int64_t>(modules.size());
    for (const auto& module : modules) {
      columns = std::max(columns, module->in_features());
      values += module->in_features() * module->out_features();
    }
    if (plan.stages <= static_cast<int64_t>(packed.model->layers().size())) weights = std::max(weights, values);
  }
  plan.state_bytes = rows.count * rows.length * packed.config.architecture.hidden * kFloat;
  plan.moment_bytes = 2 * columns * columns * kDouble;  // the sums, and the factor that is made of them
  if (experts) plan.state_bytes *= 2;                   // what all experts of a layer get
  if (way == RoundingWay::kLearned) {
    plan.state_bytes *= 2;  // the float model's too
    plan.learned_bytes = weights * kLearned;
  }
  return plan;
}

RoundedModel round_model(const models::BuiltModel& floats, const models::BuiltModel& packed, const RoundingRows& rows,
                         const RoundingRequest& request, const std::function<void(int64_t)>& done) {
  const at::NoGradGuard no_gradient;
  return RoundingWalk(floats, packed, rows, request).run(done);
}

}  // namespace limbeck::quantize
