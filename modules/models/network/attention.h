// Attention of every family: grouped heads, norms of queries and keys, rotary positions, windows, a soft cap.
#pragma once
#include <memory>
#include <string>

#include "modules/models/network/parameter_modules.h"
#include "modules/models/network/token_mixer.h"

namespace limbeck::models {

class Attention : public TokenMixer {
 public:
  Attention(const Scope& scope, const Architecture& architecture, int64_t layer);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const override;

 private:
  const std::string path_;
  int64_t layer_, heads_, key_value_heads_, head_dim_, window_;
  bool causal_, local_;
  double scale_, softcap_;
  std::shared_ptr<Linear> fused_, query_, key_, value_, output_;
  std::shared_ptr<Norm> query_norm_, key_norm_;
};

}  // namespace limbeck::models
