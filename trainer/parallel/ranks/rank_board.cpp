#include "trainer/parallel/ranks/rank_board.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "modules/errors.h"

namespace limbeck::parallel {
namespace {

constexpr auto kBeat = std::chrono::milliseconds(500), kPatience = std::chrono::milliseconds(1800),
               kLookAgain = std::chrono::milliseconds(20), kLongestStay = std::chrono::milliseconds(6000);
// An operation that fails ends the process in less.
constexpr auto kWayOut = std::chrono::seconds(4);

constexpr const char* kAlarm = "board/alarm";

std::string key_of(int rank) { return "board/" + std::to_string(rank); }

}  // namespace

struct Board::Post {
  bool there = false, under_way = false, left = false;
  int64_t beats = 0, number = 0;
  std::string me, what, farewell;
  nlohmann::json lines;

  void look_at(const std::string& line) {
    if (!lines.is_object() || !lines.contains(line)) return;
    number = lines[line][0].get<int64_t>();
    what = lines[line][1].get<std::string>();
    under_way = !what.empty() && what.front() == '>';
    if (under_way) what.erase(0, 1);
  }
};

Board::Board(c10::intrusive_ptr<c10d::Store> store, const BoardOptions& options)
    : store_(std::move(store)), options_(options) {
  post();
  thread_ = std::thread([this] { beat(); });
}

Board::~Board() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = left_ = true;
  }
  changed_.notify_all();
  thread_.join();
  post();
  if (options_.with_first && options_.rank == 0) see_others_off();
}

void Board::see_others_off() {
  using Clock = std::chrono::steady_clock;
  std::map<int, std::pair<int64_t, Clock::time_point>> here;  // rank -> its last beat, and when that came
  for (int rank = 1; rank < options_.size; ++rank) here[rank] = {-1, Clock::now()};
  const auto deadline = Clock::now() + kLongestStay;
  try {
    while (!here.empty() && Clock::now() < deadline) {
      for (auto entry = here.begin(); entry != here.end();) {
        const Post post = read(entry->first);
        auto& [beats, when] = entry->second;
        if (post.there && post.beats != beats) beats = post.beats, when = Clock::now();
        entry = post.left || Clock::now() - when > kPatience ? here.erase(entry) : std::next(entry);
      }
      if (!here.empty()) std::this_thread::sleep_for(kLookAgain);
    }
  } catch (const std::exception&) {
    // Nobody can read it any more.
  }
}

bool Board::post() {
  nlohmann::json text;
  {
    const std::lock_guard lock(mutex_);
    text = {{"me", options_.me},
            {"beats", ++beats_},
            {"farewell", farewell_},
            {"left", left_},
            {"lines", nlohmann::json::object()}};
    for (const auto& [line, last] : lines_) text["lines"][line] = {last.first, last.second};
  }
  const std::string bytes = text.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  try {
    store_.set(key_of(options_.rank), bytes);
  } catch (const IoError&) {
    // It does not answer now: the operations that need it say so.
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

void Board::look_for_first(bool reached) {
  if (!options_.with_first || options_.rank == 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (!reached) {
    if (!gone_since_) gone_since_ = now;
    if (!first_left_ && now - *gone_since_ > kWayOut) end_process();
    return;
  }
  gone_since_.reset();
  try {
    const Post first = read(0);
    first_left_ = first.left;
    first_farewell_ = first.farewell;
  } catch (const std::exception&) {
    // The next beat finds the same.
  }
}

void Board::end_process() {
  std::string under_way = "between operations";
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [line, last] : lines_) {
      if (last.second.starts_with(">")) {
        under_way = fmt::format("in {} #{} (line {})", last.second.substr(1), last.first, line);
      }
    }
  }
  const std::string why = first_farewell_.empty() ? "is gone" : "ended: " + first_farewell_;
  fmt::print(stderr, "limbeck: {} {}, and the store of the ranks with it; rank {} is left behind {}\n", options_.keeper,
             why, options_.rank, under_way);
  std::fflush(nullptr);
  std::_Exit(static_cast<int>(ExitCode::kDistributed));
}

void Board::beat() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kBeat, [this] { return stopped_; })) {
    lock.unlock();
    look_for_first(post());
    lock.lock();
  }
}

void Board::begins(const std::string& line, int64_t number, const std::string& what) {
  const std::lock_guard lock(mutex_);
  lines_[line] = {number, ">" + what};
}

void Board::ended(const std::string& line, int64_t number, const std::string& what) {
  const std::lock_guard lock(mutex_);
  auto& last = lines_[line];
  if (last.first <= number) last = {number, what};  // else the line has more under way, begun since
}

void Board::farewell(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    farewell_ = reason;
  }
  post();
  raise_alarm();
}

void Board::raise_alarm() {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(alarmed_, true)) return;
  }
  try {
    store_.set(kAlarm, std::to_string(options_.rank));
  } catch (const std::exception&) {
    // Who cannot be told finds out by the deadline.
  }
}

bool Board::alarmed() {
  {
    const std::lock_guard lock(mutex_);
    if (alarmed_) return true;
  }
  try {
    return !store_.get(kAlarm).empty();
  } catch (const std::exception&) {
    return false;  // a store that is gone is the beat's to see
  }
}

Board::Post Board::read(int rank) {
  Post found;
  const auto json = nlohmann::json::parse(store_.get(key_of(rank)), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return found;
  found.there = true;
  found.beats = json.value("beats", int64_t{0});
  found.me = json.value("me", "");
  found.farewell = json.value("farewell", "");
  found.left = json.value("left", false);
  found.lines = json.value("lines", nlohmann::json::object());
  return found;
}

std::string Board::blame(const std::string& line, int64_t number, const std::string& what, const std::string& symptom) {
  const std::string here =
      fmt::format("{} #{} (line {}) failed on rank {}: {}", what, number, line, options_.rank, symptom);
  raise_alarm();
  std::vector<std::string> farewells, gone, late;
  try {
    std::vector<Post> before;
    for (int rank = 0; rank < options_.size; ++rank) before.push_back(read(rank));
    std::this_thread::sleep_for(kPatience);
    for (int rank = 0; rank < options_.size; ++rank) {
      if (rank == options_.rank) continue;
      Post now = read(rank);
      now.look_at(line);
      const std::string who = now.there ? fmt::format("rank {} ({})", rank, now.me) : fmt::format("rank {}", rank);
      const std::string last = now.number > 0 ? fmt::format("{} #{}", now.what, now.number) : "nothing";
      if (!now.farewell.empty()) {
        farewells.push_back(fmt::format("{} ended: {}", who, now.farewell));
      } else if (!now.there || now.beats == before[static_cast<size_t>(rank)].beats) {
        gone.push_back(
            fmt::format("{} is gone or stands still{}", who,
                        now.number == 0 ? "" : fmt::format(", {} {}", now.under_way ? "in" : "after", last)));
      } else if (now.number < number) {
        late.push_back(fmt::format("{} lives, but never came to {} #{}: it is {} {}", who, what, number,
                                   now.under_way ? "in" : "past", last));
      } else if (now.number == number && now.under_way && now.what != what) {
        late.push_back(fmt::format("{} does {} there instead", who, last));
      }
    }
  } catch (const std::exception&) {
    return fmt::format("{} is gone or stands still, and the store of the ranks with it; {}", options_.keeper, here);
  }
  // Who fell silent without a word is the cause; those who said farewell mostly followed.
  for (const auto* found : {&gone, &farewells, &late}) {
    if (!found->empty()) return fmt::format("{}; {}", fmt::join(*found, "; "), here);
  }
  return here;
}

}  // namespace limbeck::parallel
