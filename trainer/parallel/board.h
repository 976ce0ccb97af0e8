// What every rank is doing, on a board that all can read: each posts a beat, its last operation and, at its end, why it
// ended. When an operation fails or is late, blame() turns the board into one sentence that names the rank.
#pragma once
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace limbeck::parallel {

class Board {
 public:
  // `store`: a connection of its own. `me`: "host nodeA, process 4711".
  Board(c10::intrusive_ptr<c10d::Store> store, int rank, int size, const std::string& me);
  ~Board();
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  // This rank begins operation `number` of a line, or has ended it.
  void begins(const std::string& line, int64_t number, const std::string& what);
  void ended(const std::string& line, int64_t number, const std::string& what);
  void farewell(const std::string& reason);
  // Who is to blame that operation `number` of `line` failed here with `symptom`. Takes about two seconds: a rank that
  // lives shows a new beat in that time.
  std::string blame(const std::string& line, int64_t number, const std::string& what, const std::string& symptom);

 private:
  struct Post;
  void beat();
  void post();
  Post read(int rank);

  c10::intrusive_ptr<c10d::Store> store_;
  int rank_, size_;
  std::string me_;
  std::mutex mutex_, store_mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::pair<int64_t, std::string>> lines_;  // line -> number, what (">" before: under way)
  std::string farewell_;
  int64_t beats_ = 0;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace limbeck::parallel
