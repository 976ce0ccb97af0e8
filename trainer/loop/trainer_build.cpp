// How a Trainer comes to be: folder, models, shares, data, checkpoint.
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/precision/host_memory.h"
#include "trainer/data/data_request.h"
#include "trainer/loop/resume.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/parallel/together.h"

namespace limbeck::loop {
namespace {

// train.steps in updates.
int64_t steps_of(const recipe::Settings& settings, int64_t batches_per_epoch) {
  const recipe::Count count = settings.count("train.steps");
  const int64_t accumulate = settings.integer("train.accumulate");
  int64_t steps = count.amount;
  if (count.unit == recipe::CountUnit::kTokens) {
    const int64_t tokens = settings.integer("data.batch_size") * settings.integer("data.sequence_length") * accumulate;
    steps = (count.amount + tokens - 1) / tokens;
  } else if (count.unit == recipe::CountUnit::kEpochs) {
    steps = (count.amount * batches_per_epoch + accumulate - 1) / accumulate;
  }
  if (steps < 1) {
    throw UsageError(fmt::format("train.steps = {} is less than one update {}: write more", count.to_string(),
                                 settings.where("train.steps")));
  }
  return steps;
}

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// The recipe alone decides what an update is; ranks divide its micro-batches.
Deal deal_of(const recipe::Settings& settings, const parallel::Communicator& ranks) {
  Deal deal;
  deal.micro_batches = settings.integer("train.accumulate");
  deal.ranks = ranks.size();
  deal.rank = ranks.rank();
  deal.interleaved = settings.integer("parallel.zero") >= 2;
  const std::string where = settings.where("train.accumulate");
  if (deal.micro_batches % deal.ranks != 0) {
    throw UsageError(fmt::format(
        "train.accumulate = {} {}: the micro-batches of an update are divided among the ranks, and there are {}: set "
        "it "
        "to a multiple of {}; an update has train.accumulate x data.batch_size sequences whatever the number of ranks",
        deal.micro_batches, where, deal.ranks, deal.ranks));
  }
  deal.own = deal.micro_batches / deal.ranks;
  if (settings.text("parallel.reduce") == "tree" && !(power_of_two(deal.micro_batches) && power_of_two(deal.ranks))) {
    throw UsageError(fmt::format(
        "parallel.reduce = tree {} adds in pairs: wanted train.accumulate and the number of ranks to be powers of two, "
        "and they are {} {} and {}",
        settings.where("parallel.reduce"), deal.micro_batches, where, deal.ranks));
  }
  return deal;
}

std::string fresh_run_id() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

std::vector<parallel::NamedParameter> named_parameters(const models::BuiltModel& model) {
  std::vector<parallel::NamedParameter> found;
  for (const auto& module : model.model->modules()) {
    const auto* owner = dynamic_cast<const precision::ContractModule*>(module.get());
    if (owner == nullptr) continue;
    for (const auto& entry : owner->named_parameters(/*recurse=*/false)) {
      found.push_back({owner->path() + "." + entry.key(), entry.value()});
    }
  }
  return found;
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
      registries(request.registries),
      observer(request.observer),
      ranks(request.ranks),
      restarted(request.restarted) {
  parallel::together(ranks, [&] { open_folder(); });
  const auto text = parallel::of_first_rank(ranks, from.string());
  from = text;
  parallel::together(ranks, [&] {
    deal = deal_of(settings, ranks);
    build_models();
    open_data();
    total_steps = steps_of(settings, train->batches_per_epoch());
    share_out(request.unreached);
  });
  objective->divide_vocabulary(ranks);
  // What the whole models took until they were divided.
  if (ranks.size() > 1) precision::HostMemory::give_back();
  run.run_id = parallel::of_first_rank(ranks, fresh_run_id());
  run.recipe = deciding_keys(settings);
  run.data = data_digests(settings, train->manifest().digest, validation ? validation->manifest().digest : "");
  run.build = build_identity(settings);
  // Else the number of ranks does not show in the sums.
  if (settings.text("parallel.reduce") == "fast" || settings.enabled("objective.vocabulary_parallel"))
    run.build["ranks"] = std::to_string(ranks.size());
  agree();
  if (!from.empty()) go_on_from_checkpoint();
  parallel::together(ranks, [&] { begin_logs(); });
  saver = std::make_unique<RunSaver>(settings, folder->checkpoints(), ranks);
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
}

void Trainer::State::open_data() {
  train = std::make_unique<data::DataSource>(fitted(data::training_data(settings), *objective));
  if (settings.given("data.validation")) {
    validation = std::make_unique<data::DataSource>(fitted(data::validation_data(settings), *objective));
  }
  for (const data::DataSource* source : {train.get(), validation.get()}) {
    if (source == nullptr) continue;
    const data::Manifest& manifest = source->manifest();
    objective->accept_data(manifest.vocabulary, manifest.teacher_vocabulary,
                           "data.train " + settings.where("data.train"));
    for (const std::string& line : source->notes()) note(line);
  }
}

void Trainer::State::share_out(const std::vector<std::string>& unreached) {
  const std::set<std::string> left(unreached.begin(), unreached.end());
  std::vector<optim::Parameter> parameters;
  std::vector<parallel::NamedParameter> named;
  for (const objective::TrainedParameter& p : objective->trained_parameters()) {
    if (left.contains(p.name)) continue;
    parameters.push_back({p.name, p.tensor, p.group, p.decays});
    named.push_back({p.name, p.tensor});
  }
  if (!left.empty()) note(fmt::format("no loss reaches {}: left as they are", fmt::join(left, ", ")));
  parallel::SharingOptions options;
  options.zero = static_cast<int>(settings.integer("parallel.zero"));
  options.order = settings.text("parallel.reduce") == "tree" ? parallel::Order::kTree : parallel::Order::kFast;
  options.micro_batches = deal.own;
  if (options.zero >= 3 && objective->follows_student()) {
    throw UsageError(
        fmt::format("parallel.zero = 3 {} divides the student's weights, and teacher.kind = ema {} follows "
                    "them whole: set parallel.zero = 2",
                    settings.where("parallel.zero"), settings.where("teacher.kind")));
  }
  const bool alone = ranks.size() == 1 && options.order == parallel::Order::kFast;
  auto shares = alone ? parallel::make_whole(named) : parallel::make_shared_out(ranks, options, named);
  objective->student().model->set_weight_keeper(shares->keeper());
  optimizer = std::make_unique<optim::Optimizer>(settings, std::move(parameters), total_steps, std::move(shares));
  if (options.zero < 3 || ranks.size() == 1 || !objective->teacher()) return;
  const at::NoGradGuard no_gradient;
  const auto frozen = named_parameters(*objective->teacher());
  for (const parallel::UnitLayout& layout : parallel::lay_out(frozen, ranks.size())) {
    teacher_units.push_back(
        std::make_unique<parallel::UnitWeights>(ranks, teacher_pool, layout, frozen, /*stays=*/false));
    teacher_keeper.add(teacher_units.back().get(), /*freed_after_use=*/true);
  }
  objective->teacher()->model->set_weight_keeper(&teacher_keeper);
}

// Everything that must be the same on every rank for their sums to mean anything.
void Trainer::State::agree() const {
  std::map<std::string, std::string> mine = run.recipe;
  for (const auto& [key, value] : run.data) mine["digest of " + key] = value;
  for (const char* key : {"limbeck", "libtorch", "reduce"}) mine[key] = run.build.at(key);
  mine["parallel.zero"] = settings.text("parallel.zero");
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
}

void Trainer::State::begin_logs() {
  if (std::filesystem::exists(folder->path() / "best" / "config.json") && run.evaluated) {
    best_model = folder->path() / "best";
  }
  if (!leads()) return;
  folder->write_text("recipe.ini", settings.to_ini(/*with_origins=*/true));
  metrics = std::make_unique<metrics::MetricsLog>(folder->path(), run.step);
}

}  // namespace limbeck::loop
