// New NPT adapters on a model, one a layer under one name.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "modules/adapters/npt/npt.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

inline constexpr int64_t kMostNptRank = 1 << 16;

struct NptOptions {
  NptKind kind = NptKind::kDelta;
  Modulation modulation = Modulation::kBoth;
  ModulationCurve curve = ModulationCurve::kNeutral;
  int64_t rank = 16;
  double scale = 0.1;
  uint64_t seed = 0;
  bool trainable = true;
};

// Puts an adapter of first values on every layer, on meta too, and uses it. UsageError, before anything is changed, for
// a model with a layer of another kind, named, and for a name that is taken. The values depend on the seed and on the
// parameter's path alone; they are zero where the shape says so.
void create_npt(models::BuiltModel& built, const NptOptions& options, const std::string& name);

// The adapter of this name, layer by layer. UsageError where there is none.
std::vector<const Npt*> npt_of(const models::BuiltModel& built, const std::string& name);

// create_npt() in its steps, for who has other values: what the model gives the adapters as a shape (UsageError for
// layers of another kind, named), the adapters, unfilled and not on the model yet, and then on it.
NptShape shape_for(const models::BuiltModel& built, const NptOptions& options);
std::vector<std::shared_ptr<Npt>> make_npt(const models::BuiltModel& built, const NptOptions& options,
                                           const std::string& name);
void put_on(const models::BuiltModel& built, const std::vector<std::shared_ptr<Npt>>& adapters,
            const std::string& name);

}  // namespace limbeck::adapters
