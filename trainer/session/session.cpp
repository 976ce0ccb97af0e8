#include "trainer/session/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "modules/errors.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/metrics/phase_clock.h"
#include "trainer/parallel/ranks/together.h"
#include "trainer/session/saved_student.h"
#include "trainer/session/session_state.h"

namespace limbeck::session {

Session::Session(const SessionRequest& request) : state_(std::make_unique<State>(request)) {}
Session::~Session() = default;

int64_t Session::total_steps() const { return state_->total_steps; }
bool Session::has_validation() const { return state_->validation != nullptr; }
const objective::Distillation& Session::objective() const { return *state_->objective; }
optim::Optimizer& Session::optimizer() { return *state_->optimizer; }
const RunState& Session::run() const { return state_->run; }
RunRecord& Session::record() { return state_->run.record; }
int64_t Session::graph_bytes() const { return state_->graphs ? state_->graphs->held_bytes() : 0; }

std::vector<data::Batch> Session::State::next_batches() {
  const metrics::InPhase phase("data");
  if (!prefetched) {
    prefetched.emplace([source = train.get(), dealt = deal](int64_t i) { return source->batch(dealt.number_of(i)); },
                       run.step * deal.own, total_steps * deal.own, options.prefetch, objective->device());
  }
  std::vector<data::Batch> batches;
  for (int64_t i = 0; i < deal.own; ++i) batches.push_back(prefetched->next());
  return batches;
}

// One sum over the ranks: what the update divides by, whether all have their batches, and what the driver asks.
std::vector<int64_t> Session::meet(std::vector<int64_t> votes) {
  State& s = *state_;
  if (s.run.step >= s.total_steps) throw std::logic_error("a session was to go on after its last step");
  if (s.upcoming) throw std::logic_error("a session was to meet twice before one step");
  Upcoming next;
  next.begin = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  try {
    next.batches = s.next_batches();
  } catch (const std::exception&) {
    failure = std::current_exception();  // the others learn it where they meet
  }
  next.progress = update_progress(next.batches, s.run.step, s.total_steps, s.optimizer->loss_scale());
  votes.insert(votes.end(), {next.progress.update_targets, next.progress.update_sequences, failure != nullptr});
  s.ranks.all_reduce(votes, parallel::Reduce::kSum);
  if (votes.back() > 0) {
    parallel::together(s.ranks, [&] {
      if (failure) std::rethrow_exception(failure);
    });
  }
  votes.pop_back();
  next.progress.update_sequences = votes.back();
  votes.pop_back();
  next.progress.update_targets = votes.back();
  votes.pop_back();
  s.upcoming = std::move(next);
  return votes;
}

StepResult Session::step() {
  State& s = *state_;
  if (!s.upcoming) meet();
  const Upcoming now = *std::exchange(s.upcoming, std::nullopt);
  StepResult result;
  result.step = s.run.step + 1;
  result.total_steps = s.total_steps;
  result.update = run_update(*s.objective, *s.optimizer, now.batches, now.progress, s.ranks, s.graphs.get());
  s.say_what_is_not_recorded();
  const int64_t tokens = s.deal.micro_batches * s.options.sequences * s.options.tokens_per_sequence;
  s.run.step = result.step;
  s.run.tokens += tokens;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - now.begin).count();
  result.tokens_per_second = static_cast<double>(tokens) / result.seconds;
  if (!std::exchange(s.settled, true)) s.ranks.settle();
  return result;
}

void Session::State::say_what_is_not_recorded() {
  if (!graphs || said_what_is_not_recorded || graphs->without_place() == 0) return;
  said_what_is_not_recorded = true;
  note(fmt::format(
      "train.cuda_graphs = on: step {}: micro-batches are of more than {} kinds (widths, numbers of documents, loss "
      "scales); those that come seldom run without a graph, with the same bits: data.packing = packed makes all rows "
      "equally wide",
      run.step + 1, GraphPlaces::kMost));
}

void Session::State::with_average(const std::function<void()>& body) {
  if (!optimizer->has_ema()) return body();
  optimizer->swap_ema();
  try {
    body();
  } catch (const Error& error) {
    if (error.code() == ExitCode::kIo) optimizer->swap_ema();  // a full disk ends no run
    throw;
  }
  optimizer->swap_ema();
}

evaluate::Evaluation Session::evaluate(const std::function<void(int64_t, int64_t)>& tick) {
  State& s = *state_;
  if (!s.validation) throw std::logic_error("a session without data.validation was to evaluate");
  objective::Progress progress;
  // The weights that the last update used: the curriculum is where training is.
  progress.step = std::max<int64_t>(0, s.run.step - 1);
  progress.total_steps = s.total_steps;
  evaluate::Evaluation found;
  s.with_average([&] {
    found = evaluate::evaluate(*s.objective, *s.validation, s.options.evaluated.of(s.validation->batches_per_epoch()),
                               progress, s.ranks, tick);
  });
  return found;
}

void Session::save_model(const std::filesystem::path& folder) {
  State& s = *state_;
  const auto save = [&](const parallel::ParameterShares::Fetch& fetch) {
    save_student(*s.objective, folder.has_filename() ? folder : folder.parent_path(), s.tokenizer, fetch);
  };
  s.with_average([&] {
    try {
      parallel::together(s.ranks, [&] { s.optimizer->shares().lend(save); });
    } catch (const Error&) {
      s.optimizer->shares().release();
      throw;
    }
    s.optimizer->shares().release();
  });
}

checkpoint::SaveRequest Session::checkpoint() const {
  return save_request(state_->run, *state_->objective, *state_->optimizer, state_->leads());
}

std::filesystem::path Session::save_checkpoint(const std::filesystem::path& folder) {
  State& s = *state_;
  if (!s.checkpoint_line) s.checkpoint_line = s.ranks.line("session");
  return checkpoint::Saver(folder, *s.checkpoint_line).save(checkpoint()).path;
}

void Session::restore(const std::filesystem::path& checkpoint) {
  state_->upcoming.reset();
  state_->prefetched.reset();
  state_->go_on_from(checkpoint, {});
}

}  // namespace limbeck::session
