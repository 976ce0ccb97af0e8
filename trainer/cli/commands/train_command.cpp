// limbeck train: the check, then the run.
#include <fmt/format.h>

#include <csignal>
#include <iostream>

#include "modules/errors.h"
#include "modules/memory/allocator.h"
#include "modules/memory/host_memory.h"
#include "trainer/check/dry_run.h"
#include "trainer/cli/commands/check_report.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/output_paths.h"
#include "trainer/cli/console/progress.h"
#include "trainer/loop/trainer.h"
#include "trainer/parallel/ranks/join.h"
#include "trainer/parallel/ranks/together.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::cli {
namespace {

std::atomic<bool> stop_requested{false};

// The first signal asks for a stop after the update under way; the second ends the process as it always would.
extern "C" void ask_to_stop(int signal) {
  stop_requested = true;
  std::signal(signal, SIG_DFL);
}

// "peak 1.20 GiB  ms: data 0  teacher 21  student 25  loss 9  backward 44  update 3"
std::string phases_text(const loop::StepRecord& record) {
  std::string text = fmt::format("peak {}  ms:", human_bytes(record.peak_bytes));
  for (const auto& [phase, seconds] : record.phases) text += fmt::format(" {} {:.0f} ", phase, 1000 * seconds);
  text.pop_back();
  return text;
}

class ConsoleObserver : public loop::TrainObserver {
 public:
  explicit ConsoleObserver(Invocation& call) : call_(call) {}

  void noted(const std::string& line) override {
    clear();
    call_.console.note(line);
  }
  void warned(const std::string& line) override {
    clear();
    call_.console.warning(line);
  }
  void stepped(const loop::StepRecord& record) override {
    if (!progress_) {
      progress_ = std::make_unique<Progress>(
          call_.console.err(), "train", "steps", record.total_steps,
          ProgressStyle{.width = terminal_width(2), .quiet = call_.console.quiet(), .before = record.step - 1});
    }
    std::string said = fmt::format("loss {:.4f}  {:.0f} tokens/s", record.update.loss, record.tokens_per_second);
    if (!record.phases.empty()) said += "  " + phases_text(record);
    progress_->update(record.step, said);
  }
  void evaluated(int64_t step, const evaluate::Evaluation& evaluation, bool best) override {
    const auto [name, value] = evaluate::judged_by(evaluation, call_.settings.text("eval.best"));
    clear();
    call_.console.note(fmt::format("step {}: {} {:.4f} on data.validation{}", step, name, value, best ? ", best" : ""));
  }
  void clear() {
    if (progress_) progress_->clear();
  }
  void finish() {
    if (progress_) progress_->finish();
  }

 private:
  Invocation& call_;
  std::unique_ptr<Progress> progress_;
};

// On the ranks that say nothing.
class SilentObserver : public loop::TrainObserver {
 public:
  void noted(const std::string&) override {}
  void warned(const std::string&) override {}
  void stepped(const loop::StepRecord&) override {}
  void evaluated(int64_t, const evaluate::Evaluation&, bool) override {}
};

// A recipe that would fail is refused before a weight is read.
check::CheckReport check_first(Invocation& call, int ranks) {
  check::CheckReport report = check::dry_run(call.settings, call.registries, ranks);
  for (const check::DataRow& row : report.data) {
    if (!row.absent.empty()) throw InputDataError(row.absent);
  }
  refuse_violations(report, call.console, call.speaks);
  if (call.speaks) {
    warn_of_frozen_codes(report, call.settings, call.console);
    const int64_t copy = report.checkpoint_copy_bytes;
    call.console.note(
        fmt::format("{} {} operators, {} named casts, peak {} planned{}{}", call.console.good_note("check passed:"),
                    report.operators, report.casts.size(), human_bytes(report.peak_bytes),
                    copy > 0 ? fmt::format(", {} more from the first checkpoint on", human_bytes(copy)) : "",
                    ranks > 1 ? ", on each rank" : ""));
  }
  return report;
}

void report_result(Invocation& call, const loop::Trainer& trainer, const loop::TrainResult& result,
                   const check::CheckReport& plan) {
  call.result["run"] = trainer.folder().path().string();
  call.result["steps"] = result.steps;
  call.result["seconds"] = result.seconds;
  call.result["skipped"] = result.skipped;
  call.result["peak_bytes"] = result.peak_bytes;
  call.result["planned_peak_bytes"] = plan.peak_bytes;
  call.result["planned_checkpoint_copy_bytes"] = plan.checkpoint_copy_bytes;
  call.result["final_model"] = result.final_model.string();
  call.result["stopped_early"] = result.early;
  if (!result.best_model.empty()) {
    call.result["best_model"] = result.best_model.string();
    call.result["best_step"] = result.best_step;
    call.result["evaluated_step"] = result.last_step;
    call.result["evaluation"] = evaluation_json(result.last, trainer.session().objective());
    call.console.result(fmt::format("evaluated after step {}{}:", result.last_step,
                                    result.last_step == result.steps ? "" : fmt::format(" of {}", result.steps)));
    call.console.result(evaluation_table(result.last, trainer.session().objective(), call.width));
  }
  call.console.result(fmt::format("{} steps in {}; peak {} of tensors; model: {}", result.steps,
                                  clock_text(result.seconds), human_bytes(result.peak_bytes),
                                  result.final_model.string()));
}

// A run that reads what it saves would go on from another model after a stop.
void check_saved_models(const recipe::Settings& settings) {
  if (!settings.given("run")) return;
  for (const char* saved : loop::kSavedModels) {
    check_output_folder({"--run", settings.path("run") / saved}, inputs_of(settings, ""));
  }
}

void train(Invocation& call, const parallel::Joined& joined) {
  check::CheckReport checked;
  parallel::together(*joined.ranks, [&] {
    check_saved_models(call.settings);
    checked = check_first(call, joined.ranks->size());
  });
  memory::HostMemory::count_tensors();
  SilentObserver silent;
  ConsoleObserver console(call);
  loop::TrainObserver& observer = call.speaks ? static_cast<loop::TrainObserver&>(console) : silent;
  if (joined.ranks->size() > 1) memory::map_large_buffers();
  loop::Trainer trainer({.settings = call.settings,
                         .registries = call.registries,
                         .observer = observer,
                         .ranks = *joined.ranks,
                         .restarted = joined.topology.restart > 0,
                         .unreached = checked.unreached});
  if (joined.ranks->size() > 1) memory::HostMemory::give_back();  // what the whole models took until they were divided
  memory::tune_allocator();
  if (const int64_t steps = call.settings.integer("verify-resume"); steps > 0) return trainer.verify_resume(steps);
  if (call.speaks) trainer.folder().write_text("contract.json", check_json(checked).dump(2) + "\n");
  // Slurm warns by USR1, clusters and torchrun by TERM.
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, ask_to_stop);
  const loop::TrainResult result = trainer.run(stop_requested);
  console.finish();
  if (call.speaks) report_result(call, trainer, result, checked);
  if (!result.stopped) return;
  parallel::alike(*joined.ranks, [&] {
    throw StoppedError(
        fmt::format("stopped by a signal after step {}, with everything saved in {}: the same command goes "
                    "on from there",
                    result.steps, trainer.folder().path().string()));
  });
}

void run_train(Invocation& call) {
  const parallel::Joined joined = parallel::join_ranks(call.settings);
  call.speaks = joined.topology.rank == 0;
  if (call.speaks && joined.topology.size > 1) call.console.note(joined.topology.described());
  try {
    train(call, joined);
  } catch (const std::exception& error) {
    joined.ranks->farewell(error.what());
    throw;
  }
}

}  // namespace

Command train_command() {
  return {.name = "train",
          .summary = "Checks a recipe, then trains: distillation, or a model from scratch.",
          .example = "limbeck train my.ini --run=runs/mine",
          .takes_recipe = true,
          .computes = true,
          .joins_ranks = true,
          .declare = recipe::declare_resume_options,
          .run = run_train};
}

}  // namespace limbeck::cli
