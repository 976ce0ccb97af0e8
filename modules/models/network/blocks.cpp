#include "modules/models/network/blocks.h"

#include <ATen/ops/split.h>

#include "kernels/attention/attention.h"
#include "kernels/rotary/rotary.h"

namespace limbeck::models {

Taps Taps::asking_the_same() const {
  Taps fresh;
  fresh.keep_attention = keep_attention, fresh.keep_router = keep_router, fresh.keep_adapted = keep_adapted;
  return fresh;
}

std::vector<at::Tensor*> Taps::kept() {
  std::vector<at::Tensor*> all;
  for (Operands& operands : attention) all.insert(all.end(), {&operands.query_bthd, &operands.key_bshd});
  for (at::Tensor& logits : router_logits) all.push_back(&logits);
  for (Adapted& one : adapted) {
    all.push_back(&one.low_btr);
    for (auto& [name, penalty] : one.penalties) all.push_back(&penalty);
  }
  return all;
}

void Taps::take_over(const Taps& later) {
  attention.insert(attention.end(), later.attention.begin(), later.attention.end());
  router_logits.insert(router_logits.end(), later.router_logits.begin(), later.router_logits.end());
  adapted.insert(adapted.end(), later.adapted.begin(), later.adapted.end());
}

Attention::Attention(const Scope& scope, const Architecture& a, int64_t layer)
    : path_(scope.path),
      layer_(layer),
      heads_(a.heads),
      key_value_heads_(a.key_value_heads),
      head_dim_(a.head_dim),
      window_(a.window.empty() ? 0 : a.window[static_cast<size_t>(layer)]),
      causal_(a.kind == ModelKind::kDecoder),
      local_(!a.layer_is_local.empty() && a.layer_is_local[static_cast<size_t>(layer)]),
      scale_(a.attention_scale),
      softcap_(a.attention_softcap) {
  const int64_t q_width = heads_ * head_dim_, kv_width = key_value_heads_ * head_dim_;
  auto linear = [&](const std::string& name, int64_t in, int64_t out, bool bias) {
    return register_module(name, std::make_shared<Linear>(scope.child(name), Role::kAttention, in, out, bias));
  };
  if (a.fused_query_key_value) {
    fused_ = linear("qkv_proj", a.hidden, q_width + 2 * kv_width, a.query_key_value_bias);
  } else {
    query_ = linear("q_proj", a.hidden, q_width, a.query_key_value_bias);
    key_ = linear("k_proj", a.hidden, kv_width, a.query_key_value_bias);
    value_ = linear("v_proj", a.hidden, kv_width, a.query_key_value_bias);
  }
  output_ = linear("o_proj", q_width, a.hidden, a.output_bias);
  if (a.query_key_norm) {
    auto norm = [&](const std::string& name) {
      return register_module(name, std::make_shared<Norm>(scope.child(name), a.norm, head_dim_, a.norm_epsilon));
    };
    query_norm_ = norm("q_norm");
    key_norm_ = norm("k_norm");
  }
}

at::Tensor Attention::forward(const at::Tensor& x, const LayerInput& input) const {
  const precision::ModuleScope scope(path_);
  at::Tensor q, k, v;
  if (fused_) {
    const int64_t kv_width = key_value_heads_ * head_dim_;
    const auto parts = fused_->forward(x, input.draws).split_with_sizes({heads_ * head_dim_, kv_width, kv_width}, -1);
    q = parts[0], k = parts[1], v = parts[2];
  } else {
    q = query_->forward(x, input.draws), k = key_->forward(x, input.draws), v = value_->forward(x, input.draws);
  }
  q = q.unflatten(-1, {heads_, head_dim_});
  k = k.unflatten(-1, {key_value_heads_, head_dim_});
  v = v.unflatten(-1, {key_value_heads_, head_dim_});
  if (query_norm_) {
    q = query_norm_->forward(q);
    k = key_norm_->forward(k);
  }
  const auto& [cos, sin] = local_ ? input.local_angles : input.angles;
  if (cos.defined()) {
    q = kernels::rotary_embedding(q, cos, sin);
    k = kernels::rotary_embedding(k, cos, sin);
  }
  if (input.taps != nullptr && input.taps->keep_attention) input.taps->attention.push_back({q, k});
  if (input.cache != nullptr) std::tie(k, v) = input.cache->append(layer_, k, v);
  const kernels::AttentionOptions options{scale_, causal_, window_, softcap_};
  const at::Tensor mixed = kernels::attention(q, k, v, input.segments_q, input.segments_k, options);
  return output_->forward(mixed.flatten(-2), input.draws);
}

Mlp::Mlp(const Scope& scope, const Architecture& a) : activation_(a.activation) {
  auto linear = [&](const std::string& name, int64_t in, int64_t out) {
    return register_module(name, std::make_shared<Linear>(scope.child(name), Role::kMlp, in, out, a.mlp_bias));
  };
  if (a.gated && a.fused_gate_up) {
    fused_ = linear("gate_up_proj", a.hidden, 2 * a.intermediate);
  } else {
    if (a.gated) gate_ = linear("gate_proj", a.hidden, a.intermediate);
    up_ = linear("up_proj", a.hidden, a.intermediate);
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

Layer::Layer(const Scope& scope, const Architecture& a, int64_t layer) : path_(scope.path), placement_(a.placement) {
  attention_ = register_module("self_attn", std::make_shared<Attention>(scope.child("self_attn"), a, layer));
  if (a.sparse(layer)) {
    feed_forward_ = register_module("mlp", std::make_shared<MixtureOfExperts>(scope.child("mlp"), a));
  } else {
    feed_forward_ = register_module("mlp", std::make_shared<Mlp>(scope.child("mlp"), a));
  }
  auto norm = [&](const std::string& name) {
    return register_module(name, std::make_shared<Norm>(scope.child(name), a.norm, a.hidden, a.norm_epsilon));
  };
  if (placement_ != NormPlacement::kPost) input_norm_ = norm("input_layernorm");
  post_attention_norm_ = norm("post_attention_layernorm");
  if (placement_ == NormPlacement::kSandwich) pre_feed_forward_norm_ = norm("pre_feedforward_layernorm");
  if (placement_ != NormPlacement::kPre) post_feed_forward_norm_ = norm("post_feedforward_layernorm");
}

at::Tensor Layer::base_forward(const at::Tensor& x, const LayerInput& input) const {
  switch (placement_) {
    case NormPlacement::kPre: {
      const at::Tensor h = x + attention_->forward(input_norm_->forward(x), input);
      return h + feed_forward_->forward(post_attention_norm_->forward(h), input);
    }
    case NormPlacement::kPost: {
      const at::Tensor h = post_attention_norm_->forward(x + attention_->forward(x, input));
      return post_feed_forward_norm_->forward(h + feed_forward_->forward(h, input));
    }
    case NormPlacement::kSandwich:
      break;
  }
  const at::Tensor h = x + post_attention_norm_->forward(attention_->forward(input_norm_->forward(x), input));
  return h + post_feed_forward_norm_->forward(feed_forward_->forward(pre_feed_forward_norm_->forward(h), input));
}

std::string Layer::other_kind() const {
  if (placement_ == NormPlacement::kPost) return "is post-norm";
  if (placement_ == NormPlacement::kSandwich) return "has norms before and after its parts (sandwich)";
  const auto* mlp = dynamic_cast<const Mlp*>(feed_forward_.get());
  if (mlp == nullptr) return "is sparse (a mixture of experts)";
  return mlp->gate_module() == nullptr ? "has an MLP without a gate" : "";
}

at::Tensor Layer::attended(const at::Tensor& h, const LayerInput& input) const {
  return attention_->forward(input_norm_->forward(h), input);
}

at::Tensor Layer::normed(const at::Tensor& h) const { return post_attention_norm_->forward(h); }

const Mlp& Layer::gated_mlp() const { return dynamic_cast<const Mlp&>(*feed_forward_); }

}  // namespace limbeck::models
