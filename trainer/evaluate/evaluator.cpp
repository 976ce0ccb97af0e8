#include "trainer/evaluate/evaluator.h"

#include <algorithm>
#include <cmath>

#include "trainer/evaluate/agreement.h"

namespace limbeck::evaluate {

namespace {

using models::HeadKind;

constexpr int kBatchesAhead = 2;

// Weighted means of named values over batches.
class Means {
 public:
  void add(const std::string& name, double value, double weight) {
    for (auto& entry : sums_) {
      if (entry.name != name) continue;
      entry.sum += value * weight;
      entry.weight += weight;
      return;
    }
    sums_.push_back({name, value * weight, weight});
  }
  void put_into(std::vector<std::pair<std::string, double>>& values) const {
    for (const auto& entry : sums_) values.emplace_back(entry.name, entry.weight > 0 ? entry.sum / entry.weight : 0.0);
  }

 private:
  struct Entry {
    std::string name;
    double sum, weight;
  };
  std::vector<Entry> sums_;
};

// What is asked of a student besides its loss, summed over batches; which questions make sense depends on its head.
class Comparison {
 public:
  Comparison(const objective::Distillation& objective, int64_t vocabulary)
      : student_(*objective.student().model),
        teacher_(objective.teacher() ? objective.teacher()->model.get() : nullptr),
        vocabulary_(vocabulary) {}

  void add(const data::Batch& batch) {
    const double rows = static_cast<double>(batch.student.ids.size(0));
    switch (student_.architecture().head) {
      case HeadKind::kLanguageModel:
        agreement_ += compare(language_teacher(), student_, batch, vocabulary_);
        return;
      case HeadKind::kBertClassifier:
      case HeadKind::kDistilBertClassifier:
        if (!batch.classes.defined()) return;
        means_.add("accuracy", correct_classes(student_, batch) / rows, rows);
        if (teacher_ != nullptr && teacher_->architecture().labels == student_.architecture().labels) {
          means_.add("teacher_accuracy", correct_classes(*teacher_, batch) / rows, rows);
        }
        return;
      case HeadKind::kNone:
        if (teacher_ == nullptr || teacher_->architecture().hidden != student_.architecture().hidden) return;
        means_.add("cosine", pooled_cosine(*teacher_, student_, batch) / rows, rows);
        return;
    }
  }

  void put_into(Evaluation& evaluation) const {
    means_.put_into(evaluation.values);
    const auto n = static_cast<double>(agreement_.targets);
    if (n == 0) return;
    auto& values = evaluation.values;
    values.emplace_back("perplexity", std::exp(agreement_.student_loss / n));
    if (!agreement_.has_teacher) return;
    values.emplace_back("teacher_perplexity", std::exp(agreement_.teacher_loss / n));
    values.emplace_back("kl", agreement_.kl / n);
    values.emplace_back("top1_agreement", agreement_.top1 / n);
    values.emplace_back("top5_overlap", agreement_.top5 / n);
  }

 private:
  const models::Transformer* language_teacher() const {
    return teacher_ != nullptr && teacher_->architecture().head == HeadKind::kLanguageModel ? teacher_ : nullptr;
  }

  const models::Transformer& student_;
  const models::Transformer* teacher_;
  int64_t vocabulary_;
  Agreement agreement_;
  Means means_;
};

}  // namespace

const double* Evaluation::find(const std::string& name) const {
  for (const auto& [key, value] : values) {
    if (key == name) return &value;
  }
  return nullptr;
}

Evaluation evaluate(const objective::Distillation& objective, const data::DataSource& source, int64_t batches,
                    objective::Progress progress, const std::function<void(int64_t, int64_t)>& tick) {
  const at::NoGradGuard no_gradient;
  progress.update_targets = progress.update_sequences = 0;  // every batch is its own update here
  progress.loss_scale = 1;
  const int64_t all = source.batches_per_epoch(), count = batches > 0 ? std::min(batches, all) : all;
  const int64_t vocabulary = source.manifest().vocabulary;
  Evaluation evaluation;
  Means terms;
  Comparison comparison(objective, vocabulary);
  data::Prefetcher prefetched(source, 0, count, kBatchesAhead);
  for (int64_t i = 0; i < count; ++i) {
    const data::Batch batch = prefetched.next();
    const objective::Terms found = objective.forward(batch, progress);
    const double weight = static_cast<double>(std::max<int64_t>(found.targets, 1));
    terms.add("loss", found.loss.item<double>(), weight);
    for (const objective::Term& term : found.terms) terms.add(term.name, term.value.item<double>(), weight);
    evaluation.targets += found.targets;
    comparison.add(batch);
    if (tick) tick(i + 1, count);
  }
  terms.put_into(evaluation.values);
  comparison.put_into(evaluation);
  evaluation.values.emplace_back("targets", static_cast<double>(evaluation.targets));
  return evaluation;
}

std::pair<std::string, double> judged_by(const Evaluation& evaluation, const std::string& metric) {
  if (metric == "auto") {
    for (const char* name : {"perplexity", "accuracy", "cosine"}) {
      if (const double* value = evaluation.find(name)) return {name, *value};
    }
  }
  const double* loss = evaluation.find("loss");
  return {"loss", loss ? *loss : std::nan("")};
}

bool better(const Evaluation& now, const Evaluation& best, const std::string& metric) {
  const auto [name, value] = judged_by(now, metric);
  const double before = judged_by(best, metric).second;
  if (!std::isfinite(value)) return false;
  const bool more_is_better = name == "accuracy" || name == "cosine";
  return !std::isfinite(before) || (more_is_better ? value > before : value < before);
}

}  // namespace limbeck::evaluate
