// Looks after collectives that only streams wait for: no thread of the host stands there to see that one is late, or
// that a rank is gone. A thread looks at their age, at what the network says of them and at the board of the ranks;
// another meets the other ranks' on a line of control, where the end of a process shows at once. What fails is named
// and kept for confirm(), then every line is aborted, so that streams, and who waits for them, go on.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "trainer/parallel/communicator.h"
#include "trainer/parallel/ranks/rank_board.h"

namespace limbeck::parallel {

class CollectiveWatch {
 public:
  enum class State { kQueued, kRuns, kEnded };

  struct Collective {
    virtual ~Collective() = default;
    // Of the watch's thread alone. Throws what the network reports of it.
    virtual State look() = 0;

    std::string line, what;
    int64_t number = 0;
  };

  struct Options {
    double first_timeout_s = 1800, timeout_s = 600;
    std::function<std::string()> dump_trace;  // where the last operations are written, or ""
  };

  // `ranks`: a line of control of the watch's own.
  CollectiveWatch(std::unique_ptr<Communicator> ranks, std::shared_ptr<Board> board, Options options);
  ~CollectiveWatch();
  CollectiveWatch(const CollectiveWatch&) = delete;
  CollectiveWatch& operator=(const CollectiveWatch&) = delete;

  // A line, until it leaves; `abort` may be called by any thread.
  void joins(const std::string& line, std::function<void()> abort);
  void leaves(const std::string& line);

  // Queued, and begun on the board: in the order of its line.
  void add(std::shared_ptr<Collective> collective);
  void settle();
  // Throws what went wrong so far. A number that was read from the device is right if this comes back afterwards.
  void confirm();
  // An operation cannot be queued: names who is to blame, aborts, throws.
  [[noreturn]] void fail(const Collective& collective, const std::string& symptom);
  // Whether all that the line has queued has ended well; waits for it so long.
  bool ended_well(const std::string& line, std::chrono::seconds patience);

 private:
  using Clock = std::chrono::steady_clock;
  struct Watched {
    std::shared_ptr<Collective> collective;
    State state = State::kQueued;
    Clock::time_point since{};  // when it was first seen to run
  };
  struct Meetings;

  void watch();
  bool somebody_is_missed();
  // The next two with the mutex held: what goes wrong, or "".
  std::string look(std::shared_ptr<Collective>& at_fault);
  std::string look_at(Watched& watched) const;
  void take_down(const Collective& collective, const std::string& symptom);

  std::shared_ptr<Board> board_;
  Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Watched> watched_;
  std::map<std::string, std::function<void()>> aborts_;  // by line
  std::string failure_;
  bool settled_ = false, stopped_ = false;
  std::optional<Clock::time_point> asked_, missed_;  // the board; a rank, by the board. Of the watch's thread
  std::shared_ptr<Meetings> meetings_;               // its thread's too
  std::thread meeting_, watching_;                   // last: they use all of the above
};

}  // namespace limbeck::parallel
