#include "trainer/sweep/selection.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace limbeck::sweep {

namespace {

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

bool goes_before(const MeasuredCandidate& one, const MeasuredCandidate& other) {
  if (one.status != other.status) return one.status < other.status;
  if (one.score != other.score) return one.score > other.score;
  return one.kl < other.kl;
}

bool beats(const MeasuredCandidate& one, const MeasuredCandidate& other, SavedBy by) {
  const double saved = saved_by(one, by), others = saved_by(other, by);
  return saved >= others && one.kl <= other.kl && (saved > others || one.kl < other.kl);
}

}  // namespace

double saved_by(const MeasuredCandidate& one, SavedBy by) {
  if (by == SavedBy::kBytes)
    return static_cast<double>(one.cost.bytes_before - one.cost.bytes) / static_cast<double>(1 << 20);
  if (!one.cost.seconds || !one.cost.seconds_before) return 0;
  return 1000 * (*one.cost.seconds_before - *one.cost.seconds);
}

void select(std::vector<MeasuredCandidate>& candidates, const SelectionRequest& request) {
  std::vector<double> saved;
  for (MeasuredCandidate& one : candidates) {
    one.score = one.is_measured() ? saved_by(one, request.by) / (1 + std::abs(one.drop.value)) : 0;
    if (one.is_measured() && !one.candidate.is_block()) saved.push_back(saved_by(one, request.by));
  }
  std::stable_sort(candidates.begin(), candidates.end(), goes_before);
  const double median = median_of(saved);
  std::set<std::string> chosen;
  for (MeasuredCandidate& one : candidates) {
    if (!one.is_measured()) continue;
    one.pareto = std::none_of(candidates.begin(), candidates.end(), [&](const MeasuredCandidate& other) {
      return other.is_measured() && beats(other, one, request.by);
    });
    const double own = saved_by(one, request.by);
    if (one.candidate.is_block() || own < median || own <= 0 || std::abs(one.drop.value) > request.max_drop) continue;
    if (chosen.size() == request.most || chosen.contains(one.candidate.module)) continue;
    chosen.insert(one.candidate.module);
    one.selected = true;
  }
}

std::vector<std::string> rules_of_selected(const std::vector<MeasuredCandidate>& candidates,
                                           const std::vector<Candidate>& in_order) {
  std::set<std::string> selected;
  for (const MeasuredCandidate& one : candidates) {
    if (one.selected) selected.insert(one.candidate.key());
  }
  std::vector<std::string> rules;
  for (const Candidate& candidate : in_order) {
    if (selected.contains(candidate.key())) rules.insert(rules.end(), candidate.rules.begin(), candidate.rules.end());
  }
  return rules;
}

}  // namespace limbeck::sweep
