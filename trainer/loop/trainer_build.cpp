// How a Trainer comes to be: folder, models, shares, data, checkpoint.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <random>

#include "modules/errors.h"
#include "modules/memory/host_memory.h"
#include "trainer/agreement/data_guard.h"
#include "trainer/agreement/pair_agreement.h"
#include "trainer/agreement/saved_tokenizer.h"
#include "trainer/build/recipe_pair.h"
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
  objective::VocabularyRanks divided = objective::vocabulary_ranks(settings, ranks);
  parallel::together(ranks, [&] {
    deal = deal_of(settings, ranks.size(), ranks.rank());
    const auto pair = build_models();
    open_data(*pair);
    make_objective(pair, std::move(divided));
    total_steps = steps_of(settings, train->batches_per_epoch());
    require_evaluations(settings);
    share_out(request.unreached);
  });
  // What the whole models took until they were divided.
  if (ranks.size() > 1) memory::HostMemory::give_back();
  run.run_id = parallel::of_first_rank(ranks, fresh_run_id());
  run.recipe = deciding_keys(settings);
  // Of a folder, where the recipe leaves it to that.
  if (const auto& adapter = objective->pair().adapter)
    run.recipe["adapter.dropout"] = fmt::format("{}", adapters::dropout_of(*adapter));
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

std::shared_ptr<objective::ModelPair> Trainer::State::build_models() const {
  auto pair = build::build_pair(settings, objective::Materialize::kWeights);
  pair->student.model->set_checkpointing(settings.enabled("train.checkpoint_activations"));
  for (const std::string& line : pair->notes) note(line);
  return pair;
}

void Trainer::State::open_data(const objective::ModelPair& pair) {
  train = std::make_unique<data::DataSource>(agreement::fitted(data::training_data(settings), pair));
  if (settings.given("data.validation")) {
    validation = std::make_unique<data::DataSource>(agreement::fitted(data::validation_data(settings), pair));
  }
  for (const auto& source : {&train, &validation}) {
    if (!*source) continue;
    for (const std::string& line : (*source)->notes()) note(line);
  }
  if (leads()) {
    folder->set_tokenizer(agreement::tokenizer_of_data(settings.path("data.train"), train->manifest(),
                                                       pair.student.config.folder,
                                                       settings.text("student.init") == "random"));
  }
}

void Trainer::State::make_objective(std::shared_ptr<objective::ModelPair> pair, objective::VocabularyRanks divided) {
  const objective::ObjectiveOptions asked = objective::read_options(settings, registries, *pair);
  std::vector<agreement::DataInUse> sets = {{train->manifest(), "data.train " + settings.where("data.train")}};
  if (validation) sets.push_back({validation->manifest(), "data.validation " + settings.where("data.validation")});
  const objective::Vocabulary vocabulary = agreement::PairAgreement(settings, asked, *pair).vocabulary(sets);
  objective = std::make_unique<objective::Distillation>(asked, std::move(pair), vocabulary, std::move(divided));
}

void Trainer::State::share_out(const std::vector<std::string>& unreached) {
  if (!unreached.empty()) note(fmt::format("no loss reaches {}: left as they are", fmt::join(unreached, ", ")));
  optimizer = build::make_optimizer(settings, *objective, ranks, deal.own, total_steps, unreached);
  teacher_shards = std::make_unique<build::TeacherShards>(options.parallel, *objective, ranks);
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
