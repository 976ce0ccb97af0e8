#include "trainer/profile/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>

#include "modules/errors.h"
#include "modules/failure.h"

namespace limbeck::profile {
namespace {

constexpr char kGood = '+', kFailed = '-';

void write_all(int descriptor, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t bytes = ::write(descriptor, text.data() + done, text.size() - done);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return;  // the parent is gone
    done += static_cast<size_t>(bytes);
  }
}

std::string read_all(int descriptor) {
  std::string text;
  char part[65536];
  for (;;) {
    const ssize_t bytes = ::read(descriptor, part, sizeof(part));
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return text;
    text.append(part, static_cast<size_t>(bytes));
  }
}

std::string answer_of(const std::function<std::string()>& work) {
  try {
    return kGood + work();
  } catch (...) {
    return kFailed + describe_failure(std::current_exception()).message;
  }
}

std::string end_of(int status) {
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    return fmt::format("its process was ended by signal {} ({}){}", signal, strsignal(signal),
                       signal == SIGKILL ? ": most often memory lacks, try a smaller --profile.batch" : "");
  }
  return fmt::format("its process ended with code {} and no word", WEXITSTATUS(status));
}

}  // namespace

ChildOutcome run_in_child(const std::function<std::string()>& work) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw IoError(fmt::format("a pipe cannot be made ({})", std::strerror(errno)));
  std::cout.flush();
  std::fflush(nullptr);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) {
    const int error = errno;
    ::close(ends[0]), ::close(ends[1]);
    throw IoError(fmt::format("a process cannot be started ({}): raise the limit (ulimit -u)", std::strerror(error)));
  }
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);     // who is killed leaves nobody at work
    if (::getppid() != parent) ::_exit(0);  // it was before that, and no signal comes
    ::close(ends[0]);
    write_all(ends[1], answer_of(work));
    std::fflush(nullptr);
    ::_exit(0);
  }
  ::close(ends[1]);
  const std::string answer = read_all(ends[0]);
  ::close(ends[0]);
  int status = 0;
  rusage used{};
  while (::wait4(child, &status, 0, &used) < 0 && errno == EINTR) {
  }
  ChildOutcome outcome;
  outcome.peak_bytes = static_cast<int64_t>(used.ru_maxrss) * 1024;
  if (answer.empty() || !WIFEXITED(status)) {
    outcome.fault = end_of(status);
  } else {
    (answer.front() == kGood ? outcome.text : outcome.fault) = answer.substr(1);
  }
  return outcome;
}

}  // namespace limbeck::profile
