// The program. The only place that catches: below it, errors are exceptions with an exit code (modules/errors.h).
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "trainer/cli/app.h"
#include "trainer/cli/failure.h"

namespace {

int say(const limbeck::cli::Failure& failure) {
  std::cout.flush();
  std::cerr << "limbeck: " << failure.message << std::endl;
  const char* trace = std::getenv("LIMBECK_TRACE");
  if (trace && std::strcmp(trace, "1") == 0 && !failure.trace.empty()) std::cerr << failure.trace << std::endl;
  return failure.exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  using limbeck::cli::describe_failure;
  try {
    limbeck::cli::App app(std::vector<std::string>(argv + (argc > 0), argv + argc));
    try {
      return app.run();
    } catch (...) {
      const auto failure = describe_failure(std::current_exception());
      say(failure);
      app.report_failure(failure);
      return failure.exit_code;
    }
  } catch (...) {  // also what writing the failure to --json threw
    return say(describe_failure(std::current_exception()));
  }
}
