// Reads a launcher's variables: whole numbers within a range, sets that must be there together. Every refusal is a
// UsageError that names the variable, what it holds, what was wanted, and ends with the launcher's advice.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/parallel/launch/topology.h"

namespace limbeck::parallel {

class EnvironmentReader {
 public:
  // `advice`: what to type instead, the end of every message.
  EnvironmentReader(const Environment& environment, std::string advice)
      : environment_(environment), advice_(std::move(advice)) {}

  std::optional<std::string> text(const std::string& name) const;  // none also when empty
  bool has(const std::string& name) const { return text(name).has_value(); }
  std::optional<int64_t> integer(const std::string& name, int64_t low, int64_t high) const;
  std::optional<int> count(const std::string& name) const;  // 1 or more
  std::optional<int> index(const std::string& name) const;  // 0 or more
  std::optional<uint16_t> port(const std::string& name) const;
  std::optional<bool> truth(const std::string& name) const;  // True, False, 1, 0

  // All of them are set, or a refusal lists what is set and what is missing.
  void require(const std::vector<std::string>& names) const;
  // index < count, else a refusal that shows both.
  void require_below(const std::string& index_name, int index, const std::string& count_name, int count) const;

  [[noreturn]] void refuse(const std::string& what) const;  // what + advice
  std::string pair(const std::string& name) const;          // NAME=value, as messages show it

 private:
  const Environment& environment_;
  std::string advice_;
};

}  // namespace limbeck::parallel
