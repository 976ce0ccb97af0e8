// Fetches the weights of a layer before it computes, and frees them when it has: how a model whose weights are divided
// among ranks computes as if it were whole. Layers are numbered from 0; kOutside is all that is in no layer.
#pragma once
#include <cstdint>

namespace limbeck::models {

class WeightKeeper {
 public:
  static constexpr int64_t kOutside = -1;
  virtual ~WeightKeeper() = default;

  virtual void before_forward(int64_t layer) = 0;
  virtual void after_forward(int64_t layer) = 0;
  // Called in backward, where after_forward() frees what the backward needs again.
  virtual bool follows_backward() const = 0;
  virtual void before_backward(int64_t layer) = 0;
  virtual void after_backward(int64_t layer) = 0;
};

}  // namespace limbeck::models
