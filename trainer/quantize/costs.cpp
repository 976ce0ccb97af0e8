#include "trainer/quantize/costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "modules/errors.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/precision/precision.h"

namespace limbeck::quantize {

namespace {

int64_t nanoseconds(double ms) { return static_cast<int64_t>(std::llround(ms * kNanosecondsOfMs)); }

// What one row of a profile says of a forward.
struct ForwardTimes {
  int64_t whole = 0;
  std::map<std::string, int64_t> modules;  // below the model's root
};

InputDataError no_profile(const std::filesystem::path& file, const std::string& what) {
  return InputDataError(
      fmt::format("times {}: {}; wanted the profile.json of a run of `limbeck profile`", file.string(), what));
}

// Of the first row of that precision in which a forward was measured.
std::optional<ForwardTimes> times_of(const nlohmann::json& profile, const std::string& precision,
                                     const std::filesystem::path& file) {
  try {
    for (const auto& row : profile.at("rows")) {
      if (row.at("precision") != precision || row.at("work") != "forward" || !row.at("refused").is_null()) continue;
      ForwardTimes found;
      found.whole = nanoseconds(row.at("latency_ms").at("mean").get<double>());
      for (const auto& module : row.at("modules")) {
        const auto path = module.at("module").get<std::string>();
        found.modules[path.substr(path.find('.') + 1)] = nanoseconds(module.at("ms").get<double>());
      }
      return found;
    }
  } catch (const nlohmann::json::exception& fault) {
    throw no_profile(file, fault.what());
  }
  return std::nullopt;
}

}  // namespace

Costs::Costs(const FormatTable& table) : rest_(table.rest_bytes()) {
  for (const Candidate& module : table.modules()) modules_.push_back(module.bytes);
}

Costs::Costs(const FormatTable& table, const std::filesystem::path& profile, at::ScalarType floats) : times_(true) {
  const auto json = io::parse_json(io::read_json_text(profile), profile.string());
  const std::string dtype = precision::dtype_name(floats);
  const auto plain = times_of(json, dtype, profile);
  if (!plain) {
    throw UsageError(
        fmt::format("times {}: has no forward in {}, in which what is not packed is stored: limbeck profile RECIPE "
                    "--precisions={},int8+{},int4+{}",
                    profile.string(), dtype, dtype, dtype, dtype));
  }
  std::vector<std::optional<ForwardTimes>> by_format;
  for (const StoredFormat& format : table.formats())
    by_format.push_back(format.packed ? times_of(json, format.name + "+" + dtype, profile) : plain);
  rest_ = plain->whole;
  for (const Candidate& module : table.modules()) {
    const auto of_floats = plain->modules.find(module.path);
    if (of_floats == plain->modules.end()) {
      throw UsageError(
          fmt::format("times {}: says nothing of {}: wanted the profile of this model", profile.string(), module.path));
    }
    rest_ -= of_floats->second;
    auto& costs = modules_.emplace_back(by_format.size());
    for (size_t format = 0; format < by_format.size(); ++format) {
      if (!by_format[format] || !module.bytes[format]) continue;
      const auto found = by_format[format]->modules.find(module.path);
      if (found != by_format[format]->modules.end()) costs[format] = found->second;
    }
  }
  rest_ = std::max<int64_t>(rest_, 0);
}

std::string Costs::said(int64_t cost) const {
  return times_ ? fmt::format("{:.3f} ms", static_cast<double>(cost) / kNanosecondsOfMs)
                : fmt::format("{} bytes", cost);
}

}  // namespace limbeck::quantize
