#include "trainer/objective/weights.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::objective {

namespace {

double given_or(const recipe::Settings& settings, const std::string& name, double fallback) {
  return settings.given(name) ? settings.number(name) : fallback;
}

double ramped(double begin, double end, double fraction) {
  if (fraction >= end) return 1.0;
  return fraction <= begin ? 0.0 : (fraction - begin) / (end - begin);
}

}  // namespace

TermWeights::TermWeights(const recipe::Settings& settings, bool headless) {
  curriculum_ = settings.text("objective.curriculum") == "s2";
  kd_ = headless ? 0.0 : settings.number("objective.alpha");
  ce_follows_kd_ = !headless && !settings.given("objective.ce_weight");
  ce_ = headless ? 0.0 : given_or(settings, "objective.ce_weight", 0.0);
  // The weights and temperatures of the curriculum are its own, unless the recipe says otherwise.
  feature_ = given_or(settings, "objective.feature_weight", curriculum_ ? 0.1 : 0.0);
  attention_ = given_or(settings, "objective.attention_weight", curriculum_ ? 0.1 : 0.0);
  layer_ = given_or(settings, "objective.layer_weight", curriculum_ ? 0.05 : 0.0);
  contrastive_ = given_or(settings, "objective.contrastive_weight", curriculum_ ? 0.05 : 0.0);
  balance_ = settings.number("objective.balance_weight");
  expert_mix_ = settings.number("objective.expert_mix_weight");
  embedding_ = given_or(settings, "objective.embedding_weight", headless ? 1.0 : 0.0);
  projector_ce_ = settings.number("objective.projector_ce_weight");
  equivalence_ = settings.number("objective.equivalence_weight");
  kd_start_ = settings.number("objective.curriculum_kd_start");
  kd_until_ = settings.number("objective.curriculum_kd_until");
  feature_ramp_ = {settings.number("objective.curriculum_feature_from"),
                   settings.number("objective.curriculum_feature_until")};
  layer_ramp_ = {settings.number("objective.curriculum_layer_from"),
                 settings.number("objective.curriculum_layer_until")};
  contrastive_ramp_ = {settings.number("objective.curriculum_contrastive_from"),
                       settings.number("objective.curriculum_contrastive_until")};
  temperature_begin_ = given_or(settings, "objective.temperature", curriculum_ ? 2.0 : 1.0);
  const bool falls = curriculum_ && !settings.given("objective.temperature");
  temperature_end_ = given_or(settings, "objective.temperature_end", falls ? 1.5 : temperature_begin_);
  for (const auto& [name, ramp] :
       {std::pair{"feature", feature_ramp_}, {"layer", layer_ramp_}, {"contrastive", contrastive_ramp_}}) {
    if (ramp.begin <= ramp.end) continue;
    throw UsageError(
        fmt::format("objective.curriculum_{0}_from = {1} is after objective.curriculum_{0}_until = {2} {3}: "
                    "exchange them",
                    name, ramp.begin, ramp.end, settings.where(fmt::format("objective.curriculum_{}_until", name))));
  }
}

double TermWeights::full(TermKind kind) const {
  switch (kind) {
    case TermKind::kKd:
      return kd_;
    case TermKind::kCe:
      return ce_follows_kd_ ? 1.0 - kd_ : ce_;
    case TermKind::kFeature:
      return feature_;
    case TermKind::kLayer:
      return layer_;
    case TermKind::kAttention:
      return attention_;
    case TermKind::kContrastive:
      return contrastive_;
    case TermKind::kBalance:
      return balance_;
    case TermKind::kExpertMix:
      return expert_mix_;
    case TermKind::kEmbedding:
      return embedding_;
    case TermKind::kProjectorCe:
      return projector_ce_;
    case TermKind::kEquivalence:
      return equivalence_;
  }
  throw std::logic_error("a term without a weight");
}

double TermWeights::at(TermKind kind, double fraction) const {
  if (!curriculum_) return full(kind);
  switch (kind) {
    case TermKind::kKd: {
      const double start = std::min(kd_start_, kd_);
      return start + (kd_ - start) * ramped(0.0, kd_until_, fraction);
    }
    case TermKind::kCe:
      return ce_follows_kd_ ? 1.0 - at(TermKind::kKd, fraction) : ce_;
    case TermKind::kFeature:
    case TermKind::kAttention:
      return full(kind) * ramped(feature_ramp_.begin, feature_ramp_.end, fraction);
    case TermKind::kLayer:
      return full(kind) * ramped(layer_ramp_.begin, layer_ramp_.end, fraction);
    case TermKind::kContrastive:
      return full(kind) * ramped(contrastive_ramp_.begin, contrastive_ramp_.end, fraction);
    default:
      return full(kind);
  }
}

double TermWeights::temperature(double fraction) const {
  return temperature_begin_ + (temperature_end_ - temperature_begin_) * std::clamp(fraction, 0.0, 1.0);
}

}  // namespace limbeck::objective
