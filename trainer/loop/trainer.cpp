#include "trainer/loop/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "modules/errors.h"
#include "modules/precision/host_memory.h"
#include "trainer/data/data_request.h"
#include "trainer/metrics/metrics_log.h"

namespace limbeck::loop {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

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

std::vector<optim::Parameter> parameters_of(const objective::Distillation& objective) {
  std::vector<optim::Parameter> out;
  for (const objective::TrainedParameter& p : objective.trained_parameters()) {
    out.push_back({p.name, p.tensor, p.group, p.decays});
  }
  return out;
}

}  // namespace

data::DataRequest fitted(data::DataRequest request, const objective::Distillation& objective) {
  request.student_vocabulary = objective.student().config.architecture.vocabulary;
  if (objective.teacher()) request.teacher_vocabulary = objective.teacher()->config.architecture.vocabulary;
  return request;
}

struct Trainer::State {
  State(const recipe::Settings& given, const Registries& registries, TrainObserver& to)
      : settings(given),
        observer(to),
        folder(given),
        objective(given, registries, objective::Materialize::kWeights),
        train(fitted(data::training_data(given), objective)),
        total_steps(steps_of(given, train.batches_per_epoch())),
        optimizer(given, parameters_of(objective), total_steps),
        metrics(folder.path()) {
    if (given.given("data.validation")) {
      validation = std::make_unique<data::DataSource>(fitted(data::validation_data(given), objective));
    }
    for (const data::DataSource* source : sources()) {
      const data::Manifest& manifest = source->manifest();
      objective.accept_data(manifest.vocabulary, manifest.teacher_vocabulary,
                            "data.train " + given.where("data.train"));
      for (const std::string& note : source->notes()) observer.noted(note);
    }
    objective.student().model->set_checkpointing(given.enabled("train.checkpoint_activations"));
  }

  std::vector<const data::DataSource*> sources() const {
    return validation ? std::vector<const data::DataSource*>{&train, validation.get()}
                      : std::vector<const data::DataSource*>{&train};
  }
  void record(const StepRecord& record);
  void evaluate(int64_t step, TrainResult& result);
  evaluate::Evaluation measured(int64_t step);

  const recipe::Settings& settings;
  TrainObserver& observer;
  RunFolder folder;
  objective::Distillation objective;
  data::DataSource train;
  std::unique_ptr<data::DataSource> validation;
  int64_t total_steps;
  optim::Optimizer optimizer;
  metrics::MetricsLog metrics;
  bool evaluated = false;
};

Trainer::Trainer(const recipe::Settings& settings, const Registries& registries, TrainObserver& observer)
    : state_(std::make_unique<State>(settings, registries, observer)) {}
Trainer::~Trainer() = default;

const RunFolder& Trainer::folder() const { return state_->folder; }
const objective::Distillation& Trainer::objective() const { return state_->objective; }

void Trainer::State::record(const StepRecord& record) {
  observer.stepped(record);
  const UpdateResult& update = record.update;
  if (update.step.skipped) {
    observer.warned(
        fmt::format("step {}: the gradient of {} is not finite: update skipped ({} in a row, {} in all){}", record.step,
                    update.step.nonfinite, update.step.skipped_in_a_row, update.step.skipped_in_all,
                    update.step.loss_scale != 1 ? fmt::format(", loss scale {}", update.step.loss_scale) : ""));
  }
  if (record.step % settings.integer("train.log_every") != 0 && record.step != total_steps && !update.step.skipped) {
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
                               {"peak_bytes", static_cast<double>(precision::HostMemory::peak_bytes())}});
  metrics.write(record.step, values, "train");
}

evaluate::Evaluation Trainer::State::measured(int64_t step) {
  objective::Progress progress;
  // The weights that the last update used: the curriculum is where training is.
  progress.step = std::max<int64_t>(0, step - 1);
  progress.total_steps = total_steps;
  if (optimizer.has_ema()) optimizer.swap_ema();
  auto evaluation = evaluate::evaluate(objective, *validation, settings.integer("eval.batches"), progress);
  if (optimizer.has_ema()) optimizer.swap_ema();
  return evaluation;
}

void Trainer::State::evaluate(int64_t step, TrainResult& result) {
  result.last = measured(step);
  const std::string metric = settings.text("eval.best");
  const bool best = !evaluated || evaluate::better(result.last, result.best, metric);
  evaluated = true;
  if (best) {
    result.best = result.last;
    result.best_step = step;
    if (optimizer.has_ema()) optimizer.swap_ema();
    result.best_model = folder.save_student("best", objective);
    if (optimizer.has_ema()) optimizer.swap_ema();
  }
  metrics.write(step, result.last.values, "eval");
  observer.evaluated(step, result.last, best);
}

TrainResult Trainer::run(const std::atomic<bool>& stop) {
  State& s = *state_;
  TrainResult result;
  const int64_t accumulate = s.settings.integer("train.accumulate"), every = s.settings.integer("eval.every");
  const auto tokens = static_cast<double>(accumulate * s.settings.integer("data.batch_size") *
                                          s.settings.integer("data.sequence_length"));
  data::Prefetcher prefetched(s.train, 0, s.total_steps * accumulate,
                              static_cast<int>(s.settings.integer("data.prefetch")));
  const auto begin = Clock::now();
  for (int64_t step = 0; step < s.total_steps && !stop; ++step) {
    const auto step_begin = Clock::now();
    precision::HostMemory::reset_peak();
    std::vector<data::Batch> batches;
    for (int64_t i = 0; i < accumulate; ++i) batches.push_back(prefetched.next());
    StepRecord record;
    record.step = step + 1;
    record.total_steps = s.total_steps;
    record.update = run_update(s.objective, s.optimizer, batches, step, s.total_steps);
    record.seconds = seconds_since(step_begin);
    record.tokens_per_second = tokens / record.seconds;
    result.steps = step + 1;
    result.skipped = record.update.step.skipped_in_all;
    result.peak_bytes = std::max(result.peak_bytes, precision::HostMemory::peak_bytes());
    s.record(record);
    const bool last = step + 1 == s.total_steps;
    if (s.validation && !last && every > 0 && (step + 1) % every == 0) s.evaluate(step + 1, result);
  }
  result.stopped = result.steps < s.total_steps;
  if (s.validation && !result.stopped) s.evaluate(result.steps, result);
  if (s.optimizer.has_ema()) s.optimizer.swap_ema();
  result.final_model = s.folder.save_student(result.stopped ? "stopped" : "final", s.objective);
  result.seconds = seconds_since(begin);
  return result;
}

}  // namespace limbeck::loop
