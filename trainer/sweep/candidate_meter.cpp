#include "trainer/sweep/candidate_meter.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <limits>
#include <memory>
#include <set>

#include "modules/models/network/experts.h"
#include "trainer/objective/forward_pass.h"
#include "trainer/sweep/row_measure.h"

namespace limbeck::sweep {

namespace {

// Of the time of a module: the shortest of so many runs, or of fewer where they are long and vary less.
constexpr int kTimings = 5, kLeastTimings = 2;
constexpr double kEnoughSeconds = 0.05;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// How many values that a candidate's own modules give are no numbers any more.
class OverflowWatch : public precision::ModuleObserver {
 public:
  explicit OverflowWatch(const std::vector<std::string>& paths) : paths_(paths.begin(), paths.end()) {}
  void output(const precision::ContractModule& module, const at::Tensor& y) override {
    if (!found_.empty() || !paths_.contains(module.path())) return;
    if (std::isfinite(y.sum().item<double>())) return;  // one pass over what is nearly always so
    const int64_t lost = y.numel() - at::isfinite(y).sum().item<int64_t>();
    if (lost > 0)
      found_ = fmt::format("{}: {} of {} values that it gives are not finite", module.path(), lost, y.numel());
  }
  const std::string& found() const { return found_; }

 private:
  std::set<std::string> paths_;
  std::string found_;
};

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string reason_of(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return first_line(of_torch != nullptr ? of_torch->what_without_backtrace() : error.what());
}

// Of a model's rows; "" where all are finite.
std::string rows_without_end(const Rows& rows) {
  const auto lost = std::count_if(rows.begin(), rows.end(), [](const RowMeasure& row) { return !row.is_finite(); });
  return lost == 0 ? "" : fmt::format("logits: {} of {} rows are not finite", lost, rows.size());
}

BatchOutcome outcome_with(Rows rows, const std::string& overflow) {
  const std::string lost = overflow.empty() ? rows_without_end(rows) : overflow;
  if (!lost.empty()) return {Status::kOverflowed, lost, {}};
  return {Status::kMeasured, "", std::move(rows)};
}

// A module by itself, on what it got in floats; empty where that is not known.
std::function<void()> run_of(const precision::ContractModule& module, const KeptInput* in) {
  if (in == nullptr) return {};
  if (const auto* linear = dynamic_cast<const models::Linear*>(&module)) return [=] { linear->forward(in->x); };
  if (const auto* norm = dynamic_cast<const models::Norm*>(&module)) return [=] { norm->forward(in->x); };
  const auto* experts = dynamic_cast<const models::ExpertWeights*>(&module);
  if (experts == nullptr || !in->experts_nk.defined()) return {};
  return [=] { experts->forward(in->x, in->experts_nk, in->weights_nk); };
}

double seconds_of(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return seconds_since(begin);
}

}  // namespace

BatchOutcome whole_outcome(const SweepFile& file, const std::string& key, data::BatchSpan batches) {
  BatchOutcome all;
  for (int64_t batch = batches.first; batch < batches.end(); ++batch) {
    const BatchOutcome* one = file.find(key, batch);
    if (one == nullptr) throw std::logic_error(key + " is not measured on all batches");
    if (one->status != Status::kMeasured) return *one;
    all.rows.insert(all.rows.end(), one->rows.begin(), one->rows.end());
  }
  return all;
}

struct CandidateMeter::Work {
  const Candidate& candidate;
  std::unique_ptr<ConvertedModules> converted = {};  // null: not yet, or it failed
  BatchOutcome ended = {};                           // measured: it goes on
  bool is_ended() const { return ended.status != Status::kMeasured; }
};

CandidateMeter::CandidateMeter(const models::BuiltModel& floats, BatchStates& states, SweepFile& file,
                               data::BatchSpan choosing)
    : floats_(floats),
      states_(states),
      file_(file),
      choosing_(choosing),
      baselines_(static_cast<size_t>(states.count())),
      full_(static_cast<size_t>(states.count())) {}

std::shared_ptr<BatchBaseline> CandidateMeter::baseline_of(int64_t index, const data::Batch& batch,
                                                           const models::ModelInput& input) {
  std::shared_ptr<BatchBaseline>& kept = baselines_.at(static_cast<size_t>(index));
  if (kept) return kept;
  auto made = std::make_shared<BatchBaseline>(floats_, batch, states_.last(index, input));
  if (states_.take(made->bytes())) kept = made;
  return made;
}

void CandidateMeter::measure_floats() {
  const at::NoGradGuard no_gradient;
  for (int64_t index = 0; index < states_.count(); ++index) {
    if (file_.find(kFloats, index) != nullptr) continue;
    const data::Batch batch = states_.batch(index);
    const models::ModelInput input = objective::model_input(batch.student, nullptr);
    file_.add(kFloats, index, outcome_with(baseline_of(index, batch, input)->own(), ""));
  }
}

void CandidateMeter::time_full_evaluation(int64_t index) {
  const WorkClock clock;
  const data::Batch batch = states_.batch(index);
  const models::ModelInput input = objective::model_input(batch.student, nullptr);
  BatchBaseline(floats_, batch, floats_.model->encode(input).last).own();
  full_.at(static_cast<size_t>(index)) = clock.spent();
}

WorkTime CandidateMeter::full_evaluation(data::BatchSpan batches) const {
  WorkTime sum;
  for (int64_t index = batches.first; index < batches.end(); ++index)
    sum += full_.at(static_cast<size_t>(index)).value();
  return sum;
}

bool CandidateMeter::is_done(const Candidate& candidate) const {
  for (int64_t index = choosing_.first; index < choosing_.end(); ++index) {
    const BatchOutcome* found = file_.find(candidate.key(), index);
    if (found == nullptr) return false;
    if (found->status != Status::kMeasured) break;
  }
  return file_.cost(candidate.key()) != nullptr;
}

void CandidateMeter::measure(const std::vector<Candidate>& candidates, const Listener& listener) {
  const at::NoGradGuard no_gradient;
  for (size_t stage = 0; stage < stages_of(*floats_.model); ++stage) {
    std::vector<Work> works;
    for (const Candidate& candidate : candidates) {
      if (candidate.stage != stage) continue;
      if (!is_done(candidate)) {
        works.push_back({candidate});
        continue;
      }
      for (int64_t index = 0; listener.batch && index < choosing_.count; ++index) listener.batch();
      if (listener.done) listener.done(candidate);
    }
    if (!works.empty()) measure_stage(stage, works, listener);
  }
  for (int64_t index = 0; index < states_.count(); ++index) {
    if (!full_[static_cast<size_t>(index)]) time_full_evaluation(index);
  }
}

void CandidateMeter::measure_stage(size_t stage, std::vector<Work>& works, const Listener& listener) {
  const WorkClock converting;
  for (Work& work : works) {
    try {
      work.converted = std::make_unique<ConvertedModules>(floats_, work.candidate.rules);
      const std::string& overflow = work.converted->overflow();
      if (!overflow.empty()) work.ended = {Status::kOverflowed, overflow, {}};
    } catch (const std::exception& error) {
      work.ended = {Status::kFailed, reason_of(error), {}};
    }
  }
  measuring_ += converting.spent();
  const auto stages = static_cast<int64_t>(stages_of(*floats_.model));
  for (int64_t index = choosing_.first; index < choosing_.end(); ++index) {
    const WorkClock clock;
    measure_batch(stage, index, works, listener);
    measuring_ += clock.spent();
    if (index % stages == static_cast<int64_t>(stage)) time_full_evaluation(index);
  }
  for (const Work& work : works) {
    if (listener.done) listener.done(work.candidate);
  }
}

void CandidateMeter::measure_batch(size_t stage, int64_t index, std::vector<Work>& works, const Listener& listener) {
  const auto wants = [&](const Work& work) {
    const std::string key = work.candidate.key();
    const bool uncosted = index == choosing_.first && file_.cost(key) == nullptr;
    return !work.is_ended() && (uncosted || file_.find(key, index) == nullptr);
  };
  // Of an ended one the first batch says so; the others are not asked.
  for (Work& work : works) {
    const BatchOutcome* known = file_.find(work.candidate.key(), index);
    if (known != nullptr && known->status != Status::kMeasured) work.ended = *known;
    if (work.is_ended() && index == choosing_.first && known == nullptr)
      file_.add(work.candidate.key(), index, work.ended);
  }
  std::shared_ptr<BatchBaseline> baseline;
  at::Tensor x;
  data::Batch batch;
  models::ModelInput input;
  if (std::any_of(works.begin(), works.end(), wants)) {
    batch = states_.batch(index);
    input = objective::model_input(batch.student, nullptr);
    x = states_.entering(stage, index, input);
    baseline = baseline_of(index, batch, input);
    replay_.record();
    const precision::Replaying replaying(replay_);
    const precision::Observing observing(replay_);
    states_.leaving(stage, index, through_stage(floats_, stage, x, input));
  }
  for (Work& work : works) {
    const std::string key = work.candidate.key();
    if (wants(work)) {
      const BatchOutcome* known = file_.find(key, index);
      if (known == nullptr) work.ended = file_.add(key, index, outcome_of(work, x, input, *baseline));
    }
    if (work.is_ended() && file_.cost(key) == nullptr)
      file_.add_cost(key, work.converted ? Cost{work.converted->bytes(), work.converted->bytes_before()} : Cost{});
    if (listener.batch) listener.batch();
  }
  if (index == choosing_.first && baseline) measure_costs(stage, works, batch, x, input);
}

// Of the stage as a model runs it: of all tokens, whoever reads them.
void CandidateMeter::measure_costs(size_t stage, std::vector<Work>& works, const data::Batch& batch,
                                   const at::Tensor& x, const models::ModelInput& input) {
  replay_.record();
  {
    const precision::Replaying replaying(replay_);
    const precision::Observing observing(replay_);
    through_stage(floats_, stage, x, input, /*all_tokens=*/true);
    // Only a candidate of the first stage (a tied one) or the last is a head.
    const bool has_head = stage == 0 || stage + 1 == stages_of(*floats_.model);
    if (has_head) BatchBaseline(floats_, batch, states_.last(choosing_.first, input));
  }
  for (Work& work : works) {
    const std::string key = work.candidate.key();
    if (!work.is_ended() && file_.cost(key) == nullptr) file_.add_cost(key, cost_of(work, x, input));
  }
}

BatchOutcome CandidateMeter::outcome_of(Work& work, const at::Tensor& x, const models::ModelInput& input,
                                        const BatchBaseline& baseline) {
  const size_t stage = work.candidate.stage;
  try {
    const std::vector<std::string> paths = work.converted->paths();
    OverflowWatch watch(paths);
    const precision::Observing observing(watch);
    const ConvertedModules::InPlace in_place(*work.converted);
    at::Tensor y;
    {
      replay_.replay(paths);
      const precision::Replaying replaying(replay_);
      y = through_stage(floats_, stage, x, input);
    }
    Rows rows = baseline.measure(floats_, from_stage(floats_, stage + 1, y, input), work.converted.get());
    return outcome_with(std::move(rows), watch.found());
  } catch (const std::exception& error) {
    return {Status::kFailed, reason_of(error), {}};
  }
}

Cost CandidateMeter::cost_of(Work& work, const at::Tensor& x, const models::ModelInput& input) {
  Cost cost{work.converted->bytes(), work.converted->bytes_before()};
  std::function<void()> run;
  if (work.candidate.is_block()) {
    run = [&] { through_stage(floats_, work.candidate.stage, x, input, /*all_tokens=*/true); };
  } else {
    const auto& module = *work.converted->modules().back();
    run = run_of(module, replay_.input_of(module.path()));
  }
  if (!run) return cost;
  double before = std::numeric_limits<double>::infinity(), now = before;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kTimings && (i < kLeastTimings || seconds_since(begin) < kEnoughSeconds); ++i) {
    before = std::min(before, seconds_of(run));
    const ConvertedModules::InPlace in_place(*work.converted);
    now = std::min(now, seconds_of(run));
  }
  cost.seconds = now, cost.seconds_before = before;
  return cost;
}

void CandidateMeter::measure_model(const std::string& key, const models::BuiltModel& model, data::BatchSpan batches) {
  const at::NoGradGuard no_gradient;
  for (int64_t index = batches.first; index < batches.end(); ++index) {
    const BatchOutcome* known = file_.find(key, index);
    if (known == nullptr) {
      const data::Batch batch = states_.batch(index);
      const models::ModelInput input = objective::model_input(batch.student, nullptr);
      const auto baseline = baseline_of(index, batch, input);
      BatchOutcome outcome;
      try {
        outcome = outcome_with(baseline->measure(model, from_stage(model, 0, {}, input)), "");
      } catch (const std::exception& error) {
        outcome = {Status::kFailed, reason_of(error), {}};
      }
      known = &file_.add(key, index, std::move(outcome));
    }
    if (known->status != Status::kMeasured) return;
  }
}

}  // namespace limbeck::sweep
