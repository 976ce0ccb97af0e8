#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/operator/planned_device.h"
#include "kernels/operator/wide_type.h"
#include "kernels/quantized/grouped_quantized_linear.h"
#include "modules/errors.h"
#include "modules/models/network/blocks.h"
#include "modules/models/network/experts.h"
#include "modules/precision/casts.h"
#include "modules/precision/module_replay.h"
#include "modules/precision/observer.h"

namespace limbeck::models {

namespace {

// Weights on meta stand for ones of the device that the memory plan is for.
bool on_gpu(const at::Tensor& tensor) {
  return tensor.is_cuda() || (tensor.is_meta() && kernels::planned_device() == at::kCUDA);
}

at::Tensor indices(const std::vector<int64_t>& values, const at::Tensor& where) {
  if (where.is_meta()) return where.new_empty({static_cast<int64_t>(values.size())});
  return at::tensor(values, at::kLong);
}

// The rows of each expert, from the tokens. index_select's own gradient adds the rows of a token up as they come, on a
// GPU in another order each time and rounded after each; this one adds those of a token's experts in one order.
struct TokensToRows : torch::autograd::Function<TokensToRows> {
  // token_of_row [rows]; row_of [N, K]: where a token went.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& tokens_nd,
                            const at::Tensor& token_of_row, const at::Tensor& row_of) {
    context->save_for_backward({row_of});
    return tokens_nd.index_select(0, token_of_row);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const at::Tensor row_of = context->get_saved_variables()[0];
    const at::Tensor& rows = gradients[0];
    const at::Tensor copies = rows.index_select(0, row_of.flatten());
    return {copies.view({row_of.size(0), row_of.size(1), rows.size(1)}).sum(1), at::Tensor(), at::Tensor()};
  }
};

// The tokens, once for each expert that they go to, those of one expert together. Nothing of it is read by the host of
// a GPU.
struct ExpertRows {
  at::Tensor token_of;  // [rows]
  at::Tensor row_of;    // [N, K]
  at::Tensor ends;      // int32 [E]
};

// Where the experts end in their sorted numbers; what searches has no body for meta in ATen.
at::Tensor ends_of_groups(const at::Tensor& sorted_experts, int64_t count) {
  if (sorted_experts.is_meta()) return sorted_experts.new_empty({count}, at::kInt);
  return at::searchsorted(sorted_experts, at::arange(count, sorted_experts.options()), /*out_int32=*/true,
                          /*right=*/true);
}

ExpertRows sorted_rows(const at::Tensor& experts_nk, int64_t count) {
  // Stable sort: the tokens of one expert stay in order, so the bits do not depend on the sort's whims.
  const auto [sorted, order] = experts_nk.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  return {order.div(experts_nk.size(1), "floor"), order.argsort().view(experts_nk.sizes()),
          ends_of_groups(sorted, count)};
}

// oneDNN compiles a bfloat16 product anew for each number of rows: above a few they are rounded up, so that it meets
// the same ones again.
int64_t padded(int64_t rows) { return rows <= 16 ? rows : (rows + 31) / 32 * 32; }

// With rows behind those of each expert whose results nobody reads. On meta there are no experts to count: an even
// split stands for them in the memory plan.
ExpertRows padded_rows(const ExpertRows& rows) {
  const int64_t count = rows.ends.size(0), total = rows.token_of.size(0);
  std::vector<int64_t> place_of, new_place_of;
  std::vector<int> ends;
  int64_t begin = 0;
  for (int64_t expert = 0; expert < count; ++expert) {
    const int64_t end =
        rows.ends.is_meta() ? total * (expert + 1) / count : rows.ends.const_data_ptr<int32_t>()[expert];
    const int64_t tokens = end - begin;
    for (int64_t i = 0; i < tokens; ++i) new_place_of.push_back(static_cast<int64_t>(place_of.size()) + i);
    for (int64_t i = 0; i < padded(tokens); ++i) place_of.push_back(i < tokens ? begin + i : begin);
    ends.push_back(static_cast<int>(place_of.size()));
    begin = end;
  }
  const at::Tensor new_ends = rows.ends.is_meta() ? rows.ends : at::tensor(ends, at::kInt);
  return {rows.token_of.index_select(0, indices(place_of, rows.token_of)),
          indices(new_place_of, rows.row_of).index_select(0, rows.row_of.flatten()).view(rows.row_of.sizes()),
          new_ends};
}

// The first bias [E, out] of each row's expert, as a product with a column of ones: its gradient is then one of a
// product too, with the same bits on any number of threads, and in any order in which a GPU would add rows up.
at::Tensor of_each_row(const at::Tensor& bias, const at::Tensor& rows, const at::Tensor& ends) {
  const at::Tensor ones = at::ones({rows.size(0), 1}, rows.options().requires_grad(false));
  return kernels::grouped_linear(ones, bias.unsqueeze(-1), ends);
}

}  // namespace

ExpertStack::ExpertStack(const ExpertWeights& owner, const std::string& parameter, const StackSizes& sizes)
    : owner_(owner), parameter_(parameter), path_(owner.path() + "." + parameter), sizes_(sizes) {}

std::vector<std::string> ExpertStack::packed_names(const std::string& parameter) {
  if (parameter == "gate_up_proj") return {"gate_proj", "up_proj"};
  return {parameter};
}

at::Tensor ExpertStack::forward(const at::Tensor& rows, const at::Tensor& ends) const {
  return adapter() == nullptr ? product(rows, ends) : adapter()->forward(rows, ends, *this);
}

std::optional<at::Tensor> ExpertStack::bias() const {
  const std::string name = bias_name(parameter_);
  return owner_.has_parameter(name) ? std::optional(owner_.parameter(name)) : std::nullopt;
}

at::Tensor ExpertStack::product(const at::Tensor& rows, const at::Tensor& ends) const {
  if (!is_quantized()) return kernels::grouped_linear(rows, weight(), ends);
  std::vector<at::Tensor> parts;
  for (const precision::PackedWeight& part : packed_parts())
    parts.push_back(kernels::grouped_quantized_linear(rows, part.stack(), ends));
  return parts.size() == 1 ? parts[0] : at::cat(parts, -1);
}

bool ExpertStack::is_quantized() const { return owner_.precision().quantized.has_value(); }

const at::Tensor& ExpertStack::weight() const {
  if (!is_quantized()) return owner_.parameter(parameter_);
  throw ContractError(fmt::format("[{}] stores its weights in {} ({}), which cannot be read as one tensor", path_,
                                  precision::storage_name(owner_.precision()), owner_.precision().source));
}

std::vector<precision::PackedWeight> ExpertStack::packed_parts() const {
  std::vector<precision::PackedWeight> parts;
  for (const std::string& name : packed_names(parameter_)) parts.push_back(*owner_.packed_weight(name));
  return parts;
}

at::Tensor ExpertStack::weight_rows(int64_t expert, int64_t count) const {
  if (!is_quantized()) return weight().narrow(0, expert, count);
  const auto parts = packed_parts();
  std::vector<at::Tensor> rows;
  for (int64_t i = expert; i < expert + count; ++i) {
    for (const precision::PackedWeight& part : parts) {
      const precision::PackedWeight one = part.member(i);
      rows.push_back(one.rows(0, one.matrix().rows));
    }
  }
  return at::cat(rows).view({count, sizes_.out, sizes_.in});
}

precision::Precision ExpertStack::precision() const {
  precision::Precision inside = owner_.precision();
  inside.input = inside.output = inside.compute;
  return inside;
}

c10::Device ExpertStack::placement() const { return owner_.placement(); }

ExpertWeights::ExpertWeights(const Scope& scope, const Architecture& a)
    : ContractModule(scope, Role::kExpert), count_(a.experts.count), activation_(a.activation), gated_(a.gated) {
  const auto stack = [&](const std::string& name, const StackSizes& sizes) {
    const auto names = ExpertStack::packed_names(name);
    if (!precision().quantized) {
      create_parameter(name, {sizes.experts, sizes.out, sizes.in});
    } else {
      for (const std::string& part : names)
        create_packed_stack(part, sizes.experts, sizes.out / static_cast<int64_t>(names.size()), sizes.in);
    }
    if (a.mlp_bias) create_parameter(ExpertStack::bias_name(name), {sizes.experts, sizes.out});
    return register_module(name, std::make_shared<ExpertStack>(*this, name, sizes));
  };
  const int64_t inner = a.experts.intermediate;
  first_ = gated_ ? stack("gate_up_proj", {count_, 2 * inner, a.hidden}) : stack("up_proj", {count_, inner, a.hidden});
  down_ = stack("down_proj", {count_, a.hidden, a.experts.intermediate});
}

std::vector<std::string> ExpertWeights::matrix_names(const Architecture& a) {
  if (a.gated) return {"gate_proj", "up_proj", "down_proj"};
  return {"up_proj", "down_proj"};
}

at::Tensor ExpertWeights::activated(const at::Tensor& first) const {
  if (!gated_) return activate(first, activation_);
  const auto halves = first.chunk(2, -1);
  return gate(halves[0], halves[1], activation_);
}

at::Tensor ExpertWeights::products(const at::Tensor& rows, const at::Tensor& ends) const {
  at::Tensor first = first_->forward(rows, ends);
  if (const auto bias = first_->bias()) first = first + of_each_row(*bias, rows, ends);
  return down_->forward(activated(first), ends);
}

ExpertWeights::Packed ExpertWeights::pack(kernels::QuantizedFormat format) const {
  Packed packed;
  for (const auto& stack : stacks()) {
    const auto names = ExpertStack::packed_names(stack->parameter_name());
    const StackSizes& sizes = stack->sizes();
    const int64_t rows = sizes.out / static_cast<int64_t>(names.size());
    const at::Tensor floats = precision::move(stack->weight().detach(), c10::kCPU);
    packed.instead_of.push_back(stack->parameter_name());
    for (size_t part = 0; part < names.size(); ++part) {
      const precision::PackedShape shape{rows, sizes.in, sizes.experts};
      precision::PackedWeight all(format, shape, placement());
      for (int64_t expert = 0; expert < sizes.experts; ++expert) {
        const at::Tensor matrix = floats.select(0, expert).narrow(0, static_cast<int64_t>(part) * rows, rows);
        all.put(expert, precision::PackedWeight(matrix, format, placement()));
      }
      packed.weights.emplace(names[part], std::move(all));
      packed.shapes[names[part]] = shape;
    }
  }
  return packed;
}

at::Tensor ExpertWeights::forward(const at::Tensor& x_nd, const at::Tensor& experts_nk,
                                  const at::Tensor& weights_nk) const {
  return precision::replayed(path(), at::Tensor(), [&] { return mixed(x_nd, experts_nk, weights_nk); });
}

at::Tensor ExpertWeights::mixed(const at::Tensor& x_nd, const at::Tensor& experts_nk,
                                const at::Tensor& weights_nk) const {
  const precision::ModuleScope scope(path());
  const at::Tensor input = enter(x_nd);
  if (precision::ModuleObserver* observer = precision::current_observer())
    observer->routing(*this, experts_nk, weights_nk);
  const int64_t tokens = experts_nk.size(0), per_token = experts_nk.size(1);
  ExpertRows rows = sorted_rows(experts_nk, count_);
  const bool by_library = !precision().quantized && input.scalar_type() == at::kBFloat16 && !on_gpu(input);
  if (by_library) rows = padded_rows(rows);
  const at::Tensor outputs = products(TokensToRows::apply(input, rows.token_of, rows.row_of), rows.ends);
  // Back to token order, then one weighted sum a token in the dtype of the weights: a single rounding at the end
  // instead of one for each expert.
  const at::Tensor unsorted = outputs.index_select(0, rows.row_of.flatten()).view({tokens, per_token, -1});
  const at::ScalarType wide = weights_nk.scalar_type(), narrow = unsorted.scalar_type();
  const at::Tensor widened = precision::cast(unsorted, narrow, wide, path() + " (outputs)");
  at::Tensor mixed = at::bmm(weights_nk.view({tokens, 1, per_token}), widened).view({tokens, -1});
  if (const auto bias = down_->bias()) {
    const at::Tensor shares = at::zeros({tokens, count_}, weights_nk.options().requires_grad(false));
    mixed = mixed + at::mm(shares.scatter(1, experts_nk, weights_nk),
                           precision::cast(*bias, bias->scalar_type(), wide, path() + " (biases)"));
  }
  return leave(precision::cast(mixed, wide, narrow, path() + " (sum)"));
}

MixtureOfExperts::MixtureOfExperts(const Scope& scope, const Architecture& a)
    : path_(scope.path), per_token_(a.experts.per_token), normalize_(a.experts.normalize) {
  router_ = register_module(
      "gate", std::make_shared<Linear>(scope.child("gate"), Role::kRouter, a.hidden, a.experts.count, a.mlp_bias));
  experts_ = register_module("experts", std::make_shared<ExpertWeights>(scope.child("experts"), a));
}

at::Tensor MixtureOfExperts::forward(const at::Tensor& x, const LayerInput& input) const {
  const precision::ModuleScope scope(path_);
  const at::Tensor flat = x.reshape({-1, x.size(-1)});
  const at::Tensor scores = router_->forward(flat, input.draws);
  if (input.taps != nullptr && input.taps->keep_router) {
    input.taps->router_logits.push_back(scores.view({x.size(0), x.size(1), -1}));
  }
  const at::ScalarType stream = scores.scalar_type();
  const at::ScalarType wide = kernels::wide_type(stream);
  const at::Tensor logits = precision::cast(scores, stream, wide, path_ + ".gate (softmax input)");
  auto [weights, chosen] = at::softmax(logits, -1).topk(per_token_, -1);
  if (normalize_) weights = weights / weights.sum(-1, /*keepdim=*/true);
  return experts_->forward(flat, chosen, weights).view(x.sizes());
}

}  // namespace limbeck::models
