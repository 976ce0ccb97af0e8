#include "modules/models/network/transformer.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/nonzero_static.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <utility>

#include "kernels/attention/attention.h"
#include "modules/errors.h"
#include "modules/models/network/checkpointed_layer.h"
#include "modules/models/network/fetched_layer.h"
#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

// [B, T - 1]: where a number of a row is another than the one before it.
at::Tensor changes(const at::Tensor& numbers) {
  const int64_t later = numbers.size(1) - 1;
  return numbers.narrow(1, 1, later).ne(numbers.narrow(1, 0, later));
}

// 0-based positions of each token within its row, skipping padding, restarting at each document.
at::Tensor default_positions(const ModelInput& input, ModelKind kind) {
  const int64_t length = input.ids.size(1);
  const int64_t past = input.cache == nullptr ? 0 : input.cache->length();
  const at::Tensor running = at::arange(past, past + length, input.ids.options()).unsqueeze(0).expand_as(input.ids);
  if (input.document_ids) {
    // The first index of each token's document is the running maximum of the indices where a document starts.
    at::Tensor starts = at::zeros_like(running);
    if (length > 1) {
      starts.narrow(1, 1, length - 1).copy_(running.narrow(1, 1, length - 1) * changes(*input.document_ids));
    }
    return running - std::get<0>(starts.cummax(1));
  }
  if (input.attention_mask && kind == ModelKind::kDecoder && input.cache == nullptr) {
    return (precision::integers(*input.attention_mask, at::kLong).cumsum(1) - 1).clamp_min(0);
  }
  return running;
}

std::optional<at::Tensor> segments(const ModelInput& input) {
  if (!input.document_ids && !input.attention_mask) return std::nullopt;
  at::Tensor result;
  if (input.document_ids) result = precision::integers(*input.document_ids, at::kInt);
  if (input.attention_mask) {
    const at::Tensor kept = precision::integers(input.attention_mask->ne(0), at::kInt);
    result = result.defined() ? result * kept : kept;
  }
  return result;
}

// Where the runs of equal segments begin, in order, and where the last one ends: count + 1 numbers, without asking the
// device how many there are.
at::Tensor run_ends(const at::Tensor& segments, int64_t count) {
  const int64_t tokens = segments.numel();
  at::Tensor first = at::ones_like(segments, segments.options().dtype(at::kBool));
  first.narrow(1, 1, segments.size(1) - 1).copy_(changes(segments));
  const at::Tensor begins = at::nonzero_static(first.flatten(), count, /*fill_value=*/tokens).flatten();
  return precision::integers(at::constant_pad_nd(begins, {0, 1}, tokens), at::kInt);
}

}  // namespace

Transformer::Transformer(const Scope& scope, Architecture architecture)
    : architecture_(std::move(architecture)),
      path_(scope.path),
      rope_(architecture_.rope, architecture_.max_positions),
      local_rope_(architecture_.local_rope, architecture_.max_positions) {
  const Architecture& a = architecture_;
  auto embedding = [&](const std::string& name, int64_t rows) {
    return register_module(name, std::make_shared<Embedding>(scope.child(name), rows, a.hidden));
  };
  auto norm = [&](const std::string& name) {
    return register_module(name, std::make_shared<Norm>(scope.child(name), a.norm, a.hidden, a.norm_epsilon));
  };
  auto linear = [&](const std::string& name, int64_t out, bool bias) {
    return register_module(name, std::make_shared<Linear>(scope.child(name), Role::kHead, a.hidden, out, bias));
  };
  tokens_ = register_module(
      "embed_tokens", std::make_shared<Embedding>(scope.child("embed_tokens"), a.vocabulary, a.hidden, a.padding_id));
  if (a.learned_positions > 0) positions_ = embedding("embed_positions", a.learned_positions);
  if (a.token_types > 0) token_types_ = embedding("embed_token_types", a.token_types);
  if (a.embedding_norm) embedding_norm_ = norm("embed_norm");
  const auto stack = register_module("layers", std::make_shared<torch::nn::Module>());
  for (int64_t i = 0; i < a.layers; ++i) {
    const std::string index = std::to_string(i);
    layers_.push_back(stack->register_module(index, std::make_shared<Layer>(scope.child("layers").child(index), a, i)));
  }
  if (a.final_norm) final_norm_ = norm("norm");
  if (a.pooler) pooler_ = linear("pooler", a.hidden, true);
  if (a.head == HeadKind::kDistilBertClassifier) pre_classifier_ = linear("pre_classifier", a.hidden, true);
  if (a.head == HeadKind::kLanguageModel) {
    if (a.head_transform) head_dense_ = linear("head_dense", a.hidden, true), head_norm_ = norm("head_norm");
    head_ = a.tied ? register_module(
                         "lm_head", std::make_shared<Linear>(scope.child("lm_head"), Role::kHead, tokens_, a.head_bias))
                   : linear("lm_head", a.vocabulary, a.head_bias);
  } else if (a.head != HeadKind::kNone) {
    head_ = linear("classifier", a.labels, true);
  }
}

at::Tensor Transformer::embed(const ModelInput& input, const at::Tensor& positions) const {
  at::Tensor x = tokens_->forward(input.ids);
  const precision::ModuleScope scope(path_);
  if (architecture_.embedding_scale != 1.0) x = x * architecture_.embedding_scale;
  if (token_types_) {
    x = x + token_types_->forward(input.token_type_ids ? *input.token_type_ids : at::zeros_like(input.ids));
  }
  if (positions_) x = x + positions_->forward(positions);
  return embedding_norm_ ? embedding_norm_->forward(x) : x;
}

LayerInput Transformer::layer_input(const ModelInput& input, const at::Tensor& positions) const {
  LayerInput shared;
  shared.cache = input.cache;
  shared.taps = input.taps;
  shared.draws = input.draws;
  shared.segments_q = segments(input);
  if (input.cache != nullptr) {
    if (input.document_ids) throw ContractError("[" + path_ + "] packed documents are for training, not for a cache");
    if (!shared.segments_q) {
      shared.segments_q = at::ones(input.ids.sizes(), input.ids.options().dtype(at::kInt));
    }
    shared.segments_k = input.cache->append_segments(*shared.segments_q);
  } else {
    shared.segments_k = shared.segments_q;
    // The CPU reads segments as they are; both given, a document may be cut by the mask.
    const bool one = input.document_ids.has_value() != input.attention_mask.has_value();
    if (input.runs && one && kernels::reads_runs(input.ids)) shared.runs = run_ends(*shared.segments_q, *input.runs);
  }
  if (architecture_.rope.type != RopeType::kNone) {
    int64_t length = positions.size(1) + (input.cache == nullptr ? 0 : input.cache->length());
    if ((rope_.depends_on_length() || local_rope_.depends_on_length()) && !positions.is_meta()) {
      length = positions.max().item<int64_t>() + 1;
    }
    shared.angles = rope_.angles(positions, length);
    if (architecture_.local_rope.type != RopeType::kNone)
      shared.local_angles = local_rope_.angles(positions, length);
    else
      shared.local_angles = shared.angles;
  }
  return shared;
}

Encoded Transformer::encode(const ModelInput& input, bool keep_hidden) const {
  const int64_t past = input.cache == nullptr ? 0 : input.cache->length();
  if (positions_ && past + input.ids.size(1) > architecture_.learned_positions) {
    throw ContractError(fmt::format("[{}] {} tokens, wanted at most {} (rows of the position table)", path_,
                                    past + input.ids.size(1), architecture_.learned_positions));
  }
  const at::Tensor positions = positions_of(input);
  const LayerInput shared = layer_input(input, positions);
  Encoded result;
  if (keeper_ != nullptr) keeper_->before_forward(WeightKeeper::kOutside);
  at::Tensor x = embed(input, positions);
  int64_t number = 0;
  for (const auto& layer : layers_) {
    if (keep_hidden) {
      result.hidden.push_back(x);
      // The layer's gradients meet here before those of the kept state join: one order of summation, checkpointed or
      // not.
      x = x.view_as(x);
    }
    if (input.layer_inputs != nullptr) x = input.layer_inputs->at(static_cast<size_t>(number));
    const auto forward = [&](const at::Tensor& in) {
      return checkpointing_ ? checkpointed_forward(layer, in, shared) : layer->forward(in, shared);
    };
    x = keeper_ == nullptr ? forward(x) : kept_forward(*keeper_, number, x, forward);
    ++number;
  }
  if (input.cache != nullptr) input.cache->advance(input.ids.size(1));
  result.last = last_of(x);
  if (keep_hidden) result.hidden.push_back(result.last);
  return result;
}

at::Tensor Transformer::positions_of(const ModelInput& input) const {
  return input.position_ids ? *input.position_ids : default_positions(input, architecture_.kind);
}

at::Tensor Transformer::embedded(const ModelInput& input) const { return embed(input, positions_of(input)); }

at::Tensor Transformer::through_layer(size_t layer, const at::Tensor& x, const ModelInput& input,
                                      std::optional<int64_t> read_tokens) const {
  LayerInput shared = layer_input(input, positions_of(input));
  shared.read_tokens = read_tokens;
  return layers_.at(layer)->forward(x, shared);
}

ProductOperands Transformer::head_operands(const at::Tensor& states, bool learns, const Draws& draws) const {
  const at::Tensor x = before_head(states, learns, draws);
  ProductOperands product = head_->adapter() != nullptr ? head_->adapter()->operands(x, *head_, learns, draws)
                                                        : ProductOperands{x, head_->operand()};
  if (!learns) product.weight = product.weight.detach();
  const std::optional<at::Tensor> bias = head_->bias();
  if (!bias) return product;
  product.x = at::cat({product.x, at::ones({x.size(0), 1}, x.options().requires_grad(false))}, 1);
  product.weight = at::cat({product.weight, (learns ? *bias : bias->detach()).unsqueeze(1)}, 1);
  return product;
}

at::Tensor Transformer::before_head(const at::Tensor& last, bool learns, const Draws& draws) const {
  if (head_dense_ == nullptr) return last;
  const at::Tensor dense = learns ? head_dense_->forward(last, draws) : head_dense_->frozen_forward(last);
  return head_norm_->forward(activate(dense, architecture_.activation), learns);
}

at::Tensor Transformer::head(const at::Tensor& last, const Draws& draws) const {
  const precision::ModuleScope scope(path_);
  const auto first = [&] { return draws.of_first_tokens(last.size(0)); };
  switch (architecture_.head) {
    case HeadKind::kLanguageModel: {
      const at::Tensor logits = head_->forward(before_head(last, /*learns=*/true, draws), draws);
      if (architecture_.logit_softcap == 0.0) return logits;
      return at::tanh(logits / architecture_.logit_softcap) * architecture_.logit_softcap;
    }
    case HeadKind::kBertClassifier:
      return head_->forward(at::tanh(pooler_->forward(last.select(1, 0), first())), first());
    case HeadKind::kDistilBertClassifier:
      return head_->forward(activate(pre_classifier_->forward(last.select(1, 0), first()), Activation::kRelu), first());
    case HeadKind::kNone:
      break;
  }
  throw ContractError("[" + path_ + "] has no head: this checkpoint is a bare encoder");
}

at::Tensor mean_pool(const at::Tensor& last, const std::optional<at::Tensor>& attention_mask) {
  if (!attention_mask) return last.mean(1);
  // The mask joins by selection, not by multiplication with a converted copy: no dtype changes hands.
  const at::Tensor dropped = attention_mask->eq(0).unsqueeze(-1);
  const at::Tensor count = attention_mask->ne(0).sum(1, /*keepdim=*/true).clamp_min(1);
  return last.masked_fill(dropped, 0).sum(1) / count;
}

}  // namespace limbeck::models
