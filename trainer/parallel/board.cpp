#include "trainer/parallel/board.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>

namespace limbeck::parallel {
namespace {

constexpr auto kBeat = std::chrono::milliseconds(500), kPatience = std::chrono::milliseconds(1800);

std::string key_of(int rank) { return "board/" + std::to_string(rank); }

}  // namespace

struct Board::Post {
  bool there = false, under_way = false;
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

Board::Board(c10::intrusive_ptr<c10d::Store> store, int rank, int size, const std::string& me)
    : store_(std::move(store)), rank_(rank), size_(size), me_(me) {
  post();
  thread_ = std::thread([this] { beat(); });
}

Board::~Board() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Board::post() {
  nlohmann::json text;
  {
    const std::lock_guard lock(mutex_);
    text = {{"me", me_}, {"beats", ++beats_}, {"farewell", farewell_}, {"lines", nlohmann::json::object()}};
    for (const auto& [line, last] : lines_) text["lines"][line] = {last.first, last.second};
  }
  const std::string bytes = text.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::lock_guard lock(store_mutex_);
  try {
    store_->set(key_of(rank_), std::vector<uint8_t>(bytes.begin(), bytes.end()));
  } catch (const std::exception&) {
    // The store is gone: the operations that need it say so.
  }
}

void Board::beat() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kBeat, [this] { return stopped_; })) {
    lock.unlock();
    post();
    lock.lock();
  }
}

void Board::begins(const std::string& line, int64_t number, const std::string& what) {
  const std::lock_guard lock(mutex_);
  lines_[line] = {number, ">" + what};
}

void Board::ended(const std::string& line, int64_t number, const std::string& what) {
  const std::lock_guard lock(mutex_);
  lines_[line] = {number, what};
}

void Board::farewell(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    farewell_ = reason;
  }
  post();
}

Board::Post Board::read(int rank) {
  Post found;
  const std::lock_guard lock(store_mutex_);
  if (!store_->check({key_of(rank)})) return found;
  const auto bytes = store_->get(key_of(rank));
  const auto json = nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return found;
  found.there = true;
  found.beats = json.value("beats", int64_t{0});
  found.me = json.value("me", "");
  found.farewell = json.value("farewell", "");
  found.lines = json.value("lines", nlohmann::json::object());
  return found;
}

std::string Board::blame(const std::string& line, int64_t number, const std::string& what, const std::string& symptom) {
  const std::string here = fmt::format("{} #{} (line {}) failed on rank {}: {}", what, number, line, rank_, symptom);
  std::vector<std::string> farewells, gone, late;
  try {
    std::vector<Post> before;
    for (int rank = 0; rank < size_; ++rank) before.push_back(read(rank));
    std::this_thread::sleep_for(kPatience);
    for (int rank = 0; rank < size_; ++rank) {
      if (rank == rank_) continue;
      Post now = read(rank);
      now.look_at(line);
      const std::string who = now.there ? fmt::format("rank {} ({})", rank, now.me) : fmt::format("rank {}", rank);
      const std::string last = now.number > 0 ? fmt::format("{} #{}", now.what, now.number) : "nothing";
      if (!now.farewell.empty()) {
        farewells.push_back(fmt::format("{} ended: {}", who, now.farewell));
      } else if (!now.there || now.beats == before[static_cast<size_t>(rank)].beats) {
        gone.push_back(fmt::format("{} is gone, its last operation was {}", who, last));
      } else if (now.number < number) {
        late.push_back(fmt::format("{} lives, but never came to {} #{}: it is {} {}", who, what, number,
                                   now.under_way ? "in" : "past", last));
      } else if (now.number == number && now.under_way && now.what != what) {
        late.push_back(fmt::format("{} does {} there instead", who, last));
      }
    }
  } catch (const std::exception&) {
    return fmt::format(
        "the store of the ranks is gone, with the process that kept it (rank 0, or torchrun's agent); {}", here);
  }
  // Who fell silent without a word is the cause; those who said farewell mostly followed.
  for (const auto* found : {&gone, &farewells, &late}) {
    if (!found->empty()) return fmt::format("{}; {}", fmt::join(*found, "; "), here);
  }
  return here;
}

}  // namespace limbeck::parallel
