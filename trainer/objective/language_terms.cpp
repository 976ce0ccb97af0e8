#include "trainer/objective/language_terms.h"

#include <fmt/format.h>

#include "modules/models/network/token_loss.h"
#include "modules/projectors/logit_projector.h"
#include "trainer/objective/dual_space.h"
#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {

HeadSide head_side(const models::BuiltModel& model, const at::Tensor& last_btd, int64_t vocabulary,
                   const std::string& place, bool learns, const models::Draws& draws) {
  const models::ProductOperands product = model.model->head_operands(last_btd.flatten(0, 1), learns, draws);
  return {.hidden_nd = product.x,
          .weight_vd = product.weight,
          .softcap = model.model->architecture().logit_softcap,
          .vocabulary = vocabulary,
          .place = place};
}

namespace {

class HeadedTerms : public HeadTermGroup {
 public:
  HeadedTerms(const ObjectiveOptions& options, const ModelPair& pair, const Vocabulary& vocabulary,
              const VocabularyRanks& divided, Projectors& all)
      : divergence_(options.divergence),
        options_(options.head),
        pair_(pair),
        vocabulary_(vocabulary),
        divided_(divided) {
    if (!pair.teacher) return;
    if (divergence_.dual_space) {
      dual_ = std::make_unique<DualSpace>(pair, all);
    } else if (options_.logit_projector) {
      logit_ = all.keep(std::make_shared<projectors::LogitProjector>(
          all.scope("projector.logit", Projectors::Side::kTeacher), *pair.teacher->model, *pair.student.model,
          *pair.teacher->policy, *pair.student.policy));
    }
  }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    const double kd = pass.has_teacher ? weight_in(pass, weights, TermKind::kKd) : 0;
    const double ce = weight_in(pass, weights, TermKind::kCe);
    DualStates dual;
    HeadSide teacher;  // what the student is compared with
    const bool compares = kd > 0;
    if (dual_ && compares) {
      dual = dual_->forward(pass);
      teacher = in_student_space(dual.teacher_in_student.detach(), "objective.kd (teacher in the student's space)");
    } else if (pass.has_teacher) {
      teacher = compared_teacher(pass);
    }
    if (compares || ce > 0) add_student_terms(pass, weights, compares ? &teacher : nullptr, kd, ce, sum);
    if (dual_ && compares) add_dual_terms(pass, weights, dual, kd, sum);
    const double projector = weight_in(pass, weights, TermKind::kProjectorCe);
    if (logit_ && pass.has_teacher && options_.projector_learns_labels && projector > 0)
      add_gold_term(pass, "projector_ce", teacher, pass.compared_n, projector, sum);
  }

  void measure(const ForwardPass& pass, Measures& m) const override {
    const at::NoGradGuard no_gradient;
    // What a masked language model sees needs no prediction.
    if (!pass.causal && !pass.batch->student.masked) return;
    const auto cross_entropy = [&](const HeadSide& side, const at::Tensor& labels, const at::Tensor& wanted) {
      HeadRequest request{.student = side, .labels_n = labels};
      request.ce_weight_n = pass.weights(wanted, 1.0);
      request.divergence_weight_n = at::zeros_like(request.ce_weight_n);
      return head_terms(request).loss.item<double>();
    };
    const HeadSide student = student_side(pass, "evaluation (student head)");
    m.student_cross_entropy += cross_entropy(student, pass.labels_n, pass.target_n);
    m.targets += pass.target_n.sum().item<int64_t>();
    const auto filled = [&](const HeadSide& side) {
      return right_predictions(side, pass.labels_n, pass.target_n).sum().item<int64_t>();
    };
    const bool fills = pass.batch->student.masked;
    if (fills) m.hidden += pass.target_n.sum().item<int64_t>(), m.student_filled += filled(student);
    if (!pass.has_teacher || pair_.teacher->model->architecture().head != models::HeadKind::kLanguageModel) return;
    const bool two = pass.batch->teacher.has_value();
    const at::Tensor labels = two ? predicted_labels(*pass.batch->teacher) : pass.labels_n;
    const at::Tensor wanted = labels.ne(models::kIgnoredLabel);
    const HeadSide own = head_side(*pair_.teacher, pass.teacher.last, vocabulary_.teacher, "evaluation (teacher head)");
    m.teacher_cross_entropy += cross_entropy(own, labels, wanted);
    if (fills) m.teacher_filled += filled(own);
    m.teacher_targets += wanted.sum().item<int64_t>();
    const HeadSide teacher =
        dual_ ? in_student_space(dual_->forward(pass).teacher_in_student, "evaluation (teacher in the student's space)")
              : compared_teacher(pass);
    if (real_rows(student) != real_rows(teacher)) return;  // two vocabularies: no id means the same in both
    const HeadComparison found = compare_heads(student, teacher, pass.compared_n);
    m.kl += found.kl;
    m.top1_agreements += found.top1_agreements;
    m.top5_overlap += found.top5_overlap;
    m.compared += pass.compared_n.sum().item<int64_t>();
  }

 private:
  HeadSide student_side(const ForwardPass& pass, const std::string& place) const {
    return head_side(pair_.student, pass.student.last, vocabulary_.student, place, /*learns=*/true, pass.draws);
  }

  // States of the student's width read by the student's own head, which learns nothing from them.
  HeadSide in_student_space(const at::Tensor& states_btd, const std::string& place) const {
    return head_side(pair_.student, states_btd, vocabulary_.student, place, /*learns=*/false);
  }

  HeadSide compared_teacher(const ForwardPass& pass) const {
    const at::Tensor last = pass.align(pass.teacher.last, "objective.kd (alignment)");
    if (logit_) return in_student_space(logit_->forward(last), "objective.kd (projected teacher)");
    return head_side(*pair_.teacher, last, vocabulary_.teacher, "objective.kd (teacher head)");
  }

  void add_student_terms(const ForwardPass& pass, const TermWeights& weights, const HeadSide* teacher, double kd,
                         double ce, TermSum& sum) const {
    at::Tensor compared = dual_ ? pass.target_n : pass.compared_n;
    if (teacher != nullptr && dual_ && options_.only_right)
      compared = right_predictions(*teacher, pass.labels_n, compared);
    HeadRequest request{.student = student_side(pass, "objective.kd (student head)")};
    if (teacher != nullptr) {
      request.teacher = *teacher;
      request.divergence = &divergence_;
      request.teacher_learns = logit_ && !options_.projector_learns_labels;
      if (!request.teacher_learns) request.teacher->hidden_nd = teacher->hidden_nd.detach();
    }
    if (ce > 0) request.labels_n = pass.labels_n;
    request.divergence_weight_n = pass.shares_of_targets(compared, teacher != nullptr ? kd : 0.0);
    request.ce_weight_n = pass.shares_of_targets(pass.target_n, ce);
    request.temperature = weights.temperature(pass.progress.fraction());
    request.clamp = options_.clamp;
    request.label_smoothing = options_.label_smoothing;
    request.gradient_scale = pass.progress.loss_scale;
    const kernels::HeadLoss head =
        divided_.line != nullptr ? vocabulary_parallel_terms(request, divided_) : head_terms(request);
    sum.add_loss(head.loss);
    if (teacher != nullptr) sum.log("kd", head.divergence_n.sum() / pass.targets, kd);
    if (ce > 0) sum.log("ce", head.cross_entropy_n.sum() / pass.targets, ce);
  }

  // Cross-entropy of projected teacher states through the student's head, which stays as it is.
  void add_gold_term(const ForwardPass& pass, const std::string& name, const HeadSide& side, const at::Tensor& mask_n,
                     double weight, TermSum& sum) const {
    HeadRequest request{.student = side, .labels_n = pass.labels_n};
    request.student.place = "objective." + name;
    request.ce_weight_n = pass.shares_of_targets(mask_n, weight);
    request.divergence_weight_n = at::zeros_like(request.ce_weight_n);
    request.gradient_scale = pass.progress.loss_scale;
    const kernels::HeadLoss head = head_terms(request);
    sum.add_loss(head.loss);
    sum.log(name, head.cross_entropy_n.sum() / pass.targets, weight);
  }

  void add_dual_terms(const ForwardPass& pass, const TermWeights& weights, const DualStates& dual, double kd,
                      TermSum& sum) const {
    add_gold_term(pass, "t2s_ce", in_student_space(dual.teacher_in_student, ""), pass.target_n, kd, sum);
    const at::Tensor mask =
        pass.batch->teacher ? predicted_labels(*pass.batch->teacher).ne(models::kIgnoredLabel) : pass.target_n;
    HeadRequest request{.student = head_side(*pair_.teacher, dual.student_in_teacher, vocabulary_.teacher,
                                             "objective.s2t_kd (student in the teacher's space)")};
    request.teacher = head_side(*pair_.teacher, pass.teacher.last, vocabulary_.teacher, "objective.s2t_kd (teacher)");
    request.divergence = &divergence_;
    request.divergence_weight_n = pass.shares_of_targets(mask, kd);
    request.ce_weight_n = at::zeros_like(request.divergence_weight_n);
    request.temperature = weights.temperature(pass.progress.fraction());
    request.clamp = options_.clamp;
    request.gradient_scale = pass.progress.loss_scale;
    const kernels::HeadLoss head = head_terms(request);
    sum.add_loss(head.loss);
    sum.log("s2t_kd", head.divergence_n.sum() / pass.targets, kd);
  }

  Divergence divergence_;
  HeadOptions options_;
  const ModelPair& pair_;
  Vocabulary vocabulary_;
  const VocabularyRanks& divided_;
  std::shared_ptr<projectors::LogitProjector> logit_;
  std::unique_ptr<DualSpace> dual_;
};

}  // namespace

std::unique_ptr<HeadTermGroup> language_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                              const Vocabulary& vocabulary, const VocabularyRanks& divided,
                                              Projectors& projectors) {
  return std::make_unique<HeadedTerms>(options, pair, vocabulary, divided, projectors);
}

}  // namespace limbeck::objective
