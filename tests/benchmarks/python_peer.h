// A Python program that answers each line with a line: the other side of a comparison, in a process of its own.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

namespace limbeck::bench {

class PythonPeer {
 public:
  // Waits for its first line, which begins with "ready ".
  explicit PythonPeer(const std::vector<std::string>& command);
  ~PythonPeer();
  PythonPeer(const PythonPeer&) = delete;
  PythonPeer& operator=(const PythonPeer&) = delete;

  const std::string& greeting() const { return greeting_; }  // what came after "ready "
  std::string ask(const std::string& line);

 private:
  std::string read_line();

  int process_ = -1;
  std::FILE* to_ = nullptr;
  std::FILE* from_ = nullptr;
  std::string greeting_;
};

}  // namespace limbeck::bench
