#include "trainer/quantize/rounded_model.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <iterator>
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
    }
    if (request.way == RoundingWay::kLearned) float_states_.emplace(floats, rows);
  }

  RoundedModel run(const std::function<void(int64_t)>& done) {
    const std::vector<PackedLinears> stages = packed_stages(model_);
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      std::optional<FinishedStage> finished;
      if (request_.work != nullptr) finished = request_.work->take(stage, stages[stage]);
      if (finished) {
        if (float_states_) float_states_->advance(stage);
      } else {
        finished = round(stage, stages[stage]);
        if (request_.work != nullptr) request_.work->keep(stage, stages[stage], *finished);
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

  FinishedStage round(size_t stage, const PackedLinears& modules) {
    FinishedStage finished;
    if (!float_states_ || !states_.is_layer(stage)) {
      finished.modules = compensate_stage(stage, states_, modules, floats_, request_.scales);
    } else if (modules.empty()) {
      float_states_->advance(stage);
    } else {
      finished.layer = learn_layer(stage, *float_states_, states_, modules, floats_,
                                   {.steps = request_.steps, .scales = request_.scales}, finished.modules);
      finished.layer->path = below_root(model_.layers()[stage]->path());
    }
    for (RoundedModule& module : finished.modules) module.path = below_root(module.path);
    return finished;
  }

  void add(FinishedStage finished) {
    std::move(finished.modules.begin(), finished.modules.end(), std::back_inserter(rounded_.modules));
    if (finished.layer) rounded_.layers.push_back(std::move(*finished.layer));
  }

  const models::Transformer& model_;
  const RoundingRequest request_;
  const std::string root_;
  RowStates states_;
  std::optional<RowStates> float_states_;
  LinearsByPath floats_;
  RoundedModel rounded_;
};

}  // namespace

RoundingPlan plan_rounding(const models::BuiltModel& packed, const RoundingRows& rows, RoundingWay way) {
  constexpr int64_t kDouble = 8, kFloat = 4;
  // Of a weight: moved, what its codes stand for and the slope of that, its offset, the best one, and their slope.
  constexpr int64_t kLearned = 6 * kFloat;
  RoundingPlan plan;
  int64_t columns = 0, weights = 0;
  const std::vector<PackedLinears> stages = packed_stages(*packed.model);
  for (const PackedLinears& modules : stages) {
    ++plan.stages;
    plan.modules += static_cast<int64_t>(modules.size());
    int64_t values = 0;
    for (const auto& module : modules) {
      columns = std::max(columns, module->in_features());
      values += module->in_features() * module->out_features();
    }
    if (plan.stages <= static_cast<int64_t>(packed.model->layers().size())) weights = std::max(weights, values);
  }
  plan.state_bytes = rows.count * rows.length * packed.config.architecture.hidden * kFloat;
  plan.moment_bytes = 2 * columns * columns * kDouble;  // the sums, and the factor that is made of them
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
