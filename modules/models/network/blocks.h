// The blocks of a transformer: attention, MLP, mixture of experts, and the layer that joins them with its norms.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "modules/models/network/draws.h"
#include "modules/models/network/experts.h"
#include "modules/models/network/key_value_cache.h"
#include "modules/models/network/layer_adapter.h"
#include "modules/models/network/parameter_modules.h"

namespace limbeck::models {

// What distillation terms ask a forward to keep beside its result; filled in the order of the layers. Differentiable.
struct Taps {
  struct Operands {
    at::Tensor query_bthd, key_bshd;  // as attention sees them: after their norms and rotary positions
  };
  // What a layer's adapter says of itself.
  struct Adapted {
    at::Tensor low_btr;                           // what its rank leaves of its input, in its compute dtype
    std::map<std::string, at::Tensor> penalties;  // by name: [B, T] in float32 or wider, for a mean over tokens
  };
  bool keep_attention = false, keep_router = false, keep_adapted = false;
  std::vector<Operands> attention;        // one a layer
  std::vector<at::Tensor> router_logits;  // [B, T, E] in the model's dtype, one a sparse layer
  std::vector<Adapted> adapted;           // one a layer whose adapter works

  Taps asking_the_same() const;       // with nothing kept yet
  std::vector<at::Tensor*> kept();    // every tensor, in an order that the same layers always give
  void take_over(const Taps& later);  // what later layers kept, behind what is here
};

// What every layer of one forward shares.
struct LayerInput {
  std::optional<at::Tensor> segments_q, segments_k;        // int32 [B, T], [B, S]; 0 = padding
  std::pair<at::Tensor, at::Tensor> angles, local_angles;  // cos and sin; undefined without rotary positions
  KeyValueCache* cache = nullptr;
  Taps* taps = nullptr;
  Draws draws;  // of training
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
  // Where it is gated, the two halves of a forward, for what comes between them: W_g x and W_u x, W_d (act(gate) * up).
  std::pair<at::Tensor, at::Tensor> gate_and_up(const at::Tensor& x, const Draws& draws) const;
  at::Tensor join(const at::Tensor& gate_btf, const at::Tensor& up_btf, const Draws& draws) const;
  // The linear module whose first rows are W_g; null where nothing is gated.
  const Linear* gate_module() const { return fused_ ? fused_.get() : gate_.get(); }

 private:
  Activation activation_;
  std::shared_ptr<Linear> fused_, gate_, up_, down_;
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

class Layer : public torch::nn::Module, public NamedAdapters<LayerAdapter> {
 public:
  Layer(const Scope& scope, const Architecture& architecture, int64_t layer);
  at::Tensor forward(const at::Tensor& x, const LayerInput& input) const {
    return adapter() != nullptr ? adapter()->forward(x, *this, input) : base_forward(x, input);
  }
  at::Tensor base_forward(const at::Tensor& x, const LayerInput& input) const;  // without an adapter
  const std::string& path() const { return path_; }

  // What makes it another layer than a pre-norm one with a gated MLP: "is post-norm"; empty where nothing does.
  std::string other_kind() const;
  // The parts of such a layer.
  at::Tensor attended(const at::Tensor& h, const LayerInput& input) const;  // attention to the first norm's result
  at::Tensor normed(const at::Tensor& h) const;                             // by the norm before the MLP
  const Mlp& gated_mlp() const;

 private:
  std::string path_;
  NormPlacement placement_;
  std::shared_ptr<Attention> attention_;
  std::shared_ptr<FeedForward> feed_forward_;
  std::shared_ptr<Norm> input_norm_, post_attention_norm_, pre_feed_forward_norm_, post_feed_forward_norm_;
};

}  // namespace limbeck::models
