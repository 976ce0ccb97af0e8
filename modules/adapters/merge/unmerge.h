// A merged adapter taken out of the weights: what was there before, as far as rounding left it.
#pragma once
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

struct UnmergedModule {
  std::string module;
  double rounding = 0;  // |stored - exact| / |exact|, by the weight's dtype
  // How far the result is at most, by its own size, from the weight that merge_adapter() was given in this dtype: both
  // ways round once each.
  double bound = 0;
};

// Of the adapters that work now, which the weights have in them; none does afterwards. LoRA: W = W' - s B A;
// IA3: W = W' / l. UsageError, before anything is changed, where none works, for what adapted_hosts() refuses,
// quantized weights, DoRA and factors of zero; NumericError as merge_adapter().
std::vector<UnmergedModule> unmerge_adapter(models::BuiltModel& built);

}  // namespace limbeck::adapters
