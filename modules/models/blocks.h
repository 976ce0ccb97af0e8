// The blocks of a transformer: attention, MLP, mixture of experts, and the layer that joins them with its norms.
#pragma once
#include <memory>
#include <optional>

#include "modules/models/key_value_cache.h"
#include "modules/models/layers.h"

namespace limbeck::models {

// What distillation terms ask a forward to keep beside its result; filled in the order of the layers. Differentiable.
struct Taps {
  struct Operands {
    at::Tensor query_bthd, key_bshd;  // as attention sees them: after their norms and rotary positions
  };
  bool keep_attention = false, keep_router = false;
  std::vector<Operands> attention;        // one a layer
  std::vector<at::Tensor> router_logits;  // [B, T, E] in the model's dtype, one a sparse layer
};

// What every layer of one forward shares.
struct LayerInput {
  std::optional<at::Tensor> segments_q, segments_k;        // int32 [B, T], [B, S]; 0 = padding
  std::pair<at::Tensor, at::Tensor> angles, local_angles;  // cos and sin; undefined without rotary positions
  KeyValueCache* cache = nullptr;
  Taps* taps = nullptr;
};

class Attention : public torch::nn::Module {
 public:
  Attention(const Scope& scope, const Architecture& architecture, int64_t layer);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const;

 private:
  const std::string path_;
  int64_t layer_, heads_, key_value_heads_, head_dim_, window_;
  bool causal_, local_;
  double scale_, softcap_;
  std::shared_ptr<Linear> fused_, query_, key_, value_, output_;
  std::shared_ptr<Norm> query_norm_, key_norm_;
};

// Either of the two feed-forward kinds.
class FeedForward : public torch::nn::Module {
 public:
  virtual at::Tensor forward(const at::Tensor& x, const LayerInput& input) const = 0;
};

class Mlp : public FeedForward {
 public:
  Mlp(const Scope& scope, const Architecture& architecture);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const override;

 private:
  Activation activation_;
  std::shared_ptr<Linear> fused_, gate_, up_, down_;
};

// All experts of one layer as two stacked tensors; the router's probabilities are float32.
class ExpertWeights : public ContractModule {
 public:
  ExpertWeights(const Scope& scope, const Architecture& architecture);
  // x_nd [N, D], experts_nk int64 [N, K], weights_nk float32 (float64 for a float64 model) -> [N, D]
  at::Tensor forward(const at::Tensor& x_nd, const at::Tensor& experts_nk, const at::Tensor& weights_nk) const;

 private:
  int64_t count_;
  Activation activation_;
};

class MixtureOfExperts : public FeedForward {
 public:
  MixtureOfExperts(const Scope& scope, const Architecture& architecture);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const override;

 private:
  const std::string path_;
  int64_t per_token_;
  bool normalize_;
  std::shared_ptr<Linear> router_;
  std::shared_ptr<ExpertWeights> experts_;
};

class Layer : public torch::nn::Module {
 public:
  Layer(const Scope& scope, const Architecture& architecture, int64_t layer);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const;

 private:
  NormPlacement placement_;
  std::shared_ptr<Attention> attention_;
  std::shared_ptr<FeedForward> feed_forward_;
  std::shared_ptr<Norm> input_norm_, post_attention_norm_, pre_feed_forward_norm_, post_feed_forward_norm_;
};

}  // namespace limbeck::models
