// One row of a profile: one precision on one device at one work, measured in the process that calls it, which has
// computed nothing else.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/energy/energy_meter.h"
#include "trainer/profile/ceilings.h"
#include "trainer/profile/profiled_precision.h"
#include "trainer/registry.h"

namespace limbeck::profile {

struct RowRequest {
  const recipe::Settings& settings;  // of the recipe as it came
  const Registries& registries;
  const ProfileOptions& options;
  ProfiledPrecision precision;
  c10::Device device;
  Work work;
};

// What the row is of, with all that can be measured null.
nlohmann::ordered_json empty_row(const RowRequest& request);
// {"row": ..., "spans": [...]}, spans of one pass. Any Error is why there is none; what is known to be impossible is
// refused before a weight is read.
nlohmann::ordered_json measured_row(const RowRequest& request, const Ceilings& ceilings);

nlohmann::ordered_json or_null(const std::optional<double>& value);

}  // namespace limbeck::profile
