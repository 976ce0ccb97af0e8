// Rounds the packed weights of a model anew, so that what its modules give changes least on rows of data: layer by
// layer, and within a layer in the order of its forward, each module by the inputs that it gets when all those before
// it are packed already. Modules that get the same input share its second moments. Kept at a time: the input of one
// layer for every row, and the moments of one input. Tables, which look rows up, stay rounded to nearest.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/quantized/compensated_rounding.h"
#include "modules/models/weights/load_model.h"
#include "trainer/data/batch.h"

namespace limbeck::quantize {

struct RoundedModule {
  std::string path;  // below the root
  std::string format;
  int64_t tokens = 0;                   // that it was rounded by; 0: none, or zeros alone: to nearest
  double damping = 0;                   // share of the mean square of its inputs
  double nearest = 0, compensated = 0;  // squared change of its outputs, a token: rounded to nearest, and as it is now
};

struct RoundingRows {
  std::function<data::Batch(int64_t)> row;
  int64_t count = 0, length = 0;
};

struct RoundingPlan {
  int64_t modules = 0, stages = 0;            // stages: layers, and the head where it is packed
  int64_t state_bytes = 0, moment_bytes = 0;  // at the most at a time
};
RoundingPlan plan_rounding(const models::BuiltModel& packed, const RoundingRows& rows);

// One packed module anew, by what is known of so many inputs of it; `floats`: the same with its float32 weight.
RoundedModule round_module(const models::Linear& floats, models::Linear& packed,
                           const kernels::Compensation& compensation, int64_t tokens, at::ScalarType scales);

// `floats` and `packed` are one model in float32, `packed` rounded to nearest with scales in `scales`; its packed
// weights are replaced. `done` hears of each stage. In the order of the forward, then those that no token reached.
// NumericError where an input is not finite.
std::vector<RoundedModule> round_compensated(const models::BuiltModel& floats, const models::BuiltModel& packed,
                                             at::ScalarType scales, const RoundingRows& rows,
                                             const std::function<void(int64_t)>& done);

}  // namespace limbeck::quantize
