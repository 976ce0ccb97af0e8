#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/operator/planned_device.h"
#include "kernels/operator/wide_type.h"
#include "modules/models/network/blocks.h"
#include "modules/models/network/experts.h"
#include "modules/precision/casts.h"

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

}  // namespace

ExpertStack::ExpertStack(const ExpertWeights& owner, const std::string& parameter)
    : owner_(owner), parameter_(parameter), path_(owner.path() + "." + parameter) {}

at::Tensor ExpertStack::forward(const at::Tensor& rows, const at::Tensor& ends) const {
  const at::Tensor product = kernels::grouped_linear(rows, weight(), ends);
  return adapter() == nullptr ? product : product + adapter()->change(rows, ends);
}

const at::Tensor& ExpertStack::weight() const { return owner_.parameter(parameter_); }

precision::Precision ExpertStack::precision() const {
  precision::Precision inside = owner_.precision();
  inside.input = inside.output = inside.compute;
  return inside;
}

c10::Device ExpertStack::placement() const { return owner_.placement(); }

ExpertWeights::ExpertWeights(const Scope& scope, const Architecture& a)
    : ContractModule(scope, Role::kExpert), count_(a.experts.count), activation_(a.activation) {
  create_parameter("gate_up_proj", {count_, 2 * a.experts.intermediate, a.hidden});
  create_parameter("down_proj", {count_, a.hidden, a.experts.intermediate});
  gate_up_ = register_module("gate_up_proj", std::make_shared<ExpertStack>(*this, "gate_up_proj"));
  down_ = register_module("down_proj", std::make_shared<ExpertStack>(*this, "down_proj"));
}

at::Tensor ExpertWeights::products(const at::Tensor& rows, const at::Tensor& ends) const {
  const auto halves = gate_up_->forward(rows, ends).chunk(2, -1);
  return down_->forward(gate(halves[0], halves[1], activation_), ends);
}

at::Tensor ExpertWeights::forward(const at::Tensor& x_nd, const at::Tensor& experts_nk,
                                  const at::Tensor& weights_nk) const {
  const precision::ModuleScope scope(path());
  const at::Tensor input = enter(x_nd);
  const int64_t tokens = experts_nk.size(0), per_token = experts_nk.size(1);
  ExpertRows rows = sorted_rows(experts_nk, count_);
  if (input.scalar_type() == at::kBFloat16 && !on_gpu(input)) rows = padded_rows(rows);
  const at::Tensor outputs = products(TokensToRows::apply(input, rows.token_of, rows.row_of), rows.ends);
  // Back to token order, then one weighted sum a token in the dtype of the weights: a single rounding at the end
  // instead of one for each expert.
  const at::Tensor unsorted = outputs.index_select(0, rows.row_of.flatten()).view({tokens, per_token, -1});
  const at::ScalarType wide = weights_nk.scalar_type(), narrow = unsorted.scalar_type();
  const at::Tensor widened = precision::cast(unsorted, narrow, wide, path() + " (outputs)");
  const at::Tensor mixed = at::bmm(weights_nk.view({tokens, 1, per_token}), widened).view({tokens, -1});
  return leave(precision::cast(mixed, wide, narrow, path() + " (sum)"));
}

MixtureOfExperts::MixtureOfExperts(const Scope& scope, const Architecture& a)
    : path_(scope.path), per_token_(a.experts.per_token), normalize_(a.experts.normalize) {
  router_ = register_module(
      "gate", std::make_shared<Linear>(scope.child("gate"), Role::kRouter, a.hidden, a.experts.count, false));
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
