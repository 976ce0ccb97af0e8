// Error-compensated rounding of the experts of a layer, when all before them is packed already: of each expert gate and
// up by the tokens that are routed to it, then down by what its packed gate and up make of them. An expert to which
// fewer tokens come than a quarter of its columns would be fitted to these few: it stays rounded to nearest.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "modules/models/network/experts.h"
#include "trainer/quantize/row_states.h"

namespace limbeck::quantize {

struct RoundedExperts {
  std::string path;  // below the root
  std::string format;
  int64_t tokens = 0;                   // of all experts; one that goes to two of them counts twice
  std::vector<int64_t> to_nearest;      // experts with too few of them
  double nearest = 0, compensated = 0;  // squared change of the products, a token: to nearest, and as it is now
};

// Of the layer that is the stage; null where its experts are not packed, or there are none.
std::shared_ptr<models::ExpertWeights> packed_experts(const models::Transformer& model, size_t stage);

// `floats`: the same experts with their float32 weights. NumericError where what they get is not finite.
RoundedExperts compensate_experts(size_t stage, const RowStates& states, const models::ExpertWeights& floats,
                                  models::ExpertWeights& packed, at::ScalarType scales);

}  // namespace limbeck::quantize
