#include "trainer/loop/trainer.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <map>
#include <optional>

#include "kernels/adamw/adamw.h"
#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/memory/device_memory.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/metrics/phase_clock.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::loop {

namespace {

uint32_t digest_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.detach().cpu().contiguous();
  return io::crc32c(plain.const_data_ptr(), plain.nbytes());
}

// A name whose part is not finite, or "".
std::string first_spoiled(const std::vector<optim::StateTensor>& tensors) {
  const at::NoGradGuard no_gradient;
  for (const optim::StateTensor& tensor : tensors) {
    if (tensor.part.numel() == 0) continue;
    if (!std::isfinite(kernels::square_sums(tensor.part.view({-1})).sum().item<double>())) return tensor.name;
  }
  return "";
}

// Who is wrong, by which ranks hold which bits: those outside of a majority, where there is one.
std::string odd_ones(const std::map<uint32_t, std::vector<size_t>>& holders) {
  size_t ranks = 0;
  const std::vector<size_t>* most = nullptr;
  for (const auto& [digest, group] : holders) {
    ranks += group.size();
    if (most == nullptr || group.size() > most->size()) most = &group;
  }
  const bool majority = 2 * most->size() > ranks;
  std::vector<std::string> groups;
  for (const auto& [digest, group] : holders) {
    if (majority && &group == most) continue;
    groups.push_back(fmt::format("rank{} {}", group.size() > 1 ? "s" : "", fmt::join(group, ", ")));
  }
  if (majority) {
    const bool several = holders.size() > 2 || groups.front().starts_with("ranks");
    return fmt::format("{} differ{} from the others: suspect is the memory or processor there",
                       fmt::join(groups, " and "), several ? "" : "s");
  }
  return fmt::format(
      "{} differ, and no majority says which is right: suspect is the memory or processor of one of them",
      fmt::join(groups, " and "));
}

}  // namespace

Trainer::Trainer(const TrainRequest& request) : state_(std::make_unique<State>(request)) {}
Trainer::~Trainer() = default;

const RunFolder& Trainer::folder() const { return *state_->folder; }
const objective::Distillation& Trainer::objective() const { return *state_->objective; }

data::Prefetcher Trainer::State::batches_from(int64_t step, int64_t end) const {
  return {[source = train.get(), dealt = deal](int64_t i) { return source->batch(dealt.number_of(i)); },
          step * deal.own, end * deal.own, options.prefetch, objective->device()};
}

std::vector<data::Batch> Trainer::State::own_batches(data::Prefetcher& prefetched) const {
  std::vector<data::Batch> batches;
  for (int64_t i = 0; i < deal.own; ++i) batches.push_back(prefetched.next());
  return batches;
}

// One sum over the ranks: what the update divides by, and what any rank wants.
Trainer::State::Boundary Trainer::State::meet(const std::vector<data::Batch>& batches, bool wants_stop,
                                              const std::exception_ptr& failure) {
  objective::Progress progress = update_progress(batches, run.step, total_steps, optimizer->loss_scale());
  const bool gives_up = saver->failures_in_a_row() >= options.checkpoint.max_failures;
  const bool saves = leads() && saver->plan().due(run.step + 1, seconds_since(begin));
  std::vector<int64_t> numbers = {progress.update_targets, progress.update_sequences, wants_stop, saves, gives_up,
                                  failure != nullptr};
  ranks.all_reduce(numbers, parallel::Reduce::kSum);
  if (numbers[5] > 0) {
    parallel::together(ranks, [&] {
      if (failure) std::rethrow_exception(failure);
    });
  }
  progress.update_targets = numbers[0];
  progress.update_sequences = numbers[1];
  return {.stop = numbers[2] > 0, .save = numbers[3] > 0, .give_up = numbers[4] > 0, .progress = progress};
}

StepRecord Trainer::State::update(const std::vector<data::Batch>& batches, const Boundary& boundary) {
  StepRecord record;
  record.step = boundary.progress.step + 1;
  record.total_steps = total_steps;
  record.update = run_update(*objective, *optimizer, batches, boundary.progress, ranks);
  return record;
}

void Trainer::State::evaluate(int64_t step) {
  objective::Progress progress;
  // The weights that the last update used: the curriculum is where training is.
  progress.step = std::max<int64_t>(0, step - 1);
  progress.total_steps = total_steps;
  if (optimizer->has_ema()) optimizer->swap_ema();
  run.last_step = step;
  run.last = evaluate::evaluate(*objective, *validation, options.evaluation.batches, progress, ranks);
  const bool best = !run.evaluated || evaluate::better(run.last, run.best, options.evaluation.best);
  run.evaluated = true;
  if (best) {
    run.best = run.last;
    run.best_step = step;
    // The best model may come again, and the checkpoint holds its weights: a full disk does not end the run here.
    try {
      best_model = save_model(kBest);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kIo) throw;
      optimizer->shares().release();
      warn(fmt::format("step {}: the best model so far could not be saved, training goes on: {}", step, error.what()));
    }
  }
  if (optimizer->has_ema()) optimizer->swap_ema();
  log(step, run.last.values, "eval");
  if (leads()) observer.evaluated(step, run.last, best);
}

// A function of saved numbers that are the same on all ranks: a resumed run decides as the uninterrupted one.
bool Trainer::State::patience_is_over() const {
  const EvaluationOptions& e = options.evaluation;
  return e.patience > 0 && run.evaluated && run.last_step - run.best_step >= e.patience * e.every;
}

std::filesystem::path Trainer::State::save_model(const std::string& name) {
  parallel::together(ranks, [&] {
    optimizer->shares().lend(
        [&](const parallel::ParameterShares::Fetch& fetch) { folder->save_student(name, *objective, fetch); });
  });
  optimizer->shares().release();
  return folder->path() / name;
}

void Trainer::State::save(bool wait) {
  if (!saver->plan().enabled()) return;
  run.seconds = earlier_s + seconds_since(begin);
  auto request = save_request(run, *objective, *optimizer, leads());
  const std::string spoiled = first_spoiled(optimizer->weight_tensors());
  std::vector<int64_t> votes = {spoiled.empty() ? 0 : 1};
  ranks.all_reduce(votes, parallel::Reduce::kMax);
  saver->plan().saved(seconds_since(begin));
  if (votes[0] == 0) return saver->save(std::move(request), wait);
  request.prefix = checkpoint::kDivergedPrefix;
  saver->save(std::move(request), /*wait=*/true);
  take_outcomes();
  const auto names = ranks.all_gather(spoiled);
  const auto first = std::find_if(names.begin(), names.end(), [](const std::string& name) { return !name.empty(); });
  parallel::alike(ranks, [&] {
    throw NumericError(
        fmt::format("step {}: {} is not finite; the state is kept aside as {}/diverged-{:08}, and the last "
                    "good checkpoint is as it was: lower optim.learning_rate, or look at the data of the "
                    "steps before",
                    run.step, *first, folder->checkpoints().string(), run.step));
  });
}

// Silent corruption: ranks that hold the same weights must hold the same bits.
void Trainer::State::compare_replicas(int64_t step) const {
  const int64_t every = options.parallel.check_replicas;
  if (every == 0 || ranks.size() == 1 || step % every != 0 || options.parallel.zero >= 3) return;
  optimizer->shares().gather_all();
  nlohmann::json mine = nlohmann::json::object();
  for (const auto& [name, tensor] : objective->kept_tensors()) mine[name] = digest_of(tensor);
  std::vector<nlohmann::json> all;
  for (const std::string& text : ranks.all_gather(mine.dump())) all.push_back(nlohmann::json::parse(text));
  for (const auto& [name, digest] : all[0].items()) {
    std::map<uint32_t, std::vector<size_t>> holders;
    for (size_t rank = 0; rank < all.size(); ++rank) holders[all[rank].at(name).get<uint32_t>()].push_back(rank);
    if (holders.size() == 1) continue;
    parallel::throw_disagreement(
        ranks, fmt::format("after step {} the ranks hold different {}: {}; go on from the last checkpoint without it",
                           step, name, odd_ones(holders)));
  }
}

TrainResult Trainer::State::result() const {
  TrainResult result;
  result.steps = run.step;
  result.seconds = earlier_s + seconds_since(begin);
  result.last = run.last;
  result.best = run.best;
  result.best_step = run.best_step;
  result.last_step = run.last_step;
  result.best_model = best_model;
  result.peak_bytes = run.peak_bytes;
  result.skipped = static_cast<int64_t>(optimizer->state_scalars().at("skipped_in_all"));
  return result;
}

TrainResult Trainer::run(const std::atomic<bool>& stop) {
  State& s = *state_;
  const int64_t every = s.options.evaluation.every, first = s.run.step;
  const int64_t tokens = s.deal.micro_batches * s.options.sequences * s.options.tokens_per_sequence;
  data::Prefetcher prefetched = s.batches_from(first, s.total_steps);
  const memory::DeviceMemory on_device(s.objective->device());
  s.begin = std::chrono::steady_clock::now();
  bool stopped = false;
  while (s.run.step < s.total_steps && !s.patience_is_over()) {
    const auto step_begin = std::chrono::steady_clock::now();
    const double waited_before = s.ranks.time().waited_s;
    on_device.reset_peak();
    std::optional<metrics::PhaseClock> clock;
    if (s.options.shows_phases) clock.emplace();
    std::vector<data::Batch> batches;
    std::exception_ptr failure;
    try {
      const metrics::InPhase phase("data");
      batches = s.own_batches(prefetched);
    } catch (const std::exception&) {
      failure = std::current_exception();  // the others learn it where they meet
    }
    const State::Boundary boundary = s.meet(batches, stop, failure);
    stopped = boundary.stop;
    if (stopped) break;
    if (boundary.give_up) {
      parallel::alike(s.ranks, [&] {
        throw IoError(fmt::format("{} checkpoints in a row failed (checkpoint.max_failures): {}",
                                  s.options.checkpoint.max_failures, s.saver->last_failure()));
      });
    }
    StepRecord record = s.update(batches, boundary);
    s.run.step = record.step;
    s.run.tokens += tokens;
    record.seconds = seconds_since(step_begin);
    record.tokens_per_second = static_cast<double>(tokens) / record.seconds;
    s.run.peak_bytes = std::max(s.run.peak_bytes, on_device.peak_bytes());
    if (clock) {
      record.phases = clock->seconds();
      record.peak_bytes = on_device.peak_bytes();
      clock.reset();
    }
    s.record(record, s.ranks.time().waited_s - waited_before);
    if (s.run.step == first + 1) s.ranks.settle();
    s.compare_replicas(s.run.step);
    const bool last = s.run.step == s.total_steps;
    if (s.validation && (last || (every > 0 && s.run.step % every == 0))) s.evaluate(s.run.step);
    s.take_outcomes();
    if (boundary.save && !last) s.save(/*wait=*/false);
  }
  if (!stopped && s.run.step < s.total_steps) {
    s.note(fmt::format(
        "stopped early after step {}: no better evaluation since step {} (train.early_stopping_patience = {})",
        s.run.step, s.run.best_step, s.options.evaluation.patience));
  }
  // A run that goes on with fewer steps than are done, or from a stop at its last one, has none of its end.
  if (s.validation && !stopped && s.run.last_step != s.run.step) s.evaluate(s.run.step);
  s.saver->drain();
  s.take_outcomes();
  if (s.saved_step != s.run.step) s.save(/*wait=*/true);
  s.take_outcomes();
  if (s.optimizer->has_ema()) s.optimizer->swap_ema();
  const auto model = s.save_model(stopped ? kStopped : kFinal);
  TrainResult result = s.result();
  result.final_model = model;
  result.stopped = stopped;
  result.early = !stopped && s.run.step < s.total_steps;
  return result;
}

}  // namespace limbeck::loop
