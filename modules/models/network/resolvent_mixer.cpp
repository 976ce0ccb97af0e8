#include "modules/models/network/resolvent_mixer.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/diag_embed.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <optional>
#include <tuple>
#include <utility>

#include "kernels/linear/linear.h"
#include "kernels/operator/wide_type.h"
#include "kernels/quantized/row_codes.h"
#include "kernels/resolvent/resolvent.h"
#include "modules/errors.h"
#include "modules/models/family/family.h"
#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

constexpr double kFreeDiagonal = -2.0;  // of the matrix without a potential; beside it there are ones

// Of the last token: its Green function and its segment.
struct GreenMemory : MixerMemory {
  at::Tensor green_bh2;  // float64, as the operator goes on from it
  at::Tensor segment_b1;
};

}  // namespace

ResolventCore::ResolventCore(const Scope& scope, const Architecture& a, int64_t layer)
    : ContractModule(scope, Role::kMixer),
      options_(a.resolvent),
      causal_(a.kind == ModelKind::kDecoder),
      layer_(layer),
      potential_place_(path() + " (potential)"),
      features_place_(path() + " (features)"),
      inner_place_(path() + " (resolvent)"),
      codes_place_(path() + " (codes)") {
  create_parameter("scale", {1});
  if (options_.int8 && kernels::wide_type(precision().compute) == at::kDouble) {
    throw UsageError(fmt::format(
        "[{}] is to see 8-bit codes ({} = int8) of float64 activations ({}), and codes are made of float32: use "
        "float32, bfloat16 or float16 activations, or {} = float",
        path(), kBkActivations, precision().source, kBkActivations));
  }
}

at::Tensor ResolventCore::point(const at::Tensor& like) const {
  const at::Tensor z = at::zeros({2}, like.options().requires_grad(false));
  z.select(0, 1).fill_(options_.height);
  return z;
}

at::Tensor ResolventCore::resolvent(const at::Tensor& diagonal_bht, const LayerInput& input) const {
  std::vector<int64_t> beside = diagonal_bht.sizes().vec();
  --beside.back();
  const at::Tensor ones = at::ones({beside.back()}, diagonal_bht.options().requires_grad(false)).expand(beside);
  std::optional<at::Tensor> documents;
  if (input.segments_q) documents = precision::integers(*input.segments_q, at::kLong).unsqueeze(1);
  return kernels::resolvent(diagonal_bht, ones, ones, point(diagonal_bht), causal_, documents);
}

at::Tensor ResolventCore::continued(const at::Tensor& diagonal_bht, const LayerInput& input) const {
  if (!causal_) throw ContractError(fmt::format("[{}] sees both sides of a token and cannot continue a text", path()));
  input.cache->require_room(diagonal_bht.transpose(1, 2));
  auto& memory = input.cache->memory<GreenMemory>(layer_);
  const at::Tensor& segments_bt = *input.segments_q;
  const int64_t rows = diagonal_bht.size(0), tokens = diagonal_bht.size(2);
  if (!memory.green_bh2.defined()) {
    memory.green_bh2 = at::zeros({rows, diagonal_bht.size(1), 2}, diagonal_bht.options().dtype(at::kDouble));
    memory.segment_b1 = at::full({rows, 1}, -1, segments_bt.options());  // of no token
  }
  const at::Tensor before = at::cat({memory.segment_b1, segments_bt.narrow(1, 0, tokens - 1)}, 1);
  const at::Tensor coupling = at::zeros({rows, 1, tokens}, diagonal_bht.options())
                                  .masked_fill(before.eq(segments_bt).unsqueeze(1), 1.0)
                                  .expand(diagonal_bht.sizes());
  at::Tensor green;
  std::tie(green, memory.green_bh2) =
      kernels::continued_resolvent(diagonal_bht, coupling, coupling, point(diagonal_bht), memory.green_bh2);
  memory.segment_b1 = segments_bt.narrow(1, tokens - 1, 1);
  return green;
}

at::Tensor ResolventCore::potential(const at::Tensor& v_bth, at::ScalarType wide) const {
  const at::Tensor v = precision::cast(v_bth, v_bth.scalar_type(), wide, potential_place_)
                           .clamp(-options_.potential, options_.potential);
  return options_.int8 ? seen(v, options_.potential) : v;
}

at::Tensor ResolventCore::features(const at::Tensor& green_bht2) const {
  if (!options_.int8) return green_bht2.transpose(1, 2).flatten(-2);
  return seen(green_bht2.permute({0, 2, 3, 1}), 1 / options_.height).transpose(2, 3).flatten(-2);
}

at::Tensor ResolventCore::seen(const at::Tensor& x, double bound) const {
  precision::name_inner_cast(codes_place_, x.scalar_type(), at::kChar);
  return options_.heads > 1 ? kernels::seen_through_row_codes(x) : kernels::seen_in_steps(x, bound);
}

at::Tensor ResolventCore::forward(const at::Tensor& v_bth, const LayerInput& input) const {
  const precision::ModuleScope scope(path());
  const at::Tensor v = enter(v_bth);
  const at::ScalarType stream = v.scalar_type(), wide = kernels::wide_type(stream);
  const at::Tensor diagonal = potential(v, wide).transpose(1, 2) + kFreeDiagonal;
  if (wide != at::kDouble) precision::name_inner_cast(inner_place_, wide, at::kDouble);
  const at::Tensor green = input.cache != nullptr ? continued(diagonal, input) : resolvent(diagonal, input);
  const at::Tensor given = precision::cast(features(green), wide, stream, features_place_);
  // By a product, whose gradient is one too: a sum over all tokens would depend on how threads divide it.
  const at::Tensor scales = at::diag_embed(parameter("scale").expand({2 * options_.heads}));
  return leave(kernels::linear(given, scales));
}

ResolventMixer::ResolventMixer(const Scope& scope, const Architecture& a, int64_t layer) : path_(scope.path) {
  const int64_t heads = a.resolvent.heads;
  const auto linear = [&](const std::string& name, int64_t in, int64_t out, bool bias) {
    return register_module(name, std::make_shared<Linear>(scope.child(name), Role::kBkCore, in, out, bias));
  };
  potential_ = linear("v_proj", a.hidden, heads, true);
  core_ = register_module("core", std::make_shared<ResolventCore>(scope.child("core"), a, layer));
  output_ = linear("o_proj", 2 * heads, a.hidden, a.output_bias);
}

at::Tensor ResolventMixer::forward(const at::Tensor& x, const LayerInput& input) const {
  const precision::ModuleScope scope(path_);
  return output_->forward(core_->forward(potential_->forward(x, input.draws), input), input.draws);
}

}  // namespace limbeck::models
