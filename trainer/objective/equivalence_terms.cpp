#include "trainer/objective/equivalence_terms.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {
namespace {

using Distance = EquivalenceOptions::Distance;

// Keeps a state of zeros from dividing; far below any real one's.
constexpr double kSmallest = 1e-12;

at::Tensor unit_rms(const at::Tensor& x_btd) {
  return x_btd * x_btd.square().mean(-1, /*keepdim=*/true).clamp_min(kSmallest).rsqrt();
}

// Of each token, [B, T].
at::Tensor distances(const at::Tensor& student_btd, const at::Tensor& teacher_btd, Distance kind) {
  if (kind == Distance::kNormalised) return (unit_rms(student_btd) - unit_rms(teacher_btd)).square().mean(-1);
  const at::Tensor direct = (student_btd - teacher_btd).square().mean(-1);
  return kind == Distance::kDirect ? direct : direct / teacher_btd.abs().mean(-1).clamp_min(kSmallest);
}

class EquivalenceTerms : public TermGroup {
 public:
  explicit EquivalenceTerms(const EquivalenceOptions& options)
      : distance_(options.distance), guided_(options.guided), regularization_(options.regularization) {}

  void ask(PassRequest& request) const override {
    request.hidden = true;
    request.adapted = request.adapted || regularization_ > 0;
    request.guided = request.guided || guided_;
  }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    const double weight = weight_in(pass, weights, TermKind::kEquivalence);
    if (weight == 0) return;
    at::Tensor total;
    const auto add = [&](const at::Tensor& rows_bt) {
      const at::Tensor one = (rows_bt.flatten() * pass.token_weight_n).sum();
      total = total.defined() ? total + one : one;
    };
    // hidden[0] is the embedding, which no adapter changes; the last is after the final norm, on both sides.
    const size_t layers = pass.student.hidden.size() - 1;
    for (size_t i = 1; i <= layers; ++i) {
      const std::string place = fmt::format("objective.equivalence.{}", i);
      add(distances(widened(pass.student.hidden[i], pass.wide, place + " (student)"),
                    widened(pass.teacher.hidden[i], pass.wide, place + " (teacher)"), distance_));
    }
    sum.add("equivalence", total / static_cast<double>(layers), weight);
    if (regularization_ == 0 || pass.student_taps.adapted.empty()) return;
    total = at::Tensor();
    for (const models::Taps::Adapted& layer : pass.student_taps.adapted) {
      for (const auto& [name, penalty_bt] : layer.penalties) add(penalty_bt);
    }
    const double adapted = static_cast<double>(pass.student_taps.adapted.size());
    if (total.defined()) sum.add("regularization", total / adapted, weight * regularization_);
  }

 private:
  Distance distance_;
  bool guided_;
  double regularization_;
};

}  // namespace

std::unique_ptr<TermGroup> equivalence_terms(const ObjectiveOptions& options, const ModelPair& pair) {
  if (options.weights.full(TermKind::kEquivalence) == 0) return nullptr;
  const std::string& where = options.equivalence.weight_where;
  if (!pair.adapter) {
    throw UsageError(
        fmt::format("objective.equivalence_weight {} trains an adapter to leave its base as it is, and the student has "
                    "none: set adapter.kind, or the weight to 0",
                    where));
  }
  const models::Architecture &s = pair.student.model->architecture(), &t = pair.teacher->model->architecture();
  if (s.layers != t.layers || s.hidden != t.hidden) {
    throw UsageError(fmt::format(
        "objective.equivalence_weight {} compares layer by layer: the student has {} layers of width {}, the "
        "teacher {} of {}: set teacher.kind = self, and no teacher.model",
        where, s.layers, s.hidden, t.layers, t.hidden));
  }
  return std::make_unique<EquivalenceTerms>(options.equivalence);
}

}  // namespace limbeck::objective
