// What of a recipe a CUDA graph cannot hold: refused in words, with what to change.
#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/parallel/parallel_options.h"
#include "trainer/session/step_graphs.h"

namespace limbeck::session {

namespace {

using objective::TermKind;

constexpr const char* kGraphsOption = "train.cuda_graphs";

class Refusals {
 public:
  explicit Refusals(const recipe::Settings& settings) : where_(settings.where(kGraphsOption)) {}

  void refuse_if(bool bad, const std::string& reason, const std::string& way_out = "") const {
    if (!bad) return;
    throw UsageError(fmt::format("{} = on {}: {}: set {}{} = off", kGraphsOption, where_, reason,
                                 way_out.empty() ? "" : way_out + ", or ", kGraphsOption));
  }

 private:
  std::string where_;
};

void check_model(const models::BuiltModel& model, const Refusals& refusals) {
  const models::Architecture& a = model.model->architecture();
  const std::string& name = model.model->path();
  refusals.refuse_if(a.kind != models::ModelKind::kDecoder || a.head != models::HeadKind::kLanguageModel,
                     fmt::format("{} is no decoder with a language-model head, and others are not recorded yet", name));
  refusals.refuse_if(model.policy->stream_dtype() == at::kDouble,
                     fmt::format("the head of {} is float64, which is no fused one", name),
                     fmt::format("{}.dtype = float32", name));
  refusals.refuse_if(static_cast<bool>(a.other_mixer.make),
                     fmt::format("{} mixes tokens by a mixer of a plug-in, and none of those is recorded yet", name));
  for (const models::Rope& rope : {a.rope, a.local_rope}) {
    refusals.refuse_if(
        rope.type == models::RopeType::kDynamic || rope.type == models::RopeType::kLongRope,
        fmt::format("the positions of {} turn by the longest row of a batch, which the host reads", name));
  }
}

// Terms of the loss: divergence and cross-entropy by the fused head.
void check_objective(const recipe::Settings& settings, const objective::Distillation& objective,
                     const Refusals& refusals) {
  const objective::ObjectiveOptions& options = objective.options();
  for (const recipe::TermRow& row : recipe::kTermRows) {
    const bool known = row.kind == TermKind::kKd || row.kind == TermKind::kCe ||
                       row.kind == TermKind::kProjectorCe;  // without a projector it adds nothing
    refusals.refuse_if(!known && options.weights.full(row.kind) > 0,
                       fmt::format("objective.{} adds a term that is not recorded yet", row.key),
                       fmt::format("objective.{} = 0", row.key));
  }
  refusals.refuse_if(options.head.logit_projector, "a logit projector is not recorded yet", "projector.kind = none");
  const bool compares = options.weights.full(TermKind::kKd) > 0;
  refusals.refuse_if(compares && (!options.divergence.fused || options.divergence.dual_space),
                     fmt::format("objective.divergence = {} {} is not of the fused head",
                                 settings.text("objective.divergence"), options.divergence_where),
                     "objective.divergence = forward_kl");
  for (const double fraction : {0.125, 0.25, 0.5, 0.75, 1.0}) {
    refusals.refuse_if(options.weights.all(fraction) != options.weights.all(0),
                       "weights of terms or the temperature change from step to step, and a graph holds them as they "
                       "were",
                       "objective.curriculum = none and no objective.temperature_end");
  }
}

}  // namespace

void require_recordable(const recipe::Settings& settings, const objective::Distillation& objective, int ranks) {
  const Refusals refusals(settings);
  refusals.refuse_if(settings.device_of("student").type() != at::kCUDA, "the student is not on a GPU",
                     "student.device = cuda");
  refusals.refuse_if(ranks > 1,
                     fmt::format("gradients of {} ranks meet while backward runs, which is not recorded yet", ranks));
  refusals.refuse_if(parallel::read_parallel_options(settings).order == parallel::Order::kTree,
                     "a tree of sums takes gradients while backward runs, which is not recorded yet",
                     "parallel.reduce = fast");
  refusals.refuse_if(objective.pair().average.has_value(), "a teacher that follows the student is not recorded yet");
  check_model(objective.student(), refusals);
  if (objective.teacher()) check_model(*objective.teacher(), refusals);
  check_objective(settings, objective, refusals);
}

}  // namespace limbeck::session
