// The blocks of a transformer: MLP, mixture of experts, and the layer that joins one of them and a token mixer with its
// norms.
#pragma once
#include <memory>
#include <string>
#include <utility>

#include "modules/models/network/experts.h"
#include "modules/models/network/layer_adapter.h"
#include "modules/models/network/parameter_modules.h"
#include "modules/models/network/token_mixer.h"

namespace limbeck::models {

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
  int64_t width() const { return width_; }                       // of the stream that it reads and writes
  const std::string& mixer_name() const { return mixer_name_; }  // of its module; attention's is "self_attn"
  bool has_attention() const;                                    // which alone fills Taps::attention

  // What makes it another layer than a pre-norm one with a gated MLP: "is post-norm"; empty where nothing does.
  std::string other_kind() const;
  // The parts of such a layer.
  at::Tensor attended(const at::Tensor& h,
                      const LayerInput& input) const;  // what the mixer makes of the first norm's result
  at::Tensor normed(const at::Tensor& h) const;        // by the norm before the MLP
  const Mlp& gated_mlp() const;

 private:
  at::Tensor mixed(const at::Tensor& x, const LayerInput& input) const;  // by the token mixer, kept for taps

  std::string path_;
  int64_t width_;
  NormPlacement placement_;
  std::string mixer_name_ = "self_attn";
  std::shared_ptr<TokenMixer> mixer_;
  std::shared_ptr<FeedForward> feed_forward_;
  std::shared_ptr<Norm> input_norm_, post_attention_norm_, pre_feed_forward_norm_, post_feed_forward_norm_;
};

}  // namespace limbeck::models
