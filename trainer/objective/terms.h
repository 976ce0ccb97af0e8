// What a forward of the objective yields: named terms, each already divided by the targets of the whole update, so that
// the terms of micro-batches (and ranks) add up and splitting a batch differently changes no gradient.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace limbeck::objective {

class StepNumbers;

struct Progress {
  int64_t step = 0, total_steps = 1;
  int64_t update_targets = 0;    // valid targets of the whole update (micro-batches x ranks); 0: this batch's own
  int64_t update_sequences = 0;  // rows of the whole update, for terms that are a mean over sequences; 0: this batch's
  double loss_scale = 1.0;       // what backward() will be seeded with: operators that make gradients early apply it
  bool training = false;         // an update's own forward: dropout works
  StepNumbers* numbers = nullptr;  // where the update's numbers are kept for another one; null: they are of this one
  double fraction() const { return total_steps > 0 ? static_cast<double>(step) / static_cast<double>(total_steps) : 0; }
};

struct Term {
  std::string name;  // "kd", "ce", "hidden.3", "projector_ce"
  at::Tensor value;  // 0-dim float32 (float64 for float64 models): unweighted share of the update's mean
  double weight = 1.0;
};

struct Terms {
  std::vector<Term> terms;
  at::Tensor loss;      // sum of weight * value; what backward starts from
  int64_t targets = 0;  // valid targets of this batch
};

}  // namespace limbeck::objective
