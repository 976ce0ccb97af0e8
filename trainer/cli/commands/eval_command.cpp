// limbeck eval: the training forward on held-out data, for the student that a run saved.
#include <fmt/format.h>

#include <filesystem>

#include "modules/adapters/peft/adapter_names.h"
#include "modules/errors.h"
#include "modules/models/family/family.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/agreement/pair_agreement.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/console/progress.h"
#include "trainer/data/data_request.h"
#include "trainer/evaluate/evaluator.h"
#include "trainer/loop/run_folder.h"
#include "trainer/objective/projector_file.h"

namespace limbeck::cli {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFinestProgress = 1000000;

// What is evaluated. `folder` is empty for the student as the recipe begins with it.
struct Evaluated {
  fs::path folder;
  std::string said;  // for the reader: which it is, and who says so
};

Evaluated own_student(const recipe::Settings& settings) {
  return {{}, fmt::format("student of {}, as the recipe begins with it", settings.required_text("student.model"))};
}

// The best model of the run, or its last where it had no validation.
Evaluated saved_by_run(const Invocation& call) {
  const fs::path run = call.settings.path("run");
  for (const char* saved : loop::kSavedModels) {
    if (fs::is_directory(run / saved)) {
      return {run / saved, fmt::format("student of {} {}", (run / saved).string(), call.settings.where("run"))};
    }
  }
  const std::string none = fmt::format("{}: holds no {}, {} or {} {}", run.string(), loop::kBest, loop::kFinal,
                                       loop::kStopped, call.settings.where("run"));
  if (call.settings.origin("run").kind == recipe::Origin::Kind::kCommandLine) {
    throw UsageError(none + ": name another run, or a student with --checkpoint=DIR");
  }
  call.console.warning(none + ": the recipe's own student is evaluated, untrained");
  return own_student(call.settings);
}

Evaluated what_is_evaluated(const Invocation& call) {
  const fs::path checkpoint = call.settings.path("checkpoint");
  if (!checkpoint.empty()) {
    return {checkpoint, fmt::format("student of {} {}", checkpoint.string(), call.settings.where("checkpoint"))};
  }
  return call.settings.text("run").empty() ? own_student(call.settings) : saved_by_run(call);
}

// Trained codes are stored as what they are; a teacher that was the student in floats is still that.
recipe::Settings settings_of_codes(const recipe::Settings& settings, const recipe::Settings& asked) {
  const recipe::Settings codes = settings.with("student.train_codes", "false").with("student.quantize", "none");
  if (asked.text("teacher.kind") != "self") return codes;
  const bool own_dtype = asked.text("teacher.dtype") != "auto";
  return codes.with("teacher.kind", "model")
      .with("teacher.model", asked.path("student.model").string())
      .with("teacher.dtype", asked.text(own_dtype ? "teacher.dtype" : "student.dtype"));
}

// The folder decides: an adapter goes onto the recipe's student, a whole student takes its place.
recipe::Settings settings_with(const recipe::Settings& settings, const fs::path& folder) {
  if (folder.empty()) return settings;
  if (fs::exists(folder / adapters::kConfigFile)) return settings.with("adapter.from", folder.string());
  const recipe::Settings whole = settings.with("student.model", folder.string())
                                     .with("student.init", "weights")
                                     .with("adapter.kind", "none")
                                     .with("adapter.from", "");
  const bool codes = settings.enabled("student.train_codes") && models::read_model_config(folder).layout != nullptr;
  return codes ? settings_of_codes(whole, settings) : whole;
}

void run_eval(Invocation& call) {
  const Evaluated what = what_is_evaluated(call);
  const recipe::Settings settings = settings_with(call.settings, what.folder);
  const auto pair = build::build_pair(settings, objective::Materialize::kWeights);
  warn_of_untrained_head(call, settings);
  const auto options = objective::read_options(settings, call.registries, *pair);
  agreement::PairAgreement agreement(settings, options, *pair);
  const data::DataSource source(agreement::fitted(data::validation_data(settings), *pair));
  const auto vocabulary =
      agreement.vocabulary({{source.manifest(), "data.validation " + settings.where("data.validation")}});
  objective::Distillation objective(options, pair, vocabulary);
  if (!what.folder.empty()) objective::load_projectors(objective, what.folder);
  for (const std::string& note : source.notes()) call.console.note(note);

  objective::Progress at_end;
  at_end.total_steps = kFinestProgress;
  at_end.step = static_cast<int64_t>(settings.number("progress") * kFinestProgress);
  std::unique_ptr<Progress> progress;
  const auto ranks = parallel::make_solo();
  const data::BatchSpan span = data::evaluated_batches(settings).of(source.batches_per_epoch());
  const auto evaluation = evaluate::evaluate(objective, source, span, at_end, *ranks, [&](int64_t done, int64_t all) {
    if (!progress) {
      progress = std::make_unique<Progress>(call.console.err(), "eval", "batches", all,
                                            ProgressStyle{.width = terminal_width(2), .quiet = call.console.quiet()});
    }
    progress->update(done);
  });
  if (progress) progress->finish();
  call.result = evaluation_json(evaluation, objective);
  call.result["evaluated"] = what.folder.empty() ? settings.text("student.model") : what.folder.string();
  call.console.result(what.said);
  call.console.result(evaluation_table(evaluation, objective, call.width));
}

void declare_eval(recipe::OptionTable& table) {
  table.group("Evaluation");
  table.add({.name = "checkpoint",
             .kind = recipe::OptionKind::kPath,
             .help = "A student that a run saved, or an adapter of it; without it, the best of --run, and without that "
                     "the recipe's own.",
             .value_name = "DIR",
             .flag_only = true});
  table.add({.name = "progress",
             .kind = recipe::OptionKind::kNumber,
             .fallback = "1",
             .help = "How far training is, 0 to 1: which weights and temperature of the curriculum the loss has.",
             .interval = {.low = 0, .high = 1},
             .flag_only = true});
}

}  // namespace

Command eval_command() {
  return {.name = "eval",
          .summary = "The training forward on held-out data: losses, perplexity, agreement with the teacher.",
          .example = "limbeck eval my.ini --run=runs/mine",
          .takes_recipe = true,
          .computes = true,
          .declare = declare_eval,
          .run = run_eval};
}

}  // namespace limbeck::cli
