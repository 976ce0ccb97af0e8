// How a Trainer comes to be: folder, models, shares, data, checkpoint.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <random>

#include "modules/errors.h"
#include "modules/memory/host_memory.h"
#include "trainer/agreement/saved_tokenizer.h"
#include "trainer/data/data_request.h"
#include "trainer/loop/resume.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::loop {
namespace {

// train.steps in updates.
int64_t steps_of(const recipe::Settings& settings, int64_t batches_per_epoch) {
  const recipe::Count count = settings.count("train.steps");
  const int64_t accumulate = settings.integer("train.accumulate");
  const int64_t samples = settings.integer("data.batch_size") * accumulate;
  int64_t steps = count.amount;
  if (count.unit == recipe::CountUnit::kTokens) {
    const int64_t tokens = samples * settings.integer("data.sequence_length");
    steps = (count.amount + tokens - 1) / tokens;
  } else if (count.unit == recipe::CountUnit::kSamples) {
    steps = (count.amount + samples - 1) / samples;
  } else if (count.unit == recipe::CountUnit::kEpochs) {
    steps = (count.amount * batches_per_epoch + accumulate - 1) / accumulate;
  }
  if (steps < 1) {
    throw UsageError(fmt::format("train.steps = {} is less than one update {}: write more", count.to_string(),
                                 settings.where("train.steps")));
  }
  return steps;
}

void require_evaluations(const recipe::Settings& settings) {
  const std::string key = "train.early_stopping_patience";
  if (settings.integer(key) == 0) return;
  const bool data = settings.given("data.validation");
  if (data && settings.integer("eval.every") > 0) return;
  throw UsageError(fmt::format("{} = {} {} without {}: set it, such as {}, or leave early stopping out", key,
                               settings.text(key), settings.where(key), data ? "eval.every" : "data.validation",
                               data ? "--eval.every=100" : "--data.validation=DIR"));
}

std::string fresh_run_id() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

}  // namespace

double seconds_since(SteadyTime begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

data::DataRequest fitted(data::DataRequest request, const objective::Distillation& objective) {
  request.student_vocabulary = objective.student().config.architecture.vocabulary;
  if (objective.teacher()) request.teacher_vocabulary = objective.teacher()->config.architecture.vocabulary;
  return request;
}

Trainer::State::State(const TrainRequest& request)
    : settings(request.settings),
      options(read_run_options(request.settings)),
      registries(request.registries),
      observer(request.observer),
      ranks(request.ranks),
      restarted(request.restarted) {
  parallel::together(ranks, [&] { open_folder(); });
  const auto text = parallel::of_first_rank(ranks, from.string());
  from = text;
  parallel::together(ranks, [&] {
    deal = deal_of(settings, ranks.size(), ranks.rank());
    build_models();
    open_data();
    total_steps = steps_of(settings, train->batches_per_epoch());
    require_evaluations(settings);
    share_out(request.unreached);
  });
  objective->divide_vocabulary(ranks);
  // What the whole models took until they were divided.
  if (ranks.size() > 1) memory::HostMemory::give_back();
  run.run_id = parallel::of_first_rank(ranks, fresh_run_id());
  run.recipe = deciding_keys(settings);
  // Of a folder, where the recipe leaves it to that.
  if (objective->adapter())
    run.recipe["adapter.dropout"] = fmt::format("{}", adapters::dropout_of(*objective->adapter()));
  run.data = data_digests(settings, train->manifest().digest, validation ? validation->manifest().digest : "");
  run.build = build_identity(settings);
  // Else the number of ranks does not show in the sums.
  if (options.parallel.order == parallel::Order::kFast || settings.enabled("objective.vocabulary_parallel"))
    run.build["ranks"] = std::to_string(ranks.size());
  agree();
  if (!from.empty()) go_on_from_checkpoint();
  parallel::together(ranks, [&] { begin_logs(); });
  saver = std::make_unique<RunSaver>(options.checkpoint, folder->checkpoints(), ranks);
}

void Trainer::State::note(const std::string& line) const {
  if (leads()) observer.noted(line);
}

void Trainer::State::warn(const std::string& line) const {
  if (leads()) observer.warned(line);
}

void Trainer::State::open_folder() {
  folder = std::make_unique<RunFolder>(settings, leads());
  if (!leads()) return;
  std::vector<std::string> notes;
  const auto found = find_checkpoint(settings, folder->path(), restarted, notes);
  for (const std::string& line : notes) warn(line);
  if (found) from = *found;
}

void Trainer::State::build_models() {
  objective = std::make_unique<objective::Distillation>(settings, registries, objective::Materialize::kWeights);
  objective->student().model->set_checkpointing(settings.enabled("train.checkpoint_activations"));
  for (const std::string& line : objective->notes()) note(line);
}

void Trainer::State::open_data() {
  train = std::make_unique<data::DataSource>(fitted(data::training_data(settings), *objective));
  if (settings.given("data.validation")) {
    validation = std::make_unique<data::DataSource>(fitted(data::validation_data(settings), *objective));
  }
  const auto take = [&](const std::string& key, const data::DataSource& source) {
    objective->accept_data(source.manifest(), key + " " + settings.where(key));
    for (const std::string& line : source.notes()) note(line);
  };
  take("data.train", *train);
  if (validation) take("data.validation", *validation);
  if (leads()) {
    folder->set_tokenizer(objective::tokenizer_of_data(settings.path("data.train"), train->manifest(),
                                                       objective->student().config.folder,
                                                       settings.text("student.init") == "random"));
  }
}

void Trainer::State::share_out(const std::vector<std::string>& unreached) {
  if (!unreached.empty()) note(fmt::format("no loss reaches {}: left as they are", fmt::join(unreached, ", ")));
  optimizer = make_optimizer(settings, *objective, ranks, deal.own, total_steps, unreached);
  teacher_shards = std::make_unique<TeacherShards>(settings, *objective, ranks);
}

// Everything that must be the same on every rank for their sums to mean anything.
void Trainer::State::agree() const {
  std::map<std::string, std::string> mine = run.recipe;
  for (const auto& [key, value] : run.data) mine["digest of " + key] = value;
  for (const char* key : {"limbeck", "libtorch", "reduce"}) mine[key] = run.build.at(key);
  mine["parallel.zero"] = std::to_string(options.parallel.zero);
  parallel::require_equal(ranks, mine);
}

void Trainer::State::go_on_from_checkpoint() {
  std::vector<std::string> notes;
  parallel::together(ranks, [&] {
    const auto checkpoint = checkpoint::Checkpoint::open(from);
    const RunState saved = read_run_state(checkpoint);
    require_same_run(settings, saved, run, from.string(), notes);
    std::error_code absent;
    const bool own = std::filesystem::equivalent(from.parent_path(), folder->checkpoints(), absent);
    const RunState now = run;
    run = saved;
    if (!own) run.run_id = now.run_id;
    if (own) saved_step = run.step;
    run.recipe = now.recipe;
    run.data = now.data;
    run.build = now.build;
    restore(checkpoint, *objective, *optimizer);
  });
  optimizer->shares().publish();
  earlier_s = run.seconds;
  for (const std::string& line : notes) warn(line);
  note(fmt::format("resumed from {}: {} of {} steps are done", from.string(), run.step, total_steps));
  if (run.step > total_steps) {
    warn(
        fmt::format("train.steps = {} {} is less than the {} updates that are done: nothing is trained, and final/ is "
                    "the model after step {}; write more to go on",
                    settings.text("train.steps"), settings.where("train.steps"), run.step, run.step));
  }
}

void Trainer::State::begin_logs() {
  // A folder of a model or of an adapter: it is there whole, or not at all.
  if (run.evaluated && std::filesystem::is_directory(folder->path() / kBest)) best_model = folder->path() / kBest;
  if (!leads()) return;
  folder->write_text("recipe.ini", settings.to_ini(/*with_origins=*/true));
  metrics = std::make_unique<metrics::MetricsLog>(folder->path(), run.step);
}

}  // namespace limbeck::loop
