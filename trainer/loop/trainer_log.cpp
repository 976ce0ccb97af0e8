// What a Trainer tells: of each step, and of the checkpoints that were written beside it.
#include <fmt/format.h>

#include "trainer/loop/trainer_state.h"
#include "trainer/parallel/sums/named_sums.h"

namespace limbeck::loop {

// How long each rank computed, waiting for others left out: the share of the slowest one's time that the fastest needs.
void Trainer::State::add_rank_times(double computing_s, std::vector<std::pair<std::string, double>>& values) const {
  if (ranks.size() == 1) return;
  parallel::NamedSums times;
  times.add(std::to_string(ranks.rank()), computing_s);
  times.all_reduce(ranks);
  double fastest = 0, slowest = 0;
  int slowest_rank = 0;
  for (int rank = 0; rank < ranks.size(); ++rank) {
    const double seconds = times.value(std::to_string(rank));
    if (rank == 0 || seconds < fastest) fastest = seconds;
    if (rank == 0 || seconds > slowest) slowest = seconds, slowest_rank = rank;
  }
  values.insert(values.end(), {{"rank_seconds_fastest", fastest},
                               {"rank_seconds_slowest", slowest},
                               {"slowest_rank", static_cast<double>(slowest_rank)},
                               {"straggler_score", slowest > 0 ? fastest / slowest : 1.0},
                               {"communication_hidden", ranks.time().hidden_share()}});
}

void Trainer::State::record(const StepRecord& record, double waited_s) {
  if (leads()) observer.stepped(record);
  const session::UpdateResult& update = record.update;
  if (update.step.skipped) {
    warn(fmt::format("step {}: the gradient of {} is not finite: update skipped ({} in a row, {} in all){}",
                     record.step, update.step.nonfinite, update.step.skipped_in_a_row, update.step.skipped_in_all,
                     update.step.loss_scale != 1 ? fmt::format(", loss scale {}", update.step.loss_scale) : ""));
  }
  if (record.step % options.log_every != 0 && record.step != record.total_steps && !update.step.skipped) {
    return;
  }
  std::vector<std::pair<std::string, double>> values = {{"loss", update.loss}};
  for (const auto& term : update.terms) values.push_back(term);
  values.insert(values.end(), {{"lr", update.step.learning_rate},
                               {"grad_norm", update.step.gradient_norm},
                               {"loss_scale", update.step.loss_scale},
                               {"skipped", static_cast<double>(update.step.skipped_in_all)},
                               {"targets", static_cast<double>(update.targets)},
                               {"seconds", record.seconds},
                               {"tokens_per_s", record.tokens_per_second},
                               {"peak_bytes", static_cast<double>(peak_bytes())}});
  if (energy) {
    for (auto& value : energy->take(ranks)) values.push_back(std::move(value));
  }
  add_rank_times(record.seconds - waited_s, values);
  log(record.step, values, "train");
}

// A full disk costs lines for a while, never the run.
void Trainer::State::log(int64_t step, const std::vector<std::pair<std::string, double>>& values,
                         const std::string& phase) {
  if (!metrics) return;
  metrics->write(step, values, phase);
  if (!metrics->fault().empty() && !log_waits) warn(metrics->fault());
  log_waits = !metrics->fault().empty();
}

void Trainer::State::take_outcomes() {
  for (const SaveOutcome& outcome : saver->outcomes()) {
    if (!outcome.report) {
      warn(fmt::format("checkpoint failed ({} in a row; training goes on, and {} stop the run): {}",
                       saver->failures_in_a_row(), options.checkpoint.max_failures, outcome.failure));
      continue;
    }
    const checkpoint::SaveReport& report = *outcome.report;
    for (const std::string& line : report.warnings) warn(line);
    if (outcome.failed_before > 0) {
      note(fmt::format("checkpoint saved again after {} that failed: {}", outcome.failed_before, report.path.string()));
    }
    saved_step = checkpoint::step_of(report.path.filename().string()).value_or(saved_step);
    // The line is of the step at which training learnt of it: a resumed run from that checkpoint drops it.
    log(step(),
        {{"saved_step", static_cast<double>(saved_step)},
         {"bytes", static_cast<double>(report.bytes)},
         {"stage_seconds", report.stage_seconds},
         {"write_seconds", report.write_seconds},
         {"fsync_seconds", report.fsync_seconds},
         {"commit_seconds", report.commit_seconds}},
        "checkpoint");
  }
}

}  // namespace limbeck::loop
