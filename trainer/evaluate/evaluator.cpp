#include "trainer/evaluate/evaluator.h"

#include <algorithm>
#include <cmath>

#include "trainer/objective/measures.h"

namespace limbeck::evaluate {

namespace {

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

void put(const objective::Measures& m, std::vector<std::pair<std::string, double>>& values) {
  auto mean = [&](const char* name, double sum, int64_t count) {
    if (count > 0) values.emplace_back(name, sum / static_cast<double>(count));
  };
  if (m.targets > 0) {
    values.emplace_back("perplexity", std::exp(m.student_cross_entropy / static_cast<double>(m.targets)));
  }
  if (m.teacher_targets > 0) {
    values.emplace_back("teacher_perplexity",
                        std::exp(m.teacher_cross_entropy / static_cast<double>(m.teacher_targets)));
  }
  mean("kl", m.kl, m.compared);
  mean("top1_agreement", static_cast<double>(m.top1_agreements), m.compared);
  mean("top5_overlap", m.top5_overlap, m.compared);
  mean("accuracy", static_cast<double>(m.student_right), m.labelled);
  if (m.teacher_right > 0 || m.class_agreements > 0) {
    mean("teacher_accuracy", static_cast<double>(m.teacher_right), m.labelled);
    mean("class_agreement", static_cast<double>(m.class_agreements), m.labelled);
  }
  mean("cosine", m.cosine, m.pooled);
}

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
  Evaluation evaluation;
  Means terms;
  objective::Measures measures;
  data::Prefetcher prefetched(source, 0, count, kBatchesAhead);
  for (int64_t i = 0; i < count; ++i) {
    const data::Batch batch = prefetched.next();
    const objective::Terms found = objective.forward(batch, progress, &measures);
    const double weight = static_cast<double>(std::max<int64_t>(found.targets, 1));
    terms.add("loss", found.loss.item<double>(), weight);
    for (const objective::Term& term : found.terms) terms.add(term.name, term.value.item<double>(), weight);
    evaluation.targets += found.targets;
    if (tick) tick(i + 1, count);
  }
  terms.put_into(evaluation.values);
  put(measures, evaluation.values);
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
