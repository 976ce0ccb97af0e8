// An adapter made part of the weights it works on.
#pragma once
#include <string>

#include "modules/models/load_model.h"

namespace limbeck::adapters {

struct MergeReport {
  int64_t modules = 0;
  // By the weights' own dtype, which the sum is rounded to: |stored - exact| / |exact| of the worst module.
  double worst_error = 0;
  std::string worst_module;
};

// Of the adapters that work now; none does afterwards. UsageError where head and embedding share a weight, and
// for an adapter of whole layers.
MergeReport merge_adapter(models::BuiltModel& built);

}  // namespace limbeck::adapters
