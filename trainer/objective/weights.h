// The weight of every term and the temperature, as functions of the progress alone: training and evaluation of one step
// ask with the same progress and get the same numbers. Read once from objective.* of the recipe; which terms there are,
// recipe/term_weights.h says.
#pragma once
#include <array>
#include <vector>

#include "trainer/objective/terms.h"
#include "trainer/recipe/settings.h"
#include "trainer/recipe/term_weights.h"

namespace limbeck::objective {

using recipe::TermKind;

class TermWeights {
 public:
  // `headless`: the student is a bare encoder, which has neither KD nor CE and trains on its pooled states.
  TermWeights(const recipe::Settings& settings, bool headless);

  // At this progress, curriculum included.
  double at(TermKind kind, double fraction) const;
  // All that at() and temperature() say at this progress.
  std::vector<double> all(double fraction) const;
  // Once the curriculum has let it in: whether the term takes part in the run at all.
  double full(TermKind kind) const;
  bool needs_teacher() const;  // one of those that take part
  double temperature(double fraction) const;

 private:
  // `start` until `begin`, the whole weight from `end` on, a straight line between.
  struct Weight {
    double full = 0.0, start = 0.0, begin = 0.0, end = 0.0;
  };
  const Weight& of(TermKind kind) const { return weights_.at(static_cast<size_t>(kind)); }

  std::array<Weight, recipe::kTermRows.size()> weights_;
  bool ce_follows_kd_;  // CE gets what KD leaves
  double temperature_begin_, temperature_end_;
};

}  // namespace limbeck::objective
