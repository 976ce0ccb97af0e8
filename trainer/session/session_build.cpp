// How a Session comes to be: models, data, objective, shares, checkpoint.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <random>

#include "trainer/agreement/data_guard.h"
#include "trainer/agreement/pair_agreement.h"
#include "trainer/agreement/saved_tokenizer.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/data/data_request.h"
#include "trainer/parallel/ranks/together.h"
#include "trainer/session/session_state.h"

namespace limbeck::session {

PairInUse::~PairInUse() {
  if (!models) return;
  models->student.model->set_weight_keeper(nullptr);
  if (models->teacher) models->teacher->model->set_weight_keeper(nullptr);
}

std::string fresh_run_id(parallel::Communicator& ranks) {
  std::random_device device;
  return parallel::of_first_rank(ranks, fmt::format("{:08x}{:08x}", device(), device()));
}

Session::State::State(const SessionRequest& request)
    : options(read_session_options(request.settings)), ranks(request.ranks), listener(request.listener) {
  const recipe::Settings& settings = request.settings;
  objective::VocabularyRanks divided = objective::vocabulary_ranks(settings, ranks);
  parallel::together(ranks, [&] {
    deal = deal_of(settings, ranks.size(), ranks.rank());
    build_models(request);
    open_data(settings);
    make_objective(request, std::move(divided));
    total_steps = updates_of(settings, train->batches_per_epoch());
    share_out(request);
  });
  run.record.run_id = fresh_run_id(ranks);
  identify(settings);
  agree();
  if (!request.from.empty()) go_on_from(request.from, request.allowed);
}

void Session::State::note(const std::string& line) const {
  if (listener != nullptr && leads()) listener->noted(line);
}

void Session::State::warn(const std::string& line) const {
  if (listener != nullptr && leads()) listener->warned(line);
}

void Session::State::build_models(const SessionRequest& request) {
  pair.models = request.pair ? request.pair : build::build_pair(request.settings, objective::Materialize::kWeights);
  pair.models->student.model->set_checkpointing(options.recomputes_activations);
  for (const std::string& line : pair.models->notes) note(line);
}

void Session::State::open_data(const recipe::Settings& settings) {
  train = std::make_unique<data::DataSource>(agreement::fitted(data::training_data(settings), *pair.models));
  if (settings.given("data.validation")) {
    validation = std::make_unique<data::DataSource>(agreement::fitted(data::validation_data(settings), *pair.models));
    data::evaluated_batches(settings).of(validation->batches_per_epoch());  // refused now, not after the first epoch
  }
  for (const auto& source : {&train, &validation}) {
    if (!*source) continue;
    for (const std::string& line : (*source)->notes()) note(line);
  }
  if (!leads()) return;
  tokenizer =
      agreement::tokenizer_of_data(settings.path("data.train"), train->manifest(), pair.models->student.config.folder,
                                   settings.text("student.init") == "random");
}

void Session::State::make_objective(const SessionRequest& request, objective::VocabularyRanks divided) {
  const recipe::Settings& settings = request.settings;
  const auto asked = objective::read_options(settings, request.registries, *pair.models);
  std::vector<agreement::DataInUse> sets = {{train->manifest(), "data.train " + settings.where("data.train")}};
  if (validation) sets.push_back({validation->manifest(), "data.validation " + settings.where("data.validation")});
  const objective::Vocabulary vocabulary = agreement::PairAgreement(settings, asked, *pair.models).vocabulary(sets);
  objective = std::make_unique<objective::Distillation>(asked, pair.models, vocabulary, std::move(divided));
}

void Session::State::share_out(const SessionRequest& request) {
  if (!request.unreached.empty()) {
    note(fmt::format("no loss reaches {}: left as they are", fmt::join(request.unreached, ", ")));
  }
  optimizer = build::make_optimizer(request.settings, *objective, ranks, deal.own, total_steps, request.unreached);
  teacher_shards = std::make_unique<build::TeacherShards>(options.parallel, *objective, ranks);
  if (!options.records_graphs) return;
  require_recordable(request.settings, *objective, ranks.size());
  graphs = std::make_unique<StepGraphs>(*objective);
}

void Session::State::identify(const recipe::Settings& settings) {
  run.identity =
      identity_of(settings, train->manifest().digest, validation ? validation->manifest().digest : std::string());
  // Of a folder, where the recipe leaves it to that.
  if (const auto& adapter = pair.models->adapter)
    run.identity.recipe["adapter.dropout"] = fmt::format("{}", adapters::dropout_of(*adapter));
  if (!options.same_on_any_ranks) run.identity.build["ranks"] = std::to_string(ranks.size());
}

// Everything that must be the same on every rank for their sums to mean anything.
void Session::State::agree() {
  std::map<std::string, std::string> mine = run.identity.recipe;
  for (const auto& [key, value] : run.identity.data) mine["digest of " + key] = value;
  for (const char* key : {"limbeck", "libtorch", "reduce"}) mine[key] = run.identity.build.at(key);
  mine["parallel.zero"] = std::to_string(options.parallel.zero);
  parallel::require_equal(ranks, mine);
}

void Session::State::go_on_from(const std::filesystem::path& path, const std::vector<std::string>& allowed) {
  std::vector<std::string> notes;
  parallel::together(ranks, [&] {
    const auto checkpoint = checkpoint::Checkpoint::open(path);
    RunState saved = read_run_state(checkpoint);
    require_same_run(saved.identity, run.identity, allowed, path.string(), notes);
    saved.identity = run.identity;
    run = saved;
    session::restore(checkpoint, *objective, *optimizer);
  });
  optimizer->shares().publish();
  for (const std::string& line : notes) warn(line);
}

}  // namespace limbeck::session
