// One row of a profile: one precision on one device at one work, in two processes that compute nothing else. What the
// first takes is what the work takes; the second looks into it, and what that takes is nobody's.
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
// The row with its times, without what only others know: the peak of its process, energy, modules, quality. Any Error
// is why there is none; what is known to be impossible is refused before a weight is read.
nlohmann::ordered_json measured_row(const RowRequest& request);
// {"energy", "modules", "spans"} of a row that was timed with so many passes, spans of one pass.
nlohmann::ordered_json observed_row(const RowRequest& request, const Ceilings& ceilings, int64_t passes);
// Of a row whose second process failed.
nlohmann::ordered_json unknown_energy(const std::string& reason);

nlohmann::ordered_json or_null(const std::optional<double>& value);

}  // namespace limbeck::profile
