// An exception as the user meets it: an exit code and one line.
#pragma once
#include <exception>
#include <string>

namespace limbeck::cli {

struct Failure {
  int exit_code;
  std::string message;  // one line, without a stack trace
  std::string trace;    // where it came from, for LIMBECK_TRACE=1
};

// Codes as in modules/errors.h; 1 is a fault in Limbeck itself, an exception nobody foresaw.
Failure describe_failure(std::exception_ptr exception);

}  // namespace limbeck::cli
