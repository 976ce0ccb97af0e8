#include "modules/models/network/blocks.h"

#include "modules/models/network/attention.h"
#include "modules/models/network/resolvent_mixer.h"

namespace limbeck::models {

Mlp::Mlp(const Scope& scope, const Architecture& a) : activation_(a.activation) {
  auto linear = [&](const std::string& name, int64_t in, int64_t out) {
    return register_module(name, std::make_shared<Linear>(scope.child(name), Role::kMlp, in, out, a.mlp_bias));
  };
  if (a.gated && a.fused_gate_up) {
    fused_ = linear("gate_up_proj", a.hidden, 2 * a.intermediate);
  } else {
    if (a.gated) gate_ = linear("gate_proj", a.hidden, a.intermediate);
    up_ = linear("up_proj", a.hidden, a.intermediate);
    if (gate_) up_->fuse_with(*gate_);
  }
  down_ = linear("down_proj", a.intermediate, a.hidden);
}

at::Tensor Mlp::forward(const at::Tensor& x, const LayerInput& input) const {
  const Draws& draws = input.draws;
  if (gate_module() == nullptr) return down_->forward(activate(up_->forward(x, draws), activation_), draws);
  const auto [gate_btf, up_btf] = gate_and_up(x, draws);
  return join(gate_btf, up_btf, draws);
}

std::pair<at::Tensor, at::Tensor> Mlp::gate_and_up(const at::Tensor& x, const Draws& draws) const {
  if (fused_) {
    const auto halves = fused_->forward(x, draws).chunk(2, -1);
    return {halves[0], halves[1]};
  }
  const at::Tensor up = up_->forward(x, draws);
  return {gate_->forward(x, draws), up};
}

at::Tensor Mlp::join(const at::Tensor& gate_btf, const at::Tensor& up_btf, const Draws& draws) const {
  return down_->forward(gate(gate_btf, up_btf, activation_), draws);
}

Layer::Layer(const Scope& scope, const Architecture& a, int64_t layer)
    : path_(scope.path), width_(a.hidden), placement_(a.placement) {
  if (a.other_mixer.make) {
    mixer_ = a.other_mixer.make(scope.child(a.other_mixer.name), a, layer);
    if (mixer_ != nullptr) mixer_name_ = a.other_mixer.name;
  }
  if (mixer_ == nullptr && a.resolvent.heads > 0) {
    mixer_name_ = "bk";
    mixer_ = std::make_shared<ResolventMixer>(scope.child(mixer_name_), a, layer);
  }
  if (mixer_ == nullptr) mixer_ = std::make_shared<Attention>(scope.child(mixer_name_), a, layer);
  register_module(mixer_name_, mixer_);
  if (a.sparse(layer)) {
    feed_forward_ = register_module("mlp", std::make_shared<MixtureOfExperts>(scope.child("mlp"), a));
  } else {
    feed_forward_ = register_module("mlp", std::make_shared<Mlp>(scope.child("mlp"), a));
  }
  auto norm = [&](const std::string& name) {
    return register_module(name, std::make_shared<Norm>(scope.child(name), a.norm, a.hidden, a.norm_epsilon));
  };
  if (placement_ != NormPlacement::kPost) input_norm_ = norm("input_layernorm");
  if (placement_ == NormPlacement::kParallel) return;
  post_attention_norm_ = norm("post_attention_layernorm");
  if (placement_ == NormPlacement::kSandwich) pre_feed_forward_norm_ = norm("pre_feedforward_layernorm");
  if (placement_ != NormPlacement::kPre) post_feed_forward_norm_ = norm("post_feedforward_layernorm");
}

at::Tensor Layer::base_forward(const at::Tensor& x, const LayerInput& input) const {
  switch (placement_) {
    case NormPlacement::kPre: {
      const at::Tensor h = input.read_of(x) + mixed(input_norm_->forward(x), input);
      return h + feed_forward_->forward(post_attention_norm_->forward(h), input);
    }
    case NormPlacement::kPost: {
      const at::Tensor h = post_attention_norm_->forward(input.read_of(x) + mixed(x, input));
      return post_feed_forward_norm_->forward(h + feed_forward_->forward(h, input));
    }
    case NormPlacement::kParallel: {
      const at::Tensor n = input_norm_->forward(x);
      return input.read_of(x) + mixed(n, input) + feed_forward_->forward(input.read_of(n), input);
    }
    case NormPlacement::kSandwich:
      break;
  }
  const at::Tensor h = input.read_of(x) + post_attention_norm_->forward(mixed(input_norm_->forward(x), input));
  return h + post_feed_forward_norm_->forward(feed_forward_->forward(pre_feed_forward_norm_->forward(h), input));
}

at::Tensor Layer::mixed(const at::Tensor& x, const LayerInput& input) const {
  const auto mix = [&] { return input.read_of(mixer_->forward(x, input)); };
  at::Tensor y =
      precision::current_replay() == nullptr ? mix() : precision::replayed(path_ + "." + mixer_name_, x, mix);
  if (input.taps != nullptr && input.taps->keep_mixed) input.taps->mixed.push_back(y);
  return y;
}

bool Layer::has_attention() const { return dynamic_cast<const Attention*>(mixer_.get()) != nullptr; }

std::string Layer::other_kind() const {
  if (placement_ == NormPlacement::kPost) return "is post-norm";
  if (placement_ == NormPlacement::kSandwich) return "has norms before and after its parts (sandwich)";
  if (placement_ == NormPlacement::kParallel) return "has its parts beside each other, behind one norm (parallel)";
  const auto* mlp = dynamic_cast<const Mlp*>(feed_forward_.get());
  if (mlp == nullptr) return "is sparse (a mixture of experts)";
  return mlp->gate_module() == nullptr ? "has an MLP without a gate" : "";
}

at::Tensor Layer::attended(const at::Tensor& h, const LayerInput& input) const {
  return mixed(input_norm_->forward(h), input);
}

at::Tensor Layer::normed(const at::Tensor& h) const { return post_attention_norm_->forward(h); }

const Mlp& Layer::gated_mlp() const { return dynamic_cast<const Mlp&>(*feed_forward_); }

}  // namespace limbeck::models
