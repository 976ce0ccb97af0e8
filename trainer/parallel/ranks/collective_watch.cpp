#include "trainer/parallel/ranks/collective_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <set>
#include <utility>
#include <vector>

#include "modules/errors.h"

namespace limbeck::parallel {
namespace {

constexpr auto kWatchPeriod = std::chrono::milliseconds(100), kMeetingPeriod = std::chrono::milliseconds(500);
// What was under way when a rank failed elsewhere may still end.
constexpr auto kMissedPatience = std::chrono::seconds(1);
constexpr auto kLastMeeting = std::chrono::seconds(3);

}  // namespace

// Rounds with the watches of the other ranks. Gloo's connections end with a process, however long its deadline is; one
// that only stands still keeps them.
struct CollectiveWatch::Meetings {
  explicit Meetings(std::unique_ptr<Communicator> line) : ranks(std::move(line)) {}

  void hold() {
    std::unique_lock lock(mutex);
    try {
      for (bool goes_on = true; goes_on;) {
        std::vector<int64_t> somebody_leaves{leaves ? 1 : 0};
        lock.unlock();
        ranks->all_reduce(somebody_leaves, Reduce::kMax);
        lock.lock();
        goes_on = somebody_leaves[0] == 0;
        if (goes_on) changed.wait_for(lock, kMeetingPeriod, [this] { return leaves; });
      }
    } catch (const std::exception&) {
      lock.lock();  // Gloo has raised the alarm on the board
    }
    over = true;
    changed.notify_all();
  }

  std::unique_ptr<Communicator> ranks;
  std::mutex mutex;
  std::condition_variable changed;
  bool leaves = false, over = false;
};

CollectiveWatch::CollectiveWatch(std::unique_ptr<Communicator> ranks, std::shared_ptr<Board> board, Options options)
    : board_(std::move(board)),
      options_(std::move(options)),
      meetings_(std::make_shared<Meetings>(std::move(ranks))),
      meeting_([meetings = meetings_] { meetings->hold(); }),
      watching_([this] { watch(); }) {}

CollectiveWatch::~CollectiveWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  watching_.join();
  std::unique_lock lock(meetings_->mutex);
  meetings_->leaves = true;
  meetings_->changed.notify_all();
  const bool over = meetings_->changed.wait_for(lock, kLastMeeting, [this] { return meetings_->over; });
  lock.unlock();
  // A rank that stands still would keep this one until the deadline of a rank that never came.
  if (over) {
    meeting_.join();
  } else {
    meeting_.detach();
  }
}

void CollectiveWatch::joins(const std::string& line, std::function<void()> abort) {
  const std::lock_guard lock(mutex_);
  aborts_[line] = std::move(abort);
}

void CollectiveWatch::leaves(const std::string& line) {
  const std::lock_guard lock(mutex_);
  aborts_.erase(line);
  watched_.remove_if([&](const Watched& watched) { return watched.collective->line == line; });
}

void CollectiveWatch::add(std::shared_ptr<Collective> collective) {
  const std::lock_guard lock(mutex_);
  watched_.push_back({.collective = std::move(collective)});
}

void CollectiveWatch::settle() {
  const std::lock_guard lock(mutex_);
  settled_ = true;
}

void CollectiveWatch::confirm() {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw DistributedError(failure_);
}

void CollectiveWatch::fail(const Collective& collective, const std::string& symptom) {
  confirm();  // a line that was aborted takes nothing any more: the cause was another
  take_down(collective, symptom);
  const std::lock_guard lock(mutex_);
  throw DistributedError(failure_);
}

bool CollectiveWatch::ended_well(const std::string& line, std::chrono::seconds patience) {
  std::unique_lock lock(mutex_);
  const auto ended = [&] {
    return std::none_of(watched_.begin(), watched_.end(),
                        [&](const Watched& watched) { return watched.collective->line == line; });
  };
  changed_.wait_for(lock, patience, [&] { return !failure_.empty() || ended(); });
  return failure_.empty() && ended();
}

void CollectiveWatch::watch() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kWatchPeriod, [this] { return stopped_; })) {
    if (!failure_.empty()) continue;
    std::shared_ptr<Collective> at_fault;
    std::string symptom = look(at_fault);
    if (at_fault == nullptr) {
      missed_.reset();
      continue;
    }
    lock.unlock();
    if (symptom.empty() && somebody_is_missed()) symptom = "not done, and another rank has failed or is gone";
    if (!symptom.empty()) take_down(*at_fault, symptom);
    lock.lock();
  }
}

// Of each line the first that is under way is looked at: what comes after it waits for it. `at_fault`: what goes wrong,
// or is under way.
std::string CollectiveWatch::look(std::shared_ptr<Collective>& at_fault) {
  std::set<std::string> busy;
  for (auto watched = watched_.begin(); watched != watched_.end();) {
    const std::shared_ptr<Collective> collective = watched->collective;
    if (busy.contains(collective->line)) {
      ++watched;
      continue;
    }
    const std::string symptom = look_at(*watched);
    if (!symptom.empty()) {
      at_fault = collective;
      return symptom;
    }
    if (watched->state != State::kEnded) {
      busy.insert(collective->line);
      if (at_fault == nullptr) at_fault = collective;
      ++watched;
      continue;
    }
    board_->ended(collective->line, collective->number, collective->what);
    watched = watched_.erase(watched);
    changed_.notify_all();
  }
  return "";
}

std::string CollectiveWatch::look_at(Watched& watched) const {
  State state = State::kQueued;
  try {
    state = watched.collective->look();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  }
  const auto now = Clock::now();
  if (state != watched.state) watched.state = state, watched.since = now;
  const double timeout_s = settled_ ? options_.timeout_s : options_.first_timeout_s;
  if (state != State::kRuns || std::chrono::duration<double>(now - watched.since).count() <= timeout_s) return "";
  return fmt::format("not done within {:.0f} s (parallel.{})", timeout_s, settled_ ? "timeout" : "first_timeout");
}

bool CollectiveWatch::somebody_is_missed() {
  const auto now = Clock::now();
  if (!missed_ && (!asked_ || now - *asked_ > kMeetingPeriod)) {
    asked_ = now;
    if (board_->alarmed()) missed_ = now;
  }
  return missed_ && now - *missed_ > kMissedPatience;
}

void CollectiveWatch::take_down(const Collective& collective, const std::string& symptom) {
  std::string text = board_->blame(collective.line, collective.number, collective.what, symptom);
  try {
    const std::string trace = options_.dump_trace ? options_.dump_trace() : "";
    if (!trace.empty()) text += fmt::format("; the last operations are in {}", trace);
  } catch (const std::exception&) {
    // The message matters more.
  }
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) return;
  failure_ = text;  // before the abort: who goes on by it must find what there is to confirm
  for (const auto& [line, abort] : aborts_) {
    try {
      abort();
    } catch (const std::exception&) {
      // The others are to end all the same.
    }
  }
  changed_.notify_all();
}

}  // namespace limbeck::parallel
