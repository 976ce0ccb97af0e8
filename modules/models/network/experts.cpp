#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/diff.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/linear/linear.h"
#include "kernels/operator/planned_device.h"
#include "kernels/operator/wide_type.h"
#include "modules/models/network/blocks.h"
#include "modules/models/network/experts.h"
#include "modules/precision/casts.h"

namespace limbeck::models {

namespace {

// Tokens of each expert. On meta there are no ids to count: an even split stands for them in the memory plan.
std::vector<int64_t> tokens_per_expert(const at::Tensor& sorted_experts, int64_t count) {
  const int64_t total = sorted_experts.numel();
  std::vector<int64_t> tokens(static_cast<size_t>(count), 0);
  if (sorted_experts.is_meta()) {
    for (int64_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = total / count + (i < total % count ? 1 : 0);
    return tokens;
  }
  const at::Tensor ids = sorted_experts.cpu();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < total; ++i) ++tokens[static_cast<size_t>(id[i])];
  return tokens;
}

// Weights on meta stand for ones of the device that the memory plan is for.
bool on_gpu(const at::Tensor& tensor) {
  return tensor.is_cuda() || (tensor.is_meta() && kernels::planned_device() == at::kCUDA);
}

// oneDNN compiles a bfloat16 product anew for each number of rows: above a few they are rounded up, so that it meets
// the same ones again.
int64_t padded(int64_t rows) { return rows <= 16 ? rows : (rows + 31) / 32 * 32; }

at::Tensor indices(const std::vector<int64_t>& values, const at::Tensor& where) {
  if (where.is_meta()) return where.new_empty({static_cast<int64_t>(values.size())});
  return precision::move(at::tensor(values, at::kLong), where.device());
}

// The sorted tokens with those of each expert together, and rows between them whose results nobody reads.
struct Groups {
  std::vector<int64_t> rows;      // of each expert; 0 where it has no token
  at::Tensor token_of, place_of;  // [rows]: which sorted token; [N K]: which row
};

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

Groups grouped(const at::Tensor& sorted, int64_t count, bool pads) {
  Groups groups;
  std::vector<int64_t> token_of, place_of;
  int64_t token = 0;
  for (const int64_t n : tokens_per_expert(sorted, count)) {
    const int64_t rows = pads ? padded(n) : n;
    for (int64_t i = 0; i < n; ++i) place_of.push_back(static_cast<int64_t>(token_of.size()) + i);
    for (int64_t i = 0; i < rows; ++i) token_of.push_back(token + (i < n ? i : 0));
    groups.rows.push_back(rows);
    token += n;
  }
  groups.token_of = indices(token_of, sorted);
  groups.place_of = indices(place_of, sorted);
  return groups;
}

// int32 [count]; like the product below it has no body for meta in ATen.
at::Tensor ends_of_groups(const at::Tensor& sorted_experts, int64_t count) {
  if (sorted_experts.is_meta()) return sorted_experts.new_empty({count}, at::kInt);
  return at::searchsorted(sorted_experts, at::arange(count, sorted_experts.options()), /*out_int32=*/true,
                          /*right=*/true);
}

at::Tensor grouped_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& ends) {
  if (!a.is_meta()) return at::_grouped_mm(a, b, ends);
  if (b.dim() == 3) return a.new_empty({a.size(0), b.size(2)});
  return a.new_empty({ends.size(0), a.size(0), b.size(1)});
}

// rows [R, K] sorted by expert, weight [E, N, K], ends int32 [E]: where the rows of each expert end -> [R, N], all in
// one product. How many rows an expert has stays on the device.
struct GroupedProduct : torch::autograd::Function<GroupedProduct> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows, const at::Tensor& weight,
                            const at::Tensor& ends) {
    context->save_for_backward({rows, weight, ends});
    return grouped_product(rows, weight.transpose(1, 2), ends);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &rows = saved[0], &weight = saved[1], &ends = saved[2];
    const at::Tensor gradient = gradients[0].contiguous();
    at::Tensor of_rows, of_weight;
    if (context->needs_input_grad(0)) of_rows = grouped_product(gradient, weight, ends);
    if (context->needs_input_grad(1)) {
      of_weight = grouped_product(gradient.t(), rows.contiguous(), ends);
      // What the product leaves for an expert without rows is not promised to be zero.
      const at::Tensor counts = at::diff(ends, 1, 0, at::zeros({1}, ends.options()));
      of_weight.masked_fill_(counts.eq(0).view({-1, 1, 1}), 0.0);
    }
    return {of_rows, of_weight, at::Tensor()};
  }
};

}  // namespace

ExpertStack::ExpertStack(const ExpertWeights& owner, const std::string& parameter)
    : owner_(owner), parameter_(parameter), path_(owner.path() + "." + parameter) {}

ExpertProduct ExpertStack::product() const {
  ExpertProduct base = [weight = weight()](const at::Tensor& rows, int64_t expert) {
    return kernels::linear(rows, weight.select(0, expert));
  };
  if (adapter() == nullptr) return base;
  return [base, change = adapter()->change()](const at::Tensor& rows, int64_t expert) {
    return base(rows, expert) + change(rows, expert);
  };
}

bool ExpertStack::takes_groups() const {
  const at::Tensor& w = weight();
  return on_gpu(w) && w.scalar_type() == at::kBFloat16 && w.size(1) % 8 == 0 && w.size(2) % 8 == 0 &&
         adapter() == nullptr;
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

at::Tensor ExpertWeights::one_by_one(const at::Tensor& rows, const std::vector<int64_t>& counts) const {
  const ExpertProduct gate_up = gate_up_->product(), down = down_->product();
  std::vector<at::Tensor> outputs;
  int64_t begin = 0, expert = 0;
  for (const int64_t n : counts) {
    if (n > 0) {
      const auto halves = gate_up(rows.narrow(0, begin, n), expert).chunk(2, -1);
      outputs.push_back(down(gate(halves[0], halves[1], activation_), expert));
    }
    begin += n;
    ++expert;
  }
  return at::cat(outputs);
}

at::Tensor ExpertWeights::all_at_once(const at::Tensor& rows, const at::Tensor& ends) const {
  const auto halves = GroupedProduct::apply(rows, gate_up_->weight(), ends).chunk(2, -1);
  return GroupedProduct::apply(gate(halves[0], halves[1], activation_), down_->weight(), ends);
}

at::Tensor ExpertWeights::forward(const at::Tensor& x_nd, const at::Tensor& experts_nk,
                                  const at::Tensor& weights_nk) const {
  const precision::ModuleScope scope(path());
  const at::Tensor input = enter(x_nd);
  const int64_t tokens = experts_nk.size(0), per_token = experts_nk.size(1);
  // Stable sort: the tokens of one expert stay in order, so the bits do not depend on the sort's whims.
  const auto [sorted, order] = experts_nk.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor sorted_of = order.argsort();
  at::Tensor row_of, outputs;
  if (gate_up_->takes_groups() && down_->takes_groups()) {
    const at::Tensor ends = ends_of_groups(sorted, count_);
    row_of = sorted_of.view({tokens, per_token});
    outputs = all_at_once(TokensToRows::apply(input, order.div(per_token, "floor"), row_of), ends);
  } else {
    const Groups groups = grouped(sorted, count_, input.scalar_type() == at::kBFloat16 && !on_gpu(input));
    const at::Tensor token_of_row = order.index_select(0, groups.token_of).div(per_token, "floor");
    row_of = groups.place_of.index_select(0, sorted_of).view({tokens, per_token});
    outputs = one_by_one(TokensToRows::apply(input, token_of_row, row_of), groups.rows);
  }
  // Back to token order, then one weighted sum a token in the dtype of the weights: a single rounding at the end
  // instead of one for each expert.
  const at::Tensor unsorted = outputs.index_select(0, row_of.flatten()).view({tokens, per_token, -1});
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
