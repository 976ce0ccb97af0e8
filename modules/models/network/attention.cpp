#include "modules/models/network/attention.h"

#include <ATen/ops/empty.h>

#include <tuple>
#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/rotary/rotary.h"

namespace limbeck::models {

namespace {

// Of all tokens so far: one preallocated buffer each.
class KeysAndValues : public MixerMemory {
 public:
  // Appends k, v [B, T, H, D]; returns views of all so far.
  std::pair<at::Tensor, at::Tensor> append(const at::Tensor& k, const at::Tensor& v, const TokenCache& cache) {
    cache.require_room(k);
    if (!keys_.defined()) {
      keys_ = at::empty({cache.batch(), cache.capacity(), k.size(2), k.size(3)}, k.options());
      values_ = at::empty({cache.batch(), cache.capacity(), v.size(2), v.size(3)}, v.options());
    }
    const int64_t past = cache.length(), tokens = k.size(1);
    keys_.narrow(1, past, tokens).copy_(k);
    values_.narrow(1, past, tokens).copy_(v);
    return {keys_.narrow(1, 0, past + tokens), values_.narrow(1, 0, past + tokens)};
  }

 private:
  at::Tensor keys_, values_;
};

}  // namespace

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
    for (const auto& other : {key_, value_}) other->fuse_with(*query_);
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
    // Queries of some tokens find their keys by segments alone: not by their places among all tokens.
    const bool places = causal_ || window_ > 0 || input.angles.first.defined();
    const at::Tensor asking = places ? x : input.read_of(x);
    q = query_->forward(asking, input.draws), k = key_->forward(x, input.draws), v = value_->forward(x, input.draws);
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
    std::tie(q, k) = kernels::rotary_embedding_of_both(q, k, cos, sin);
  }
  if (input.taps != nullptr && input.taps->keep_attention) input.taps->attention.push_back({q, k});
  if (input.cache != nullptr) std::tie(k, v) = input.cache->memory<KeysAndValues>(layer_).append(k, v, *input.cache);
  const kernels::AttentionOptions options{scale_, causal_, window_, softcap_};
  if (q.size(1) < x.size(1)) {  // whose segments are those of the tokens that are read; runs are of all
    const auto asking = input.segments_q ? std::optional(input.read_of(*input.segments_q)) : std::nullopt;
    const at::Tensor read = kernels::attention(q, k, v, asking, input.segments_k, options);
    return output_->forward(read.flatten(-2), input.draws);
  }
  const at::Tensor mixed = kernels::attention(q, k, v, input.segments_q, input.segments_k, options, input.runs);
  return output_->forward(mixed.flatten(-2), input.draws);
}

}  // namespace limbeck::models
