// Rounds the packed weights of a model anew, so that what it computes changes least on rows of data: layer by layer,
// each by the inputs that it gets when all those before it are packed already, compensated (compensated_layer.h),
// experts behind what is before them in their layer, and from there learned (learned_layer.h) if asked for. Kept at a
// time: the input of one layer for every row, and what one layer is rounded by. Tables, which look rows up, stay
// rounded to nearest.
#pragma once
#include <functional>
#include <vector>

#include "trainer/quantize/compensated_experts.h"
#include "trainer/quantize/compensated_layer.h"
#include "trainer/quantize/learned_layer.h"

namespace limbeck::quantize {

class RoundingWork;

struct RoundingPlan {
  int64_t modules = 0, stages = 0;            // stages: layers, and the head where it is packed
  int64_t state_bytes = 0, moment_bytes = 0;  // at the most at a time
  int64_t learned_bytes = 0;                  // of learned rounding, beside them
};

enum class RoundingWay { kCompensated, kLearned };

struct RoundingRequest {
  RoundingWay way = RoundingWay::kCompensated;
  int64_t steps = 200;  // of learned rounding, a layer
  at::ScalarType scales = at::kFloat;
  const RoundingWork* work = nullptr;  // what is finished is kept there, and taken from there
};

RoundingPlan plan_rounding(const models::BuiltModel& packed, const RoundingRows& rows, RoundingWay way);

struct RoundedModel {
  std::vector<RoundedModule> modules;   // in the order of the forward, then those that no token reached
  std::vector<RoundedExperts> experts;  // of each layer that has packed ones
  std::vector<LearnedLayer> layers;     // where they were learned
};

// `floats` and `packed` are one model in float32, `packed` rounded to nearest with scales as asked for; its packed
// weights are replaced. `done` hears of each stage, of those that were finished before too. NumericError where an input
// is not finite.
RoundedModel round_model(const models::BuiltModel& floats, const models::BuiltModel& packed, const RoundingRows& rows,
                         const RoundingRequest& request, const std::function<void(int64_t)>& done);

}  // namespace limbeck::quantize
