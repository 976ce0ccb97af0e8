#include "trainer/objective/class_terms.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"
#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {

namespace {

class ClassTerms : public HeadTermGroup {
 public:
  ClassTerms(const ObjectiveOptions& options, const ModelPair& pair)
      : divergence_(options.divergence),
        pair_(pair),
        clamp_(options.head.clamp),
        smoothing_(options.head.label_smoothing) {
    if (divergence_.dual_space) {
      throw UsageError(
          fmt::format("objective.divergence = dskd {}: the student is a classifier, which has no token "
                      "space to join: set it to forward_kl",
                      options.divergence_where));
    }
    if (!pair.teacher) return;
    const models::Architecture &s = pair.student.model->architecture(), &t = pair.teacher->model->architecture();
    const bool classifies = is_classifier(*pair.teacher);
    if (classifies && s.labels == t.labels) return;
    throw UsageError(
        fmt::format("teacher.model {}: {}, wanted a classifier of {} classes like student.model: set "
                    "another teacher.model, or objective.alpha = 0",
                    options.teacher_where,
                    classifies ? fmt::format("it has {} classes", t.labels) : "it is no classifier", s.labels));
  }

  void add_terms(const ForwardPass& pass, const TermWeights& weights, TermSum& sum) const override {
    const double kd = pass.has_teacher ? weight_in(pass, weights, TermKind::kKd) : 0;
    const double ce = weight_in(pass, weights, TermKind::kCe);
    if (kd == 0 && ce == 0) return;
    const at::Tensor zs = logits(pair_.student, pass.student.last, pass.wide, pass.draws);
    if (kd > 0) {
      const double t = weights.temperature(pass.progress.fraction());
      const auto softened = [&](const at::Tensor& z) {
        if (!divergence_.tempered) return z;
        return clamp_ > 0 ? (z / t).clamp(-clamp_, clamp_) : z / t;
      };
      const at::Tensor zt = logits(*pair_.teacher, pass.teacher.last, pass.wide);
      at::Tensor rows = divergence_.rows(softened(zs), softened(zt));
      if (divergence_.never_negative) rows = rows + (rows.detach().clamp_min(0) - rows.detach());
      const double factor = divergence_.tempered ? t * t : 1.0;
      const at::Tensor share =
          pass.number([factor](const Progress& p, const data::Batch& b) { return factor / sequences_of(p, b); });
      sum.add("kd", rows.sum() * share, kd);
    }
    if (ce > 0) sum.add("ce", cross_entropy(zs, pass.batch->classes) / pass.sequences(), ce);
  }

  void measure(const ForwardPass& pass, Measures& m) const override {
    const at::NoGradGuard no_gradient;
    const at::Tensor& classes = pass.batch->classes;
    const at::Tensor zs = logits(pair_.student, pass.student.last, pass.wide), mine = zs.argmax(-1);
    const at::Tensor labelled = labelled_rows(classes, mine);
    m.labelled += labelled.sum().item<int64_t>();
    if (classes.defined()) {
      m.student_right += mine.eq(classes).sum().item<int64_t>();
      count_classes(classes.masked_select(labelled), mine.masked_select(labelled), zs.size(-1), m.classes);
      m.student_cross_entropy +=
          at::nll_loss(at::log_softmax(zs, -1), classes, {}, at::Reduction::Sum, models::kIgnoredLabel).item<double>();
    }
    if (!pass.has_teacher) return;
    const at::Tensor zt = logits(*pair_.teacher, pass.teacher.last, pass.wide), theirs = zt.argmax(-1);
    if (classes.defined()) m.teacher_right += theirs.eq(classes).sum().item<int64_t>();
    m.class_agreements += mine.eq(theirs).sum().item<int64_t>();
    m.kl += rows::forward_kl(zs, zt).clamp_min(0).sum().item<double>();
    m.compared += mine.numel();
  }

 private:
  static at::Tensor logits(const models::BuiltModel& model, const at::Tensor& last, at::ScalarType wide,
                           const models::Draws& draws = {}) {
    return widened(model.model->head(last, draws), wide, "objective.classes (" + model.model->path() + " logits)");
  }

  static at::Tensor labelled_rows(const at::Tensor& classes, const at::Tensor& like) {
    return classes.defined() ? classes.ne(models::kIgnoredLabel) : at::zeros_like(like, at::kBool);
  }

  static void count_classes(const at::Tensor& gold, const at::Tensor& predicted, int64_t labels,
                            std::vector<ClassCounts>& counts) {
    counts.resize(static_cast<size_t>(labels));
    const auto add = [&](const at::Tensor& of, int64_t ClassCounts::*member) {
      const at::Tensor found = precision::move(at::bincount(of, {}, labels), c10::kCPU);
      for (size_t i = 0; i < counts.size(); ++i) counts[i].*member += found.const_data_ptr<int64_t>()[i];
    };
    add(gold, &ClassCounts::gold), add(predicted, &ClassCounts::predicted);
    add(gold.masked_select(gold.eq(predicted)), &ClassCounts::right);
  }

  at::Tensor cross_entropy(const at::Tensor& zs, const at::Tensor& classes) const {
    if (!classes.defined()) {
      throw InputDataError(
          "the student is a classifier, but the batch has no classes: prepare data with labels, or set objective.alpha "
          "= 1");
    }
    const at::Tensor log_p = at::log_softmax(zs, -1);
    const at::Tensor gold = log_p.gather(-1, classes.clamp_min(0).unsqueeze(-1)).squeeze(-1);
    const at::Tensor rows = smoothing_ == 0.0 ? -gold : -(gold * (1.0 - smoothing_) + log_p.mean(-1) * smoothing_);
    return rows.masked_fill(classes.eq(models::kIgnoredLabel), 0).sum();
  }

  Divergence divergence_;
  const ModelPair& pair_;
  double clamp_, smoothing_;
};

}  // namespace

std::unique_ptr<HeadTermGroup> class_terms(const ObjectiveOptions& options, const ModelPair& pair) {
  return std::make_unique<ClassTerms>(options, pair);
}

}  // namespace limbeck::objective
