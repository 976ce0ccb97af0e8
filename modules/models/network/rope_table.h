// Angles of rotary position embedding: cos and sin in float32 for given positions, for every scaling scheme in use.
// Lengths beyond the original context change the frequencies of some schemes (dynamic, longrope), so the highest
// position of the call decides, as it does in the checkpoints' own code.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

#include "modules/models/family/architecture.h"

namespace limbeck::models {

class RopeTable {
 public:
  RopeTable(const Rope& rope, int64_t max_positions);

  // positions_bt int64 [B, T] -> cos, sin float32 [B, T, rotary_dim / 2] on the same device.
  // length: highest position + 1 of the sequences that these positions belong to.
  std::pair<at::Tensor, at::Tensor> angles(const at::Tensor& positions_bt, int64_t length) const;
  // Whether the frequencies depend on the length at all.
  bool depends_on_length() const;
  // Inverse frequencies, float32 [rotary_dim / 2], CPU.
  at::Tensor inverse_frequencies(int64_t length) const;

 private:
  at::Tensor frequencies_on(c10::Device device, int64_t length) const;

  Rope rope_;
  mutable at::Tensor frequencies_;  // where the last forward was, unless they depend on its length
  int64_t max_positions_;
};

}  // namespace limbeck::models
