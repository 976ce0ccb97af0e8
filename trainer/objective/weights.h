// The weight of every term and the temperature, as functions of the progress alone: training and evaluation of one step
// ask with the same progress and get the same numbers. Read once from objective.* of the recipe.
#pragma once
#include <optional>
#include <string>

#include "trainer/objective/terms.h"
#include "trainer/recipe/settings.h"

namespace limbeck::objective {

enum class TermKind {
  kKd,
  kCe,
  kFeature,
  kLayer,
  kAttention,
  kContrastive,
  kBalance,
  kExpertMix,
  kEmbedding,
  kProjectorCe,
  kEquivalence
};

class TermWeights {
 public:
  // `headless`: the student is a bare encoder, which has neither KD nor CE and trains on its pooled states.
  TermWeights(const recipe::Settings& settings, bool headless);

  // At this progress, curriculum included.
  double at(TermKind kind, double fraction) const;
  // Once the curriculum has let it in: whether the term takes part in the run at all.
  double full(TermKind kind) const;
  double temperature(double fraction) const;
  bool has_curriculum() const { return curriculum_; }

 private:
  struct Ramp {
    double begin = 0.0, end = 0.0;  // 0 before, the whole weight from `end` on, a straight line between
  };
  bool curriculum_;
  double kd_, ce_, feature_, layer_, attention_, contrastive_, balance_, expert_mix_, embedding_, projector_ce_,
      equivalence_;
  bool ce_follows_kd_;  // CE gets what KD leaves
  double kd_start_, kd_until_;
  Ramp feature_ramp_, layer_ramp_, contrastive_ramp_;
  double temperature_begin_, temperature_end_;
};

}  // namespace limbeck::objective
