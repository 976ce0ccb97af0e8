// `limbeck profile`: every precision, on every device, at every work, each row in a process of its own. What cannot be
// done is a row too, with the reason and what to do instead.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/profile/profile_options.h"
#include "trainer/registry.h"

namespace limbeck::profile {

struct ProfileRequest {
  const recipe::Settings& settings;
  const Registries& registries;
  // Before each row: "int8 on cpu, forward", its number from 0, of how many.
  std::function<void(const std::string& row, int64_t number, int64_t all)> tick = {};
};

struct Profile {
  nlohmann::ordered_json report;  // {"machine", "batch", …, "meters", "rows"}
  nlohmann::ordered_json trace;   // Chrome's trace events: one process a row, one pass each
};

// Forks, so nothing may have computed in this process before.
Profile run_profile(const ProfileRequest& request);

// Of a report: a line a row, the numbers alone.
std::string csv_of(const nlohmann::ordered_json& report);

}  // namespace limbeck::profile
