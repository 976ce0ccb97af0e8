#include "trainer/build/model_sharing.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/operator/wide_type.h"
#include "modules/errors.h"

namespace limbeck::loop {
namespace {

using objective::Distillation;
using parallel::NamedParameter;

std::vector<NamedParameter> named_parameters(const models::BuiltModel& model) {
  std::vector<NamedParameter> found;
  for (const auto& module : model.model->modules()) {
    const auto* owner = dynamic_cast<const precision::ContractModule*>(module.get());
    if (owner == nullptr) continue;
    for (const auto& entry : owner->named_parameters(/*recurse=*/false)) {
      found.push_back({owner->path() + "." + entry.key(), entry.value()});
    }
  }
  return found;
}

std::vector<NamedParameter> trained_parameters(const Distillation& objective) {
  std::vector<NamedParameter> found;
  for (const objective::TrainedParameter& p : objective.trained_parameters()) found.push_back({p.name, p.tensor});
  return found;
}

parallel::Order order_of(const recipe::Settings& settings) {
  return settings.text("parallel.reduce") == "tree" ? parallel::Order::kTree : parallel::Order::kFast;
}

bool divides_teacher(const recipe::Settings& settings, const Distillation& objective, int ranks) {
  // Weights that are the student's as well stay with it.
  return settings.integer("parallel.zero") >= 3 && ranks > 1 && objective.teacher() &&
         !objective.teacher_shares_weights();
}

// One rank alone has nothing to share, unless sums must come in the order that any number of ranks has.
bool shares_nothing(const recipe::Settings& settings, int ranks) {
  return ranks == 1 && order_of(settings) == parallel::Order::kFast;
}

int64_t whole_bytes(const std::vector<NamedParameter>& parameters) {
  int64_t bytes = 0;
  for (const NamedParameter& parameter : parameters) bytes += static_cast<int64_t>(parameter.tensor.nbytes());
  return bytes;
}

// Of quantized weights, which every rank has whole.
int64_t quantized_bytes(const models::BuiltModel& model) {
  int64_t bytes = 0;
  for (const auto& module : model.model->modules()) {
    const auto* linear = dynamic_cast<const models::Linear*>(module.get());
    if (linear != nullptr && linear->is_quantized()) bytes += linear->quantized_weight().bytes();
  }
  return bytes;
}

// Units with their padding; `wide`: each element in the dtype that gradients are summed in.
int64_t unit_bytes(const std::vector<NamedParameter>& parameters, int ranks, bool wide) {
  int64_t bytes = 0;
  for (const parallel::UnitLayout& unit : parallel::lay_out(parameters, ranks)) {
    const at::Tensor& like = parameters[unit.members.front().parameter].tensor;
    const at::ScalarType dtype = wide ? kernels::wide_type(like) : like.scalar_type();
    bytes += unit.length * static_cast<int64_t>(c10::elementSize(dtype));
  }
  return bytes;
}

}  // namespace

std::unique_ptr<optim::Optimizer> make_optimizer(const recipe::Settings& settings, Distillation& objective,
                                                 parallel::Communicator& ranks, int64_t own_micro_batches,
                                                 int64_t total_steps, const std::vector<std::string>& unreached) {
  std::vector<optim::Parameter> parameters;
  std::vector<NamedParameter> named;
  for (const objective::TrainedParameter& p : objective.trained_parameters()) {
    if (std::find(unreached.begin(), unreached.end(), p.name) != unreached.end()) continue;
    parameters.push_back({p.name, p.tensor, p.group, p.decays});
    named.push_back({p.name, p.tensor});
  }
  parallel::SharingOptions options;
  options.zero = static_cast<int>(settings.integer("parallel.zero"));
  options.order = order_of(settings);
  options.micro_batches = own_micro_batches;
  if (options.zero >= 3 && objective.follows_student()) {
    throw UsageError(
        fmt::format("parallel.zero = 3 {} divides the student's weights, and teacher.kind = ema {} follows "
                    "them whole: set parallel.zero = 2",
                    settings.where("parallel.zero"), settings.where("teacher.kind")));
  }
  auto shares = shares_nothing(settings, ranks.size()) ? parallel::make_whole(named)
                                                       : parallel::make_shared_out(ranks, options, named);
  objective.student().model->set_weight_keeper(shares->keeper());
  return std::make_unique<optim::Optimizer>(settings, std::move(parameters), total_steps, std::move(shares));
}

TeacherShards::TeacherShards(const recipe::Settings& settings, Distillation& objective, parallel::Communicator& ranks) {
  if (!divides_teacher(settings, objective, ranks.size())) return;
  const at::NoGradGuard no_gradient;
  const auto frozen = named_parameters(*objective.teacher());
  for (const parallel::UnitLayout& layout : parallel::lay_out(frozen, ranks.size())) {
    units_.push_back(std::make_unique<parallel::UnitWeights>(ranks, pool_, layout, frozen, /*stays=*/false));
    keeper_.add(units_.back().get(), /*freed_after_use=*/true);
  }
  objective.teacher()->model->set_weight_keeper(&keeper_);
}

KeptBytes kept_bytes(const recipe::Settings& settings, const Distillation& objective, int ranks) {
  KeptBytes kept;
  const int64_t zero = settings.integer("parallel.zero");
  const auto trained = trained_parameters(objective);
  std::vector<NamedParameter> student, frozen;
  for (const NamedParameter& parameter : named_parameters(objective.student())) {
    (parameter.tensor.requires_grad() ? student : frozen).push_back(parameter);
  }
  if (objective.teacher() && !objective.teacher_shares_weights()) {
    const auto teacher = named_parameters(*objective.teacher());
    kept.teacher = divides_teacher(settings, objective, ranks) ? unit_bytes(teacher, ranks, /*wide=*/false) / ranks
                                                               : whole_bytes(teacher);
    kept.teacher += quantized_bytes(*objective.teacher());
  }
  kept.student = whole_bytes(frozen);
  kept.student += zero >= 3 && ranks > 1 ? unit_bytes(student, ranks, /*wide=*/false) / ranks : whole_bytes(student);
  kept.student += quantized_bytes(objective.student());
  kept.gradients = whole_bytes(trained);
  if (!shares_nothing(settings, ranks)) {
    kept.gradients = unit_bytes(trained, ranks, /*wide=*/true) / (zero >= 2 ? ranks : 1);
  }
  return kept;
}

}  // namespace limbeck::loop
