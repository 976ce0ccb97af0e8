// Limbeck's exceptions. Each carries the process exit code; only main() catches.
// A message is one line: where, what came, what was wanted, what to type next.
#pragma once
#include <stdexcept>
#include <string>

namespace limbeck {

enum class ExitCode : int {
  kDone = 0,
  kUsage = 2,
  kInputData = 3,
  kWeights = 4,
  kNumeric = 5,
  kIo = 6,
  kDistributed = 7,
  kStopped = 75
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

struct UsageError : Error {
  explicit UsageError(const std::string& m) : Error(ExitCode::kUsage, m) {}
};  // command line, recipe
struct ContractError : Error {
  explicit ContractError(const std::string& m) : Error(ExitCode::kUsage, m) {}
};  // dtype, device, shape
struct InputDataError : Error {
  explicit InputDataError(const std::string& m) : Error(ExitCode::kInputData, m) {}
};
struct WeightsError : Error {
  explicit WeightsError(const std::string& m) : Error(ExitCode::kWeights, m) {}
};  // models, checkpoints
struct NumericError : Error {
  explicit NumericError(const std::string& m) : Error(ExitCode::kNumeric, m) {}
};
struct IoError : Error {
  explicit IoError(const std::string& m) : Error(ExitCode::kIo, m) {}
};

struct DistributedError : Error {
  explicit DistributedError(const std::string& m) : Error(ExitCode::kDistributed, m) {}
};  // ranks that disagree, are late or gone

struct StoppedError : Error {
  explicit StoppedError(const std::string& m) : Error(ExitCode::kStopped, m) {}
};  // by a signal, after saving

}  // namespace limbeck
