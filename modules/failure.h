// An exception as the user meets it: an exit code and one line.
#pragma once
#include <exception>
#include <string>

namespace limbeck {

inline constexpr int kFaultInLimbeck = 1;  // an exit code that no Error has: an exception nobody foresaw

struct Failure {
  int exit_code;
  std::string message;          // one line, without a stack trace
  std::string trace;            // where it came from, for LIMBECK_TRACE=1
  bool told_elsewhere = false;  // another rank prints it
};

// An exception of modules/errors.h that is this, too, is printed by another rank: here it only ends the process.
struct ToldElsewhere {
  virtual ~ToldElsewhere() = default;
};

// Codes as in modules/errors.h, or kFaultInLimbeck.
Failure describe_failure(std::exception_ptr exception);
// The exception of modules/errors.h that a failure came from, or would: how one that travelled as text goes on.
[[noreturn]] void throw_failure(const Failure& failure);

}  // namespace limbeck
