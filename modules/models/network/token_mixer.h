// What moves information from token to token in a layer, between the norm before it and the residual stream: attention,
// or what a family has in its place (Architecture::other_mixer). It owns its parameters through contract modules
// (linear ones of Role::kAttention or kBkCore, others of Role::kMixer), keeps to input.segments_q (no token sees
// padding, nor another document), and where input.cache is there continues from the memory that it keeps under its
// layer's number. Called again with the same input it gives the same bits: activation checkpointing runs it twice.
#pragma once
#include <torch/nn/module.h>

#include "modules/models/network/layer_input.h"

namespace limbeck::models {

class TokenMixer : public torch::nn::Module {
 public:
  // x [B, T, D], of the new tokens alone where there is a cache, to the same shape and dtype.
  virtual at::Tensor forward(const at::Tensor& x, const LayerInput& input) const = 0;
};

}  // namespace limbeck::models
