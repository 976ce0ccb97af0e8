// All that a sweep found, from its file and from nothing else but the clock: the same lines give the same bits.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "trainer/sweep/candidate_meter.h"
#include "trainer/sweep/selection.h"

namespace limbeck::sweep {

struct Baseline {
  double quality = 0;
  double seconds = 0;  // of one full evaluation
  int64_t bytes = 0;
};

// The rows that decide: candidates are measured on them, and what is selected follows from that. What is selected looks
// better there than it is.
struct ChoosingRows {
  bool are_others = true;  // than those that measure
  int64_t rows = 0, targets = 0;
  double quality = 0;  // of the floats
  double seconds = 0;  // of one full evaluation
};

struct WholeModel {
  std::string format;
  Status status = Status::kMeasured;
  std::string reason = {};
  double quality = 0;
  Drop drop = {};
  double kl = 0;
  quantize::Interval kl_interval = {};
  int64_t bytes = 0;
  double seconds = 0;  // of its evaluation; 0: it was measured before
};

struct Combined {
  WholeModel model;
  std::vector<std::string> rules;
  Drop predicted;  // what the drops of its candidates add up to, on the choosing rows
  std::optional<Drop> on_choosing_rows;
};

struct SweepResult {
  Kind kind = Kind::kClassifier;
  int64_t rows = 0, targets = 0;  // that measure whole models
  nlohmann::ordered_json measured_on;
  Baseline baseline;
  ChoosingRows choosing;
  std::vector<WholeModel> whole_models;
  std::vector<MeasuredCandidate> candidates;  // ranked
  std::optional<Combined> combined;           // none: nothing was selected
  double max_drop = 0;
  const char* test = "";
  double seconds = 0;  // of the candidates
  // Of as many full evaluations of the choosing rows, and of all rows; none: some were measured before.
  struct Share {
    double of_chosen = 0, of_all = 0;
  };
  std::optional<Share> share, processor_share;  // by the clock; in the time of threads, of work on the CPU

  // How many points of quality the rows cannot exclude that a model loses; more than the bound is not called safe.
  bool is_safe(const Drop& drop) const;
};

// Too few rows say nothing of a mean, whatever their interval.
inline constexpr int64_t kLeastRowsOfSafe = 8;

// Fills quality, drop and distance of a model from the rows that the file holds under its key.
void judge(WholeModel& model, const BatchOutcome& outcome, const PairedRows& pairs, Kind kind);
// The candidates as measured, not yet ranked.
std::vector<MeasuredCandidate> judged(const std::vector<Candidate>& candidates, const SweepFile& file,
                                      data::BatchSpan choosing, const PairedRows& pairs, Kind kind);
MeasuredCandidate judged(const Candidate& candidate, const SweepFile& file, data::BatchSpan choosing,
                         const PairedRows& pairs, Kind kind);

}  // namespace limbeck::sweep
