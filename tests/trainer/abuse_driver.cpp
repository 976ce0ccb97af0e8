// abuse_driver: runs the program's own main() for each line of standard input, in a child forked before anything was
// computed: what a process of its own would do, signals and limits included, without its start. A line is a JSON object
// {"arguments": [...], "environment": {...}, "output": FILE, "folder": DIR, "seconds": N}; the answer is one with
// "code", "signal", "seconds", "peak_bytes" and "timed_out". tests/python/test_abuse.py is what speaks to it.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

int limbeck_main(int argc, char** argv);  // trainer/cli/main.cpp, compiled under this name

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr rlim_t kMostBytes = rlim_t{4} << 30;  // so that a runaway allocation fails here, not on the whole machine

void limit(int what, rlim_t most) {
  const rlimit both{most, most};
  if (setrlimit(what, &both) != 0) std::_Exit(120);
}

[[noreturn]] void run_child(const json& request) {
  const int output =
      open(request.at("output").get<std::string>().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (output < 0 || nothing < 0 || chdir(request.at("folder").get<std::string>().c_str()) != 0) std::_Exit(121);
  if (dup2(nothing, STDIN_FILENO) < 0 || dup2(output, STDOUT_FILENO) < 0 || dup2(output, STDERR_FILENO) < 0)
    std::_Exit(122);
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_FSIZE, rlim_t{256} << 20);
#ifndef __SANITIZE_ADDRESS__  // its shadow is larger than any limit
  limit(RLIMIT_DATA, kMostBytes);
#endif
  for (const auto& [name, value] : request.at("environment").items())
    setenv(name.c_str(), value.get<std::string>().c_str(), 1);
  std::vector<std::string> words{"limbeck"};
  for (const auto& word : request.at("arguments")) words.push_back(word.get<std::string>());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  std::exit(limbeck_main(static_cast<int>(words.size()), pointers.data()));
}

json outcome(pid_t child, double seconds_allowed) {
  const auto begin = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  bool timed_out = false;
  int status = 0;
  rusage used{};
  while (wait4(child, &status, WNOHANG, &used) == 0) {
    if (!timed_out && seconds() > seconds_allowed) {
      timed_out = true;
      kill(child, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return {{"code", WIFEXITED(status) ? WEXITSTATUS(status) : -1},
          {"signal", WIFSIGNALED(status) ? WTERMSIG(status) : 0},
          {"seconds", seconds()},
          {"peak_bytes", used.ru_maxrss * 1024},
          {"timed_out", timed_out}};
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const json request = json::parse(line);
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) run_child(request);
    std::cout << outcome(child, request.at("seconds").get<double>()).dump() << std::endl;
  }
  return 0;
}
