#include "trainer/parallel/launch/environment_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

#include "modules/errors.h"
#include "trainer/recipe/message.h"
#include "trainer/recipe/value.h"

namespace limbeck::parallel {
namespace {

constexpr int64_t kMostProcesses = 1 << 20;

}  // namespace

std::optional<std::string> EnvironmentReader::text(const std::string& name) const {
  auto value = environment_(name);
  return value && !value->empty() ? value : std::nullopt;
}

std::string EnvironmentReader::pair(const std::string& name) const {
  const auto value = text(name);
  return value ? fmt::format("{}={}", name, recipe::shown(*value)) : name + " is not set";
}

void EnvironmentReader::refuse(const std::string& what) const {
  throw UsageError(fmt::format("environment: {}; {}", what, advice_));
}

std::optional<int64_t> EnvironmentReader::integer(const std::string& name, int64_t low, int64_t high) const {
  const auto value = text(name);
  if (!value) return std::nullopt;
  const auto number = recipe::to_integer(*value);
  if (!number || *number < low || *number > high)
    refuse(fmt::format("{}: wanted a whole number from {} to {}", pair(name), low, high));
  return number;
}

std::optional<int> EnvironmentReader::count(const std::string& name) const {
  const auto number = integer(name, 1, kMostProcesses);
  return number ? std::optional(static_cast<int>(*number)) : std::nullopt;
}

std::optional<int> EnvironmentReader::index(const std::string& name) const {
  const auto number = integer(name, 0, kMostProcesses - 1);
  return number ? std::optional(static_cast<int>(*number)) : std::nullopt;
}

std::optional<uint16_t> EnvironmentReader::port(const std::string& name) const {
  const auto number = integer(name, 1, 65535);
  return number ? std::optional(static_cast<uint16_t>(*number)) : std::nullopt;
}

std::optional<bool> EnvironmentReader::truth(const std::string& name) const {
  auto value = text(name);
  if (!value) return std::nullopt;
  std::transform(value->begin(), value->end(), value->begin(), [](unsigned char c) { return std::tolower(c); });
  const auto truth = recipe::to_bool(*value);
  if (!truth) refuse(fmt::format("{}: wanted True or False", pair(name)));
  return truth;
}

void EnvironmentReader::require(const std::vector<std::string>& names) const {
  std::vector<std::string> set, missing;
  for (const std::string& name : names) (has(name) ? set : missing).push_back(name);
  if (missing.empty()) return;
  refuse(fmt::format("{} set without {}: wanted all of {}", fmt::join(set, ", "), fmt::join(missing, ", "),
                     fmt::join(names, ", ")));
}

void EnvironmentReader::require_below(const std::string& index_name, int index, const std::string& count_name,
                                      int count) const {
  if (index < count) return;
  refuse(fmt::format("{}={} with {}={}: wanted {} from 0 to {}", index_name, index, count_name, count, index_name,
                     count - 1));
}

}  // namespace limbeck::parallel
