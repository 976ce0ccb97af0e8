// How a Trainer comes to be: folder, session, checkpoint, logs.
#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/energy/energy_gauge.h"
#include "trainer/energy/machine_meters.h"
#include "trainer/loop/resume.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::loop {
namespace {

void require_evaluations(const recipe::Settings& settings) {
  const std::string key = "train.early_stopping_patience";
  if (settings.integer(key) == 0) return;
  const bool data = settings.given("data.validation");
  if (data && settings.integer("eval.every") > 0) return;
  throw UsageError(fmt::format("{} = {} {} without {}: set it, such as {}, or leave early stopping out", key,
                               settings.text(key), settings.where(key), data ? "eval.every" : "data.validation",
                               data ? "--eval.every=100" : "--data.validation=DIR"));
}

}  // namespace

double seconds_since(SteadyTime begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Trainer::State::State(const TrainRequest& request)
    : options(read_run_options(request.settings)), observer(request.observer), ranks(request.ranks) {
  const recipe::Settings& settings = request.settings;
  parallel::together(ranks, [&] {
    require_evaluations(settings);
    open_folder(settings, request.restarted);
  });
  const auto text = parallel::of_first_rank(ranks, from.string());
  from = text;
  make_session(request);
  if (!from.empty()) go_on_from_checkpoint(settings);
  parallel::together(ranks, [&] { begin_logs(settings); });
  begin_energy();
  saver = std::make_unique<RunSaver>(options.checkpoint, folder->checkpoints(), ranks);
}

void Trainer::State::note(const std::string& line) const {
  if (leads()) observer.noted(line);
}

void Trainer::State::warn(const std::string& line) const {
  if (leads()) observer.warned(line);
}

void Trainer::State::open_folder(const recipe::Settings& settings, bool restarted) {
  folder = std::make_unique<RunFolder>(settings, leads());
  if (!leads()) return;
  std::vector<std::string> notes;
  const auto found = find_checkpoint(settings, folder->path(), restarted, notes);
  for (const std::string& line : notes) warn(line);
  if (found) from = *found;
}

void Trainer::State::make_session(const TrainRequest& request) {
  session =
      std::make_unique<session::Session>(session::SessionRequest{.settings = request.settings,
                                                                 .registries = request.registries,
                                                                 .ranks = ranks,
                                                                 .listener = &observer,
                                                                 .unreached = request.unreached,
                                                                 .from = from,
                                                                 .allowed = request.settings.list("resume.allow")});
}

void Trainer::State::go_on_from_checkpoint(const recipe::Settings& settings) {
  std::error_code absent;
  const bool own = std::filesystem::equivalent(from.parent_path(), folder->checkpoints(), absent);
  if (own) {
    saved_step = step();
  } else {
    session->record().run_id = session::fresh_run_id(ranks);
  }
  earlier_s = session->record().seconds;
  note(fmt::format("resumed from {}: {} of {} steps are done", from.string(), step(), session->total_steps()));
  if (step() > session->total_steps()) {
    warn(
        fmt::format("train.steps = {} {} is less than the {} updates that are done: nothing is trained, and final/ is "
                    "the model after step {}; write more to go on",
                    settings.text("train.steps"), settings.where("train.steps"), step(), step()));
  }
}

void Trainer::State::begin_logs(const recipe::Settings& settings) {
  // A folder of a model or of an adapter: it is there whole, or not at all.
  if (session->record().evaluated && std::filesystem::is_directory(folder->path() / kBest)) {
    best_model = folder->path() / kBest;
  }
  if (!leads()) return;
  folder->write_text("recipe.ini", settings.to_ini(/*with_origins=*/true));
  metrics = std::make_unique<metrics::MetricsLog>(folder->path(), step());
}

// On all ranks or on none, because they add up their joules together.
void Trainer::State::begin_energy() {
  auto meters =
      energy::counted_here(energy::meters_of_work_on(session->objective().device()), energy::this_machine(), ranks);
  std::vector<int64_t> any = {energy::any_meter(meters) ? 1 : 0};
  ranks.all_reduce(any, parallel::Reduce::kMax);
  if (any.front() > 0) energy.emplace(std::move(meters));
}

}  // namespace limbeck::loop
