#include "trainer/sweep/sweep_result.h"

namespace limbeck::sweep {

bool SweepResult::is_safe(const Drop& drop) const { return rows >= kLeastRowsOfSafe && drop.high <= max_drop; }

void judge(WholeModel& model, const BatchOutcome& outcome, const PairedRows& pairs, Kind kind) {
  model.status = outcome.status;
  model.reason = outcome.reason;
  if (outcome.status != Status::kMeasured) return;
  model.quality = quality_of(kind, outcome.rows);
  model.drop = pairs.drop(outcome.rows);
  model.kl = mean_kl(outcome.rows);
  model.kl_interval = pairs.kl_interval(outcome.rows);
}

MeasuredCandidate judged(const Candidate& candidate, const SweepFile& file, data::BatchSpan choosing,
                         const PairedRows& pairs, Kind kind) {
  BatchOutcome outcome = whole_outcome(file, candidate.key(), choosing);
  MeasuredCandidate one{candidate, outcome.status, outcome.reason, std::move(outcome.rows)};
  if (const Cost* cost = file.cost(candidate.key())) one.cost = *cost;
  if (!one.is_measured()) return one;
  one.quality = quality_of(kind, one.rows);
  one.drop = pairs.drop(one.rows);
  one.kl = mean_kl(one.rows);
  one.kl_interval = pairs.kl_interval(one.rows);
  one.logit_error = logit_error(one.rows);
  return one;
}

std::vector<MeasuredCandidate> judged(const std::vector<Candidate>& candidates, const SweepFile& file,
                                      data::BatchSpan choosing, const PairedRows& pairs, Kind kind) {
  std::vector<MeasuredCandidate> all;
  for (const Candidate& candidate : candidates) all.push_back(judged(candidate, file, choosing, pairs, kind));
  return all;
}

}  // namespace limbeck::sweep
