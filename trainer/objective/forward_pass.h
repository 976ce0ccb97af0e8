// Both models' states on one batch and which tokens count: what every term computes from. Token weights carry the
// division by the targets of the whole update, so that terms of micro-batches add up.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/data/batch.h"
#include "trainer/objective/head/head_terms.h"
#include "trainer/objective/step_numbers.h"
#include "trainer/objective/terms.h"
#include "trainer/objective/weights.h"

namespace limbeck::objective {

// A masked attention score. Stands for minus infinity; a row without any key becomes uniform instead of NaN, and its
// weight is 0.
inline constexpr double kHidden = -1e30;

// What the terms want kept of a forward beside the last states.
struct PassRequest {
  bool hidden = false, attention = false, router = false;
  bool mixed = false;    // what the token mixers give
  bool adapted = false;  // what adapters say of themselves
  bool guided = false;   // each of the student's layers gets the teacher's state in place of the student's own
};

// Where each student token finds its teacher: states [B, Tt, D] to states at the student's tokens [B, Ts, D].
class TokenAlignment {
 public:
  TokenAlignment() = default;  // one tokenizer: as they are
  // Interpolation goes over the tokens that are no padding; packed rows are refused there.
  TokenAlignment(const data::Batch& batch, bool interpolate);

  at::Tensor operator()(const at::Tensor& teacher_btd, const std::string& place) const;
  const at::Tensor& found_bt() const { return found_; }  // bool: has a teacher token; undefined: all have

 private:
  at::Tensor rows(const at::Tensor& teacher_btd, const at::Tensor& position) const;
  at::Tensor lower_, upper_, upper_share_, found_;
};

struct ForwardPass {
  const data::Batch* batch = nullptr;
  Progress progress;
  at::ScalarType wide = at::kFloat;  // of losses
  bool causal = true;                // a decoder: tokens count where they predict a target
  bool meta = false;
  bool has_teacher = false;
  models::Encoded student, teacher;
  models::Taps student_taps, teacher_taps;
  models::Draws draws;  // of the student, in training
  TokenAlignment align;
  at::Tensor targets;         // wide, 0-dim: what the logged values of terms are divided by
  at::Tensor labels_n;        // [B T]: the token that each position predicts, -100 = none
  at::Tensor target_n;        // bool [B T]: labels_n is set
  at::Tensor compared_n;      // bool [B T]: and there is a teacher token to compare with
  at::Tensor token_weight_n;  // wide [B T]: of per-token terms

  // Zero where the mask is not set, else `value`.
  at::Tensor weights(const at::Tensor& mask_n, double value) const;
  // The same of `value` divided by the targets, or the rows, of the update.
  at::Tensor shares_of_targets(const at::Tensor& mask_n, double value) const;
  at::Tensor shares_of_sequences(const at::Tensor& mask_n, double value) const;
  // A number of this update, where the models are: wide, 0-dim.
  at::Tensor number(const StepNumbers::Formula& formula) const;
  at::Tensor number(const StepNumbers::Formula& formula, at::ScalarType type) const;
  at::Tensor sequences() const;  // of the update
};

// Fills what follows from the batch and the progress; the states are the caller's.
void count_tokens(ForwardPass& pass);
// What a model is given of a stream; taps: null for none.
models::ModelInput model_input(const data::TokenStream& stream, models::Taps* taps);
// bool [B, T]: no padding.
at::Tensor valid_tokens(const data::TokenStream& stream);
// The stream's labels at the positions that predict them, flat [B T]: one to the left, unless tokens are hidden.
at::Tensor predicted_labels(const data::TokenStream& stream);

// Gathers terms and their weighted sum.
class TermSum {
 public:
  // `value` is differentiable; what is kept for the log is not.
  void add(const std::string& name, const at::Tensor& value, double weight);
  // A term that is already part of `add_loss`.
  void log(const std::string& name, const at::Tensor& value, double weight);
  void add_loss(const at::Tensor& weighted);
  Terms finish(int64_t targets, const ForwardPass& pass) &&;

 private:
  Terms terms_;
};

// One kind of term, or a few that share their projectors.
class TermGroup {
 public:
  virtual ~TermGroup() = default;
  virtual void ask(PassRequest& request) const { (void)request; }
  virtual void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const = 0;
};

// The weight of a term in this pass; on meta whatever the curriculum will ever let in takes part, so that `check` sees
// the whole run.
double weight_in(const ForwardPass& pass, const TermWeights& weights, TermKind kind);

}  // namespace limbeck::objective
