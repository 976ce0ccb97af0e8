#include "trainer/loop/trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>

#include "kernels/adamw/adamw.h"
#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/memory/device_memory.h"
#include "modules/precision/casts.h"
#include "trainer/loop/trainer_state.h"
#include "trainer/metrics/phase_clock.h"
#include "trainer/parallel/ranks/together.h"

namespace limbeck::loop {

namespace {

uint32_t digest_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.detach().cpu().contiguous();
  return io::crc32c(plain.const_data_ptr(), plain.nbytes());
}

// A name whose part is not finite, or "". A device is waited for once.
std::string first_spoiled(const std::vector<optim::StateTensor>& tensors) {
  const at::NoGradGuard no_gradient;
  std::vector<at::Tensor> sums;
  std::vector<const std::string*> names;
  for (const optim::StateTensor& tensor : tensors) {
    if (tensor.part.numel() == 0) continue;
    sums.push_back(kernels::square_sums(tensor.part.view({-1})).sum());
    names.push_back(&tensor.name);
  }
  if (sums.empty()) return "";
  const at::Tensor here = precision::move(at::stack(sums), at::kCPU);
  const double* sum = here.const_data_ptr<double>();
  const auto spoiled = std::find_if(sum, sum + here.numel(), [](double one) { return !std::isfinite(one); });
  return spoiled == sum + here.numel() ? "" : *names[static_cast<size_t>(spoiled - sum)];
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
  std::map<size_t, std::string> by_first;  // rank of the group: in the order of ranks, whatever their digests are
  for (const auto& [digest, group] : holders) {
    if (majority && &group == most) continue;
    by_first[group.front()] = fmt::format("rank{} {}", group.size() > 1 ? "s" : "", fmt::join(group, ", "));
  }
  std::vector<std::string> groups;
  for (const auto& [first, group] : by_first) groups.push_back(group);
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
const session::Session& Trainer::session() const { return *state_->session; }

// One sum over the ranks: what the update divides by, and what any rank wants.
Trainer::State::Boundary Trainer::State::meet(bool wants_stop) {
  const bool gives_up = saver->failures_in_a_row() >= options.checkpoint.max_failures;
  const bool saves = leads() && saver->plan().due(step() + 1, seconds_since(begin));
  const std::vector<int64_t> votes = session->meet({wants_stop, saves, gives_up});
  return {.stop = votes[0] > 0, .save = votes[1] > 0, .give_up = votes[2] > 0};
}

void Trainer::State::evaluate() {
  session::RunRecord& record = session->record();
  record.last_step = step();
  record.last = session->evaluate();
  const bool best = !record.evaluated || evaluate::better(record.last, record.best, options.evaluation.best);
  record.evaluated = true;
  if (best) {
    record.best = record.last;
    record.best_step = step();
    // The best model may come again, and the checkpoint holds its weights: a full disk does not end the run here.
    try {
      best_model = save_model(kBest);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kIo) throw;
      warn(
          fmt::format("step {}: the best model so far could not be saved, training goes on: {}", step(), error.what()));
    }
  }
  log(step(), record.last.values, "eval");
  if (leads()) observer.evaluated(step(), record.last, best);
}

// A function of saved numbers that are the same on all ranks: a resumed run decides as the uninterrupted one.
bool Trainer::State::patience_is_over() const {
  const EvaluationOptions& e = options.evaluation;
  const session::RunRecord& record = session->record();
  return e.patience > 0 && record.evaluated && record.last_step - record.best_step >= e.patience * e.every;
}

std::filesystem::path Trainer::State::save_model(const std::string& name) {
  session->save_model(folder->path() / name);
  return folder->path() / name;
}

void Trainer::State::save(bool wait) {
  if (!saver->plan().enabled()) return;
  session->record().seconds = earlier_s + seconds_since(begin);
  auto request = session->checkpoint();
  const std::string spoiled = first_spoiled(session->optimizer().weight_tensors());
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
                    step(), *first, folder->checkpoints().string(), step()));
  });
}

// Silent corruption: ranks that hold the same weights must hold the same bits.
void Trainer::State::compare_replicas() const {
  const int64_t every = options.parallel.check_replicas;
  if (every == 0 || ranks.size() == 1 || step() % every != 0 || options.parallel.zero >= 3) return;
  session->optimizer().shares().gather_all();
  nlohmann::json mine = nlohmann::json::object();
  for (const auto& [name, tensor] : session->objective().kept_tensors()) mine[name] = digest_of(tensor);
  std::vector<nlohmann::json> all;
  for (const std::string& text : ranks.all_gather(mine.dump())) all.push_back(nlohmann::json::parse(text));
  for (const auto& [name, digest] : all[0].items()) {
    std::map<uint32_t, std::vector<size_t>> holders;
    for (size_t rank = 0; rank < all.size(); ++rank) holders[all[rank].at(name).get<uint32_t>()].push_back(rank);
    if (holders.size() == 1) continue;
    parallel::throw_disagreement(
        ranks, fmt::format("after step {} the ranks hold different {}: {}; go on from the last checkpoint without it",
                           step(), name, odd_ones(holders)));
  }
}

TrainResult Trainer::State::result() const {
  const session::RunRecord& record = session->record();
  TrainResult result;
  result.steps = step();
  result.seconds = earlier_s + seconds_since(begin);
  result.last = record.last;
  result.best = record.best;
  result.best_step = record.best_step;
  result.last_step = record.last_step;
  result.best_model = best_model;
  result.peak_bytes = record.peak_bytes;
  result.skipped = static_cast<int64_t>(session->optimizer().state_scalars().at("skipped_in_all"));
  return result;
}

// Since the update began. What graphs hold counts as no tensor where none lies, and others cannot have it.
int64_t Trainer::State::peak_bytes() const {
  return memory::DeviceMemory(session->objective().device()).peak_bytes() + session->graph_bytes();
}

// One update and what is due after it; false: all ranks stop before it.
bool Trainer::State::advance(bool wants_stop) {
  const double waited_before = ranks.time().waited_s;
  memory::DeviceMemory(session->objective().device()).reset_peak();
  std::optional<metrics::PhaseClock> clock;
  if (options.shows_phases) clock.emplace();
  if (energy) energy->begin_step();
  const Boundary boundary = meet(wants_stop);
  if (boundary.stop) return false;
  if (boundary.give_up) {
    parallel::alike(ranks, [&] {
      throw IoError(fmt::format("{} checkpoints in a row failed (checkpoint.max_failures): {}",
                                options.checkpoint.max_failures, saver->last_failure()));
    });
  }
  StepRecord record{session->step(), {}, 0};
  if (energy) energy->end_step();
  session->record().peak_bytes = std::max(session->record().peak_bytes, peak_bytes());
  if (clock) {
    record.phases = clock->seconds();
    record.peak_bytes = peak_bytes();
    clock.reset();
  }
  this->record(record, ranks.time().waited_s - waited_before);
  compare_replicas();
  const bool last = step() == session->total_steps();
  const int64_t every = options.evaluation.every;
  if (session->has_validation() && (last || (every > 0 && step() % every == 0))) evaluate();
  take_outcomes();
  if (boundary.save && !last) save(/*wait=*/false);
  return true;
}

TrainResult Trainer::run(const std::atomic<bool>& stop) {
  State& s = *state_;
  s.begin = std::chrono::steady_clock::now();
  const auto is_done = [&] { return s.step() >= s.session->total_steps(); };
  bool stopped = false;
  while (!stopped && !is_done() && !s.patience_is_over()) stopped = !s.advance(stop);
  const bool early = !stopped && !is_done();
  if (early) {
    s.note(fmt::format(
        "stopped early after step {}: no better evaluation since step {} (train.early_stopping_patience = {})",
        s.step(), s.session->record().best_step, s.options.evaluation.patience));
  }
  // A run that goes on with fewer steps than are done, or from a stop at its last one, has none of its end.
  if (s.session->has_validation() && !stopped && s.session->record().last_step != s.step()) s.evaluate();
  s.saver->drain();
  s.take_outcomes();
  if (s.saved_step != s.step()) s.save(/*wait=*/true);
  s.take_outcomes();
  const auto model = s.save_model(stopped ? kStopped : kFinal);
  TrainResult result = s.result();
  result.final_model = model;
  result.stopped = stopped;
  result.early = early;
  return result;
}

}  // namespace limbeck::loop
