// Maps hidden states of one model into the width of another: a linear map, or two layers with GELU and a LayerNorm.
// Stored in the dtype of the module it attaches to (or float32 by request); the casts at its doors are named.
#pragma once
#include <memory>

#include "modules/models/network/parameter_modules.h"

namespace limbeck::projectors {

class HiddenProjector : public torch::nn::Module {
 public:
  enum class Kind { kLinear, kMlp };
  // `accepts`: dtype of the states that arrive; `gives`: dtype of the result. The projector's own is its policy's.
  HiddenProjector(const precision::Scope& scope, Kind kind, int64_t in, int64_t out, at::ScalarType accepts,
                  at::ScalarType gives);

  at::Tensor forward(const at::Tensor& x) const;  // [..., in] -> [..., out]

 private:
  std::string path_;
  at::ScalarType accepts_, own_, gives_;
  std::shared_ptr<models::Linear> first_, second_;
  std::shared_ptr<models::Norm> norm_;
};

}  // namespace limbeck::projectors
