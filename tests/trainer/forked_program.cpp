// forked_program: runs the program's own main() for each line of standard input, in a child forked before anything was
// computed: what a process of its own would do, signals and limits included, without its start, which is 0.2 s of
// loading LibTorch. A line is a JSON object {"arguments": [...], "environment": {...}, "folder": DIR, "stdout": FILE,
// "stderr": FILE, "seconds": N}; a variable that is null is taken away, both files may be one; "data_bytes" and
// "file_bytes", where given, are limits; "program" may be "resave_model" (tests/driver/resave_model.cpp). The answer
// is a line with the child's "process", and at its end one with "code", "signal", "seconds", "peak_bytes" and
// "timed_out". tests/python/limbeck_runner.py is what speaks to it.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/driver/verbs.h"

int limbeck_main(int argc, char** argv);  // trainer/cli/main.cpp, compiled under this name

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

void limit(int what, rlim_t most) {
  const rlimit both{most, most};
  if (setrlimit(what, &both) != 0) std::_Exit(120);
}

// The descriptor 0, 1 or 2 becomes this file.
void become(int descriptor, const std::string& file, int how) {
  const int opened = open(file.c_str(), how | O_CLOEXEC, 0600);
  if (opened < 0 || dup2(opened, descriptor) < 0) std::_Exit(121);
}

[[noreturn]] void run_child(const json& request, const std::filesystem::path& folder) {
  const auto called = request.value("program", "limbeck");
  if (called != "limbeck" && called != "resave_model") std::_Exit(123);
  const auto out = request.at("stdout").get<std::string>(), err = request.at("stderr").get<std::string>();
  become(STDIN_FILENO, "/dev/null", O_RDONLY);
  become(STDOUT_FILENO, out, O_WRONLY | O_CREAT | O_TRUNC);
  if (err != out) become(STDERR_FILENO, err, O_WRONLY | O_CREAT | O_TRUNC);
  if (err == out && dup2(STDOUT_FILENO, STDERR_FILENO) < 0) std::_Exit(121);
  if (chdir(request.at("folder").get<std::string>().c_str()) != 0) std::_Exit(122);
  if (request.contains("file_bytes")) limit(RLIMIT_FSIZE, request.at("file_bytes").get<rlim_t>());
  if (request.contains("data_bytes")) limit(RLIMIT_DATA, request.at("data_bytes").get<rlim_t>());
  for (const auto& [name, value] : request.at("environment").items()) {
    if (value.is_null())
      unsetenv(name.c_str());
    else
      setenv(name.c_str(), value.get<std::string>().c_str(), 1);
  }
  std::vector<std::string> words{(folder / called).string()};
  for (const auto& word : request.at("arguments")) words.push_back(word.get<std::string>());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  const auto count = static_cast<int>(words.size());
  if (called == "limbeck") std::exit(limbeck_main(count, pointers.data()));
  const int code = limbeck::test::resave_model(count, pointers.data());
  std::fflush(nullptr);
  std::_Exit(code);  // as limbeck_main: to take LibTorch down is 0.2 s
}

sigset_t end_of_a_child() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  return set;
}

json outcome(pid_t child, double seconds_allowed) {
  const auto begin = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const sigset_t ends = end_of_a_child();
  bool timed_out = false;
  int status = 0;
  rusage used{};
  while (wait4(child, &status, WNOHANG, &used) == 0) {
    const double left = timed_out ? 1 : seconds_allowed - seconds();
    if (left <= 0) {
      timed_out = true;
      kill(child, SIGKILL);
      continue;
    }
    const auto whole = static_cast<time_t>(std::min(left, 3600.0));
    const timespec most{whole, static_cast<long>((std::min(left, 3600.0) - static_cast<double>(whole)) * 1e9)};
    sigtimedwait(&ends, nullptr, &most);
  }
  return {{"code", WIFEXITED(status) ? WEXITSTATUS(status) : -1},
          {"signal", WIFSIGNALED(status) ? WTERMSIG(status) : 0},
          {"seconds", seconds()},
          {"peak_bytes", used.ru_maxrss * 1024},
          {"timed_out", timed_out}};
}

// A fork takes only the thread that calls it: with others in this process, a child could wait for one of them for ever.
bool alone() {
  const std::filesystem::directory_iterator threads("/proc/self/task");
  return std::distance(begin(threads), end(threads)) == 1;
}

}  // namespace

int main() {
  const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  limit(RLIMIT_CORE, 0);
  const sigset_t ends = end_of_a_child();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &ends, &before);  // so that none is missed between a look and a wait
  for (std::string line; std::getline(std::cin, line);) {
    const json request = json::parse(line);
    const pid_t child = alone() ? fork() : -1;
    if (child < 0) return 1;
    if (child == 0) {
      sigprocmask(SIG_SETMASK, &before, nullptr);
      run_child(request, folder);
    }
    std::cout << json{{"process", child}}.dump() << std::endl;
    std::cout << outcome(child, request.at("seconds").get<double>()).dump() << std::endl;
  }
  std::_Exit(0);
}
