#include "trainer/build/model_sharing.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/operator/wide_type.h"
#include "modules/errors.h"

namespace limbeck::build {
namespace {

using objective::Distillation;
using parallel::NamedParameter;
using parallel::ParallelOptions;

// Parameters, and the parts of packed weights.
std::vector<NamedParameter> stored_tensors(const models::BuiltModel& model) {
  std::vector<NamedParameter> found;
  for (const auto& [name, tensor] : precision::stored_tensors(*model.model)) found.push_back({name, tensor});
  return found;
}

// What the teacher has for itself: packed weights may be the student's.
std::vector<NamedParameter> own_tensors(const models::BuiltModel& teacher, const models::BuiltModel& student) {
  std::set<const c10::TensorImpl*> others;
  for (const NamedParameter& tensor : stored_tensors(student)) others.insert(tensor.tensor.unsafeGetTensorImpl());
  std::vector<NamedParameter> found;
  for (NamedParameter& tensor : stored_tensors(teacher)) {
    if (!others.contains(tensor.tensor.unsafeGetTensorImpl())) found.push_back(std::move(tensor));
  }
  return found;
}

std::vector<NamedParameter> trained_parameters(const Distillation& objective) {
  std::vector<NamedParameter> found;
  for (const objective::TrainedParameter& p : objective.trained_parameters()) found.push_back({p.name, p.tensor});
  return found;
}

bool divides_teacher(const ParallelOptions& options, const Distillation& objective, int ranks) {
  // Weights that are the student's as well stay with it.
  return options.zero >= 3 && ranks > 1 && objective.teacher() && !objective.pair().shares_weights;
}

// One rank alone has nothing to share, unless sums must come in the order that any number of ranks has.
bool shares_nothing(const ParallelOptions& options, int ranks) {
  return ranks == 1 && options.order == parallel::Order::kFast;
}

int64_t whole_bytes(const std::vector<NamedParameter>& parameters) {
  int64_t bytes = 0;
  for (const NamedParameter& parameter : parameters) bytes += static_cast<int64_t>(parameter.tensor.nbytes());
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
  const ParallelOptions asked = parallel::read_parallel_options(settings);
  parallel::SharingOptions options;
  options.zero = asked.zero;
  options.order = asked.order;
  options.micro_batches = own_micro_batches;
  if (options.zero >= 3 && objective.follows_student()) {
    throw UsageError(
        fmt::format("parallel.zero = 3 {} divides the student's weights, and teacher.kind = ema {} follows "
                    "them whole: set parallel.zero = 2",
                    settings.where("parallel.zero"), settings.where("teacher.kind")));
  }
  auto shares = shares_nothing(asked, ranks.size()) ? parallel::make_whole(named)
                                                    : parallel::make_shared_out(ranks, options, named);
  objective.student().model->set_weight_keeper(shares->keeper());
  return std::make_unique<optim::Optimizer>(optim::read_optimizer_options(settings, total_steps), std::move(parameters),
                                            std::move(shares));
}

TeacherShards::TeacherShards(const ParallelOptions& options, Distillation& objective, parallel::Communicator& ranks) {
  if (!divides_teacher(options, objective, ranks.size())) return;
  const at::NoGradGuard no_gradient;
  const auto frozen = own_tensors(*objective.teacher(), objective.student());
  for (const parallel::UnitLayout& layout : parallel::lay_out(frozen, ranks.size())) {
    units_.push_back(std::make_unique<parallel::UnitWeights>(ranks, pool_, layout, frozen, /*stays=*/false));
    keeper_.add(units_.back().get(), /*freed_after_use=*/true);
  }
  objective.teacher()->model->set_weight_keeper(&keeper_);
}

KeptBytes kept_bytes(const ParallelOptions& options, const Distillation& objective, int ranks) {
  KeptBytes kept;
  const auto trained = trained_parameters(objective);
  std::vector<NamedParameter> student, frozen;
  for (const NamedParameter& parameter : stored_tensors(objective.student())) {
    (parameter.tensor.requires_grad() ? student : frozen).push_back(parameter);
  }
  if (objective.teacher() && !objective.pair().shares_weights) {
    const auto teacher = own_tensors(*objective.teacher(), objective.student());
    kept.teacher = divides_teacher(options, objective, ranks) ? unit_bytes(teacher, ranks, /*wide=*/false) / ranks
                                                              : whole_bytes(teacher);
  }
  kept.student = whole_bytes(frozen);
  kept.student +=
      options.zero >= 3 && ranks > 1 ? unit_bytes(student, ranks, /*wide=*/false) / ranks : whole_bytes(student);
  kept.gradients = whole_bytes(trained);
  if (!shares_nothing(options, ranks)) {
    kept.gradients = unit_bytes(trained, ranks, /*wide=*/true) / (options.zero >= 2 ? ranks : 1);
  }
  return kept;
}

}  // namespace limbeck::build
