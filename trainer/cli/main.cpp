// The program. The only place that catches: below it, errors are exceptions with an exit code (modules/errors.h).
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "modules/errors.h"
#include "modules/failure.h"
#include "trainer/cli/app.h"
#include "trainer/cli/console/console.h"

namespace {

// The last word of a process that no handler can save: of an exception in a library's initialiser, or in a destructor.
// Nothing is allocated, because most often memory is what lacks.
[[noreturn]] void end_in_words() {
  const char* said =
      "limbeck: an exception that nothing caught (a fault in limbeck, or in a plug-in: please report it)\n";
  int code = 1;
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::bad_alloc&) {
    said = "limbeck: out of memory before the work began or while it ended: raise the limit (ulimit -v) or free some\n";
    code = static_cast<int>(limbeck::ExitCode::kNumeric);
  } catch (const std::system_error&) {
    said = "limbeck: a thread cannot be started: raise the limits (ulimit -v, ulimit -u)\n";
    code = static_cast<int>(limbeck::ExitCode::kNumeric);
  } catch (...) {
  }
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, said, std::strlen(said));
  std::_Exit(code);
}

// Ahead of every initialiser, LibTorch's among them, which allocate and start threads.
void before_all() { std::set_terminate(end_in_words); }
__attribute__((section(".preinit_array"), used)) void (*const kBeforeAll)() = before_all;

void say(const limbeck::Failure& failure) {
  std::cout.flush();
  if (failure.told_elsewhere) return;
  const bool colour = limbeck::cli::coloured(STDERR_FILENO);
  std::cerr << limbeck::cli::painted("limbeck:", limbeck::cli::Paint::kRed, colour) << " " << failure.message
            << std::endl;
  const char* trace = std::getenv("LIMBECK_TRACE");
  if (trace && std::strcmp(trace, "1") == 0 && !failure.trace.empty()) std::cerr << failure.trace << std::endl;
}

int run(int argc, char** argv) {
  // Then a write beyond `ulimit -f` is an error with a name and a place, as on a full disk, and no death without a
  // word.
  std::signal(SIGXFSZ, SIG_IGN);
  std::optional<limbeck::cli::App> app;
  limbeck::Failure failure;
  try {
    return app.emplace(std::vector<std::string>(argv + (argc > 0), argv + argc)).run();
  } catch (...) {
    failure = limbeck::describe_failure(std::current_exception());
  }
  say(failure);
  try {
    if (app) app->report_failure(failure);
  } catch (...) {  // the code stays that of the first failure
    say(limbeck::describe_failure(std::current_exception()));
  }
  return failure.exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  const int code = run(argc, argv);
  // LibTorch's tables would now be taken down one by one, which is a third of a short command. A plug-in's own objects
  // may have something to do at the end.
  const bool plugins = std::any_of(argv + (argc > 0), argv + argc,
                                   [](std::string_view argument) { return argument.starts_with("--plugin"); });
  if (plugins) return code;
  std::cout.flush();
  std::fflush(nullptr);
  std::_Exit(code);
}
