// What every rank is doing, on a board that all can read: each posts a beat, its last operation and, at its end, why it
// ended. When an operation fails or is late, blame() turns the board into one sentence that names the rank.
// Where the store ends with rank 0, it also ends a process that is left behind: an operation of Gloo whose partner died
// at the wrong moment (its last bytes and its end arrive at once) waits for its own deadline, which is minutes away.
#pragma once
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "trainer/parallel/ranks/patient_store.h"

namespace limbeck::parallel {

struct BoardOptions {
  int rank = 0, size = 1;
  std::string me;          // "host nodeA, process 4711"
  std::string keeper;      // of the store: "rank 0 (host nodeA, process 4711)"
  bool with_first = true;  // the store ends with rank 0
};

class Board {
 public:
  // `store`: a connection of its own.
  Board(c10::intrusive_ptr<c10d::Store> store, const BoardOptions& options);
  // The keeper of the store waits a few seconds for the others to leave first: they may still read who was to blame.
  ~Board();
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  // This rank begins operation `number` of a line, or has ended it.
  void begins(const std::string& line, int64_t number, const std::string& what);
  void ended(const std::string& line, int64_t number, const std::string& what);
  void farewell(const std::string& reason);
  // Whether a rank has said farewell, or an operation has failed on one: whoever waits for it may wait for ever.
  bool alarmed();
  // Who is to blame that operation `number` of `line` failed here with `symptom`. Takes about two seconds: a rank that
  // lives shows a new beat in that time.
  std::string blame(const std::string& line, int64_t number, const std::string& what, const std::string& symptom);

 private:
  struct Post;
  void beat();
  bool post();  // false: the store is gone, and not only silent
  void look_for_first(bool reached);
  [[noreturn]] void end_process();
  Post read(int rank);
  void raise_alarm();
  void see_others_off();

  PatientStore store_;
  BoardOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::pair<int64_t, std::string>> lines_;  // line -> number, what (">" before: under way)
  std::string farewell_;
  int64_t beats_ = 0;
  bool stopped_ = false, left_ = false, alarmed_ = false;
  std::optional<std::chrono::steady_clock::time_point>
      gone_since_;  // the store; of the beating thread, as the next two
  bool first_left_ = false;
  std::string first_farewell_;
  std::thread thread_;
};

}  // namespace limbeck::parallel
