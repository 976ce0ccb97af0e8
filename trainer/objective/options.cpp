#include "trainer/objective/options.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/objective/head/vocabulary_parallel.h"

namespace limbeck::objective {

namespace {

using recipe::Settings;

Divergence divergence_of(const Settings& settings, const Registries& registries) {
  const auto* list = dynamic_cast<const Registry<DivergenceFactory>*>(registries.find("objectives"));
  if (list == nullptr) throw std::logic_error("no objective is registered: call register_builtins()");
  return list->find(settings.text("objective.divergence"))(read_divergence_options(settings));
}

MixtureShare share_of(const Settings& settings, const std::string& key) {
  const double share = settings.number(key);
  return {share, fmt::format("{} = {} {}", key, share, settings.where(key))};
}

void require_comparable_models(const Settings& settings, const ObjectiveOptions& options, const ModelPair& pair) {
  if (!pair.teacher) {
    if (!options.needs_teacher()) return;
    throw UsageError(
        fmt::format("objective.alpha = {} {} compares with a teacher, and the recipe has none: set teacher.model, or "
                    "teacher.kind = self or ema, or train without one by objective.alpha = 0 (and no other teacher "
                    "term)",
                    settings.number("objective.alpha"), settings.where("objective.alpha")));
  }
  if (has_language_head(pair.student) && options.weights.full(TermKind::kKd) > 0 && !has_language_head(*pair.teacher) &&
      !options.head.logit_projector) {
    throw UsageError(
        fmt::format("teacher.model {} has no language-model head, which objective.alpha compares with: set "
                    "another teacher.model, or objective.alpha = 0",
                    settings.where("teacher.model")));
  }
  if (options.head.logit_projector && !has_language_head(pair.student)) {
    throw UsageError(
        fmt::format("projector.kind = logit {} reads the teacher through the student's language-model "
                    "head, and student.model has none: set projector.kind = none",
                    settings.where("projector.kind")));
  }
  const c10::Device theirs = pair.teacher->policy->device(), own = pair.student.policy->device();
  if (theirs == own) return;
  throw UsageError(
      fmt::format("teacher.device = {} {} and student.device = {}: wanted one device, because both "
                  "read the same batch, in evaluation always",
                  theirs.str(), settings.where("teacher.device"), own.str()));
}

HeadOptions head_options(const Settings& settings) {
  return {.clamp = settings.number("objective.clamp"),
          .label_smoothing = settings.number("objective.label_smoothing"),
          .logit_projector = settings.text("projector.kind") == "logit",
          .projector_learns_labels = settings.text("projector.supervision") == "ce",
          .only_right = settings.text("objective.dskd_mask") == "right"};
}

HiddenOptions hidden_options(const Settings& settings, const TermWeights& weights) {
  using Wanted = HiddenOptions::Projector;
  const std::string& kind = settings.text("objective.hidden_projector");
  HiddenOptions options;
  options.cosine = settings.text("objective.hidden_loss") == "cosine";
  options.projector = kind == "none" ? Wanted::kNone : kind == "mlp" ? Wanted::kMlp : Wanted::kLinear;
  options.projector_where = settings.where("objective.hidden_projector");
  if (weights.full(TermKind::kLayer) > 0) options.layers = read_layer_map(settings);
  return options;
}

EquivalenceOptions equivalence_options(const Settings& settings) {
  using Measure = EquivalenceOptions::Distance;
  const std::string& loss = settings.text("objective.equivalence_loss");
  return {.distance = loss == "normalised" ? Measure::kNormalised
                      : loss == "relative" ? Measure::kRelative
                                           : Measure::kDirect,
          .guided = settings.enabled("objective.equivalence_guided"),
          .regularization = settings.number("objective.regularization"),
          .weight_where = settings.where("objective.equivalence_weight")};
}

ProjectorOptions projector_options(const Settings& settings) {
  return {.float32 = settings.text("projector.dtype") == "float32",
          .float32_source = settings.origin("projector.dtype").to_string(),
          .init_std = settings.number("projector.init_std"),
          .seed = settings.integer("seed")};
}

}  // namespace

DivergenceOptions read_divergence_options(const Settings& settings) {
  return {.beta = share_of(settings, "objective.beta"),
          .skew = share_of(settings, "objective.skew"),
          .top_k = settings.integer("objective.top_k")};
}

ObjectiveOptions read_options(const Settings& settings, const Registries& registries, const ModelPair& pair) {
  ObjectiveOptions options{
      .weights = TermWeights(settings, pair.student.config.architecture.head == models::HeadKind::kNone),
      .divergence = divergence_of(settings, registries),
      .head = head_options(settings)};
  options.hidden = hidden_options(settings, options.weights);
  options.pooled = {.first_token = settings.text("model.pooling") == "cls",
                    .temperature = settings.number("objective.contrastive_temperature")};
  options.equivalence = equivalence_options(settings);
  options.projectors = projector_options(settings);
  options.interpolates = settings.text("objective.alignment") == "interpolate";
  options.seed = static_cast<uint64_t>(settings.integer("seed"));
  options.divergence_where = settings.where("objective.divergence");
  options.teacher_where = settings.where("teacher.model");
  return options;
}

void require_fitting_pair(const Settings& settings, const ObjectiveOptions& options, const ModelPair& pair) {
  require_comparable_models(settings, options, pair);
  if (settings.enabled("objective.vocabulary_parallel")) {
    require_divisible_vocabulary(settings, options.divergence, has_language_head(pair.student));
  }
}

}  // namespace limbeck::objective
