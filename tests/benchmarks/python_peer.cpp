#include "benchmarks/python_peer.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <stdexcept>

namespace limbeck::bench {

PythonPeer::PythonPeer(const std::vector<std::string>& command) {
  std::signal(SIGPIPE, SIG_IGN);  // a peer that is gone is an error of ask()
  int in[2], out[2];
  if (::pipe(in) != 0 || ::pipe(out) != 0) throw std::runtime_error("no pipe");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  for (const int end : {in[0], in[1], out[0], out[1]}) ::posix_spawn_file_actions_addclose(&actions, end);
  std::vector<char*> arguments;
  for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
  arguments.push_back(nullptr);
  const int error = ::posix_spawn(&process_, arguments[0], &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]);
  ::close(out[1]);
  to_ = ::fdopen(in[1], "w");
  from_ = ::fdopen(out[0], "r");
  if (error != 0) throw std::runtime_error(command.front() + ": cannot be started");
  const std::string line = read_line();
  if (line.rfind("ready ", 0) != 0) throw std::runtime_error("the Python peer said \"" + line + "\"");
  greeting_ = line.substr(6);
}

PythonPeer::~PythonPeer() {
  std::fclose(to_);  // it ends with its input
  std::fclose(from_);
  if (process_ > 0) ::waitpid(process_, nullptr, 0);
}

std::string PythonPeer::ask(const std::string& line) {
  std::fprintf(to_, "%s\n", line.c_str());
  std::fflush(to_);
  return read_line();
}

std::string PythonPeer::read_line() {
  std::string line;
  for (int c = std::fgetc(from_); c != '\n'; c = std::fgetc(from_)) {
    if (c == EOF) throw std::runtime_error("the Python peer has ended");
    line += static_cast<char>(c);
  }
  return line;
}

}  // namespace limbeck::bench
