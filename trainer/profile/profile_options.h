// What a recipe asks of `limbeck profile`, read once.
#pragma once
#include <string>
#include <vector>

#include "trainer/energy/energy_gauge.h"
#include "trainer/profile/latency.h"
#include "trainer/recipe/settings.h"

namespace limbeck::profile {

enum class Work { kForward, kTraining, kGeneration };
const char* work_name(Work work);

struct ProfileOptions {
  std::vector<std::string> precisions;
  std::vector<Work> work;
  std::vector<std::string> devices;  // empty: those that are there
  int64_t batch = 16, length = 128, new_tokens = 32;
  uint64_t seed = 0;
  Repetitions repetitions;
  energy::GaugeOptions energy;
  bool measures_energy = true, measures_modules = true;  // modules: their energy
};

// UsageError for what is no precision, work or device.
ProfileOptions read_profile_options(const recipe::Settings& settings);

}  // namespace limbeck::profile
