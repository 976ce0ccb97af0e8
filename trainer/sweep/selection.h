// Which candidates make the combined model: those that save at least the median and lose no more than a bound, by
// score = saved / (1 + |drop|), and those that none beats in both what is saved and how far predictions move.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "trainer/sweep/candidate.h"
#include "trainer/sweep/sweep_file.h"

namespace limbeck::sweep {

struct MeasuredCandidate {
  Candidate candidate;
  Status status = Status::kMeasured;
  std::string reason = {};
  Rows rows = {};
  double quality = 0;
  Drop drop = {};
  double kl = 0;
  quantize::Interval kl_interval = {};
  double logit_error = 0;
  Cost cost = {};
  double score = 0;
  bool pareto = false, selected = false;

  bool is_measured() const { return status == Status::kMeasured; }
};

// What is saved: MiB of weights, or milliseconds of a batch. A machine without a meter has no other energy.
enum class SavedBy { kBytes, kTime };

struct SelectionRequest {
  SavedBy by = SavedBy::kBytes;
  double max_drop = 1.0;
  size_t most = 20;
};

// 0 where it is not known.
double saved_by(const MeasuredCandidate& one, SavedBy by);

// Fills score, pareto and selected, and orders: by score, then by KL; what overflowed or failed comes last. Layers as a
// whole are not selected, and of a module one format is.
void select(std::vector<MeasuredCandidate>& candidates, const SelectionRequest& request);

// Those of the selected ones, in the order of the model.
std::vector<std::string> rules_of_selected(const std::vector<MeasuredCandidate>& candidates,
                                           const std::vector<Candidate>& in_order);

}  // namespace limbeck::sweep
