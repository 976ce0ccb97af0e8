// Saves the state of a run while it goes on, and tells at later boundaries what became of it. All ranks make the same
// calls in the same order.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint/async_saver.h"
#include "trainer/loop/checkpoint_plan.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::loop {

struct SaveOutcome {
  std::optional<checkpoint::SaveReport> report;
  std::string failure;        // "" when saved
  int64_t failed_before = 0;  // attempts in a row that failed before this one was saved
};

class RunSaver {
 public:
  RunSaver(const CheckpointOptions& options, const std::filesystem::path& folder, parallel::Communicator& ranks);

  CheckpointPlan& plan() { return plan_; }
  // `wait`: until it is on disk; without it, until its copy is made. A failure is an outcome, not an exception.
  void save(checkpoint::SaveRequest request, bool wait);
  std::vector<SaveOutcome> outcomes();  // since the last call; never blocks
  void drain();
  // Failures since the last success, on this rank.
  int64_t failures_in_a_row() const { return failures_; }
  const std::string& last_failure() const { return last_failure_; }

 private:
  CheckpointPlan plan_;
  bool async_;
  std::unique_ptr<parallel::Communicator> line_;
  std::unique_ptr<checkpoint::AsyncSaver> saver_;
  int64_t failures_ = 0;
  std::string last_failure_;
};

}  // namespace limbeck::loop
