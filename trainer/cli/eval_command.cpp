// limbeck eval: the training forward on held-out data, for the student that a run saved.
#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/cli/command.h"
#include "trainer/cli/evaluation_table.h"
#include "trainer/cli/progress.h"
#include "trainer/data/data_request.h"
#include "trainer/loop/trainer.h"
#include "trainer/objective/recipe_adapter.h"

namespace limbeck::cli {
namespace {

constexpr int64_t kFinestProgress = 1000000;

// The recipe's student, or the one saved in --checkpoint, whose weights are then what it is made of.
recipe::Settings settings_of_checkpoint(const Invocation& call) {
  const std::string checkpoint = call.settings.path("checkpoint").string();
  if (checkpoint.empty()) return call.settings;
  if (objective::trains_adapter(call.settings)) return call.settings.with("adapter.from", checkpoint);
  return call.settings.with("student.model", checkpoint).with("student.init", "weights");
}

void run_eval(Invocation& call) {
  const recipe::Settings settings = settings_of_checkpoint(call);
  objective::Distillation objective(settings, call.registries, objective::Materialize::kWeights);
  const auto checkpoint = settings.path("checkpoint");
  if (!checkpoint.empty()) loop::load_projectors(checkpoint, objective);
  const data::DataSource source(loop::fitted(data::validation_data(settings), objective));
  objective.accept_data(source.manifest().vocabulary, source.manifest().teacher_vocabulary,
                        "data.validation " + settings.where("data.validation"));
  for (const std::string& note : source.notes()) call.console.note(note);

  objective::Progress at_end;
  at_end.total_steps = kFinestProgress;
  at_end.step = static_cast<int64_t>(settings.number("progress") * kFinestProgress);
  std::unique_ptr<Progress> progress;
  const auto ranks = parallel::make_solo();
  const auto evaluation = evaluate::evaluate(
      objective, source, settings.integer("eval.batches"), at_end, *ranks, [&](int64_t done, int64_t all) {
        if (!progress) {
          progress =
              std::make_unique<Progress>(call.console.err(), "eval", "batches", all,
                                         ProgressStyle{.width = terminal_width(2), .quiet = call.console.quiet()});
        }
        progress->update(done);
      });
  if (progress) progress->finish();
  call.result = evaluation_json(evaluation, objective);
  call.console.result(evaluation_table(evaluation, objective, call.width));
}

void declare_eval(recipe::OptionTable& table) {
  table.group("Evaluation");
  table.add({.name = "checkpoint",
             .kind = recipe::OptionKind::kPath,
             .help = "A student that a run saved (RUN/best, RUN/final); without it, the recipe's own.",
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
          .takes_recipe = true,
          .computes = true,
          .declare = declare_eval,
          .run = run_eval};
}

}  // namespace limbeck::cli
