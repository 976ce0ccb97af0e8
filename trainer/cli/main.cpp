// The program. The only place that catches: below it, errors are exceptions with an exit code (modules/errors.h).
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "trainer/cli/app.h"
#include "trainer/cli/failure.h"

namespace {

void say(const limbeck::cli::Failure& failure) {
  std::cout.flush();
  std::cerr << "limbeck: " << failure.message << std::endl;
  const char* trace = std::getenv("LIMBECK_TRACE");
  if (trace && std::strcmp(trace, "1") == 0 && !failure.trace.empty()) std::cerr << failure.trace << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  using limbeck::cli::describe_failure;
  std::optional<limbeck::cli::App> app;
  limbeck::cli::Failure failure;
  try {
    return app.emplace(std::vector<std::string>(argv + (argc > 0), argv + argc)).run();
  } catch (...) {
    failure = describe_failure(std::current_exception());
  }
  say(failure);
  try {
    if (app) app->report_failure(failure);
  } catch (...) {  // the code stays that of the first failure
    say(describe_failure(std::current_exception()));
  }
  return failure.exit_code;
}
