#include "trainer/evaluate/evaluator.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "trainer/objective/measures.h"
#include "trainer/parallel/sums/named_sums.h"

namespace limbeck::evaluate {

namespace {

constexpr int kBatchesAhead = 2;

// Sums over batches and ranks, by these names; a term's own name cannot begin so.
const std::string kMeasure = "measure.", kTerm = "term.", kClass = "class.";

void add_classes(const std::vector<objective::ClassCounts>& classes, parallel::NamedSums& sums) {
  for (size_t i = 0; i < classes.size(); ++i) {
    const auto add = [&](const char* name, int64_t count) {
      if (count > 0) sums.add(kClass + std::to_string(i) + name, static_cast<double>(count));
    };
    add(".gold", classes[i].gold), add(".predicted", classes[i].predicted), add(".right", classes[i].right);
  }
}

// The mean over classes of 2 right / (gold + predicted), over those that either has: as scikit-learn's macro average.
std::optional<double> macro_f1(const parallel::NamedSums& sums) {
  std::set<std::string> classes;
  for (const std::string& name : sums.names()) {
    if (name.starts_with(kClass)) classes.insert(name.substr(0, name.rfind('.')));
  }
  double sum = 0;
  for (const std::string& one : classes) {
    sum += 2 * sums.value(one + ".right") / (sums.value(one + ".gold") + sums.value(one + ".predicted"));
  }
  return classes.empty() ? std::nullopt : std::optional(sum / static_cast<double>(classes.size()));
}

void add_measures(const objective::Measures& m, parallel::NamedSums& sums) {
  const auto add = [&](const char* name, auto value) { sums.add(kMeasure + name, static_cast<double>(value)); };
  add("student_cross_entropy", m.student_cross_entropy), add("targets", m.targets);
  add("teacher_cross_entropy", m.teacher_cross_entropy), add("teacher_targets", m.teacher_targets);
  add("kl", m.kl), add("top5_overlap", m.top5_overlap), add("compared", m.compared);
  add("top1_agreements", m.top1_agreements), add("labelled", m.labelled), add("student_right", m.student_right);
  add("teacher_right", m.teacher_right), add("class_agreements", m.class_agreements);
  add("hidden", m.hidden), add("student_filled", m.student_filled), add("teacher_filled", m.teacher_filled);
  add("cosine", m.cosine), add("pooled", m.pooled);
  add_classes(m.classes, sums);
}

void put_measures(const parallel::NamedSums& sums, std::vector<std::pair<std::string, double>>& values) {
  const auto of = [&](const char* name) { return sums.value(kMeasure + name); };
  const auto mean = [&](const char* name, const char* sum, const char* count) {
    if (of(count) > 0) values.emplace_back(name, of(sum) / of(count));
  };
  if (of("targets") > 0) values.emplace_back("perplexity", std::exp(of("student_cross_entropy") / of("targets")));
  if (of("teacher_targets") > 0) {
    values.emplace_back("teacher_perplexity", std::exp(of("teacher_cross_entropy") / of("teacher_targets")));
  }
  mean("kl", "kl", "compared");
  mean("top1_agreement", "top1_agreements", "compared");
  mean("top5_overlap", "top5_overlap", "compared");
  mean("accuracy", "student_right", "labelled");
  if (const auto f1 = macro_f1(sums)) values.emplace_back("macro_f1", *f1);
  if (of("teacher_right") > 0 || of("class_agreements") > 0) {
    mean("teacher_accuracy", "teacher_right", "labelled");
    mean("class_agreement", "class_agreements", "labelled");
  }
  mean("accuracy", "student_filled", "hidden");
  if (of("teacher_filled") > 0) mean("teacher_accuracy", "teacher_filled", "hidden");
  mean("cosine", "cosine", "pooled");
}

}  // namespace

const double* Evaluation::find(const std::string& name) const {
  for (const auto& [key, value] : values) {
    if (key == name) return &value;
  }
  return nullptr;
}

Evaluation evaluate(const objective::Distillation& objective, const data::DataSource& source, data::BatchSpan span,
                    objective::Progress progress, parallel::Communicator& ranks,
                    const std::function<void(int64_t, int64_t)>& tick) {
  const at::NoGradGuard no_gradient;
  progress.update_targets = progress.update_sequences = 0;  // every batch is its own update here
  progress.loss_scale = 1;
  const int64_t count = span.count;
  const int64_t rounds = (count + ranks.size() - 1) / ranks.size();
  parallel::NamedSums sums;
  // Dealt in turn. Every rank makes as many forwards as the others, because they fetch weights together: who has no
  // batch left in the last round runs the last one once more, and forgets it.
  const auto index_of = [&](int64_t round) { return round * ranks.size() + ranks.rank(); };
  data::Prefetcher prefetched(
      [&](int64_t round) { return source.batch(span.first + std::min(index_of(round), count - 1)); }, 0, rounds,
      kBatchesAhead, objective.device());
  for (int64_t round = 0; round < rounds; ++round) {
    const data::Batch batch = prefetched.next();
    objective::Measures measures;
    const objective::Terms found = objective.forward(batch, progress, &measures);
    if (index_of(round) >= count) continue;
    const double weight = static_cast<double>(std::max<int64_t>(found.targets, 1));
    sums.add("weight", weight);
    sums.add("targets", static_cast<double>(found.targets));
    sums.add(kTerm + "loss", found.loss.item<double>() * weight);
    for (const objective::Term& term : found.terms) sums.add(kTerm + term.name, term.value.item<double>() * weight);
    add_measures(measures, sums);
    if (tick) tick(std::min((round + 1) * ranks.size(), count), count);
  }
  sums.all_reduce(ranks);
  Evaluation evaluation;
  evaluation.targets = static_cast<int64_t>(sums.value("targets"));
  for (const std::string& name : sums.names()) {
    if (!name.starts_with(kTerm)) continue;
    evaluation.values.emplace_back(name.substr(kTerm.size()), sums.value(name) / sums.value("weight"));
  }
  put_measures(sums, evaluation.values);
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
