// Error-compensated rounding of one stage of a model: its packed modules in the order of its forward, each by the
// inputs that it gets when all those before it are packed already. Modules that get the same input share its second
// moments.
#pragma once
#include <string>
#include <vector>

#include "kernels/quantized/compensated_rounding.h"
#include "trainer/quantize/row_states.h"

namespace limbeck::quantize {

struct RoundedModule {
  std::string path;  // below the root
  std::string format;
  int64_t tokens = 0;                   // that it was rounded by; 0: none, or zeros alone: to nearest
  double damping = 0;                   // share of the mean square of its inputs
  double nearest = 0, compensated = 0;  // squared change of its outputs, a token: rounded to nearest, and as it is now
};

// One packed module anew, by what is known of so many inputs of it; `floats`: the same with its float32 weight.
RoundedModule round_module(const models::Linear& floats, models::Linear& packed,
                           const kernels::Compensation& compensation, int64_t tokens, at::ScalarType scales);

// By path the modules of the model in floats, all roots alike.
using LinearsByPath = std::map<std::string, std::shared_ptr<models::Linear>>;

// In the order of the forward, then those that no token reached. NumericError where an input is not finite.
std::vector<RoundedModule> compensate_stage(size_t stage, const RowStates& states, const PackedLinears& modules,
                                            const LinearsByPath& floats, at::ScalarType scales);

}  // namespace limbeck::quantize
