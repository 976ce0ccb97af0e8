// Schemas, checks, Meta kernels and derivatives of the grouped products: each is the other's derivative.
#include "kernels/grouped_linear/grouped_linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/grouped_linear/grouped_linear_operators.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"

namespace limbeck::kernels {

void check_rows_and_ends(const char* op, const char* name, const at::Tensor& rows, const at::Tensor& ends) {
  check_floating(op, name, rows);
  TORCH_CHECK(rows.dim() == 2, "[", op, "] ", name, " is ", described(rows), ", wanted [R, columns]");
  TORCH_CHECK(ends.defined() && ends.scalar_type() == at::kInt && ends.dim() == 1 && ends.sym_size(0) > 0, "[", op,
              "] ends is ", described(ends), ", wanted int32 [groups]");
  TORCH_CHECK(ends.device() == rows.device(), "[", op, "] ends is ", described(ends), ", wanted it on ", rows.device(),
              " as ", name, " (", described(rows), ")");
}

void check_grouped_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  const char* op = "grouped_linear";
  check_rows_and_ends(op, "rows", rows, ends);
  check_matches(op, "weight", weight, "rows", rows);
  TORCH_CHECK(weight.dim() == 3 && weight.sym_size(0) == ends.sym_size(0) && weight.sym_size(2) == rows.sym_size(1),
              "[", op, "] weight is ", described(weight), ", wanted [", ends.sym_size(0), ", out, ", rows.sym_size(1),
              "] for rows ", described(rows), " in ", ends.sym_size(0), " groups");
}

at::Tensor grouped_linear_output(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor&) {
  return at::empty_symint({rows.sym_size(0), weight.sym_size(1)}, rows.options());
}

void check_grouped_outer(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  const char* op = "grouped_outer";
  check_rows_and_ends(op, "left", left, ends);
  check_matches(op, "right", right, "left", left);
  TORCH_CHECK(right.dim() == 2 && right.sym_size(0) == left.sym_size(0), "[", op, "] right is ", described(right),
              ", wanted [", left.sym_size(0), ", columns] as left (", described(left), ")");
}

at::Tensor grouped_outer_output(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  return at::empty_symint({ends.sym_size(0), left.sym_size(1), right.sym_size(1)}, left.options());
}

namespace {

using Product = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&);
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const auto& grouped_linear_handle() {
  static const auto op = typed_operator<Product>("limbeck::grouped_linear");
  return op;
}

const auto& grouped_outer_handle() {
  static const auto op = typed_operator<Product>("limbeck::grouped_outer");
  return op;
}

// Each operand is kept for the gradient of the other, where that is asked for.
variable_list needed(const at::Tensor& a, const at::Tensor& b, const at::Tensor& ends) {
  return {b.requires_grad() ? a : at::Tensor(), a.requires_grad() ? b : at::Tensor(), ends};
}

struct GroupedLinear : torch::autograd::Function<GroupedLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows, const at::Tensor& weight,
                            const at::Tensor& ends) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward(needed(rows, weight, ends));
    return grouped_linear_handle().call(rows, weight, ends);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &rows = saved[0], &weight = saved[1], &ends = saved[2];
    at::Tensor of_rows, of_weight;
    if (context->needs_input_grad(0)) of_rows = grouped_linear(gradients[0], weight.transpose(1, 2), ends);
    if (context->needs_input_grad(1)) of_weight = grouped_outer(gradients[0], rows, ends);
    return {of_rows, of_weight, at::Tensor()};
  }
};

struct GroupedOuter : torch::autograd::Function<GroupedOuter> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& left, const at::Tensor& right,
                            const at::Tensor& ends) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward(needed(left, right, ends));
    return grouped_outer_handle().call(left, right, ends);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &left = saved[0], &right = saved[1], &ends = saved[2];
    at::Tensor of_left, of_right;
    if (context->needs_input_grad(0)) of_left = grouped_linear(right, gradients[0], ends);
    if (context->needs_input_grad(1)) of_right = grouped_linear(left, gradients[0].transpose(1, 2), ends);
    return {of_left, of_right, at::Tensor()};
  }
};

template <class Function>
at::Tensor differentiable(const c10::TypedOperatorHandle<Product>& op, const at::Tensor& a, const at::Tensor& b,
                          const at::Tensor& ends) {
  if (at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad())) return Function::apply(a, b, ends);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(a, b, ends);
}

at::Tensor grouped_linear_autograd(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  return differentiable<GroupedLinear>(grouped_linear_handle(), rows, weight, ends);
}

at::Tensor grouped_outer_autograd(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  return differentiable<GroupedOuter>(grouped_outer_handle(), left, right, ends);
}

at::Tensor grouped_linear_on_meta(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  check_grouped_linear(rows, weight, ends);
  return grouped_linear_output(rows, weight, ends);
}

at::Tensor grouped_outer_on_meta(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  check_grouped_outer(left, right, ends);
  return grouped_outer_output(left, right, ends);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("grouped_linear(Tensor rows, Tensor weight, Tensor ends) -> Tensor");
  m.def("grouped_outer(Tensor left, Tensor right, Tensor ends) -> Tensor");
}

TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("grouped_linear", grouped_linear_on_meta);
  m.impl("grouped_outer", grouped_outer_on_meta);
}

TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("grouped_linear", grouped_linear_autograd);
  m.impl("grouped_outer", grouped_outer_autograd);
}

}  // namespace

at::Tensor grouped_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  return grouped_linear_handle().call(rows, weight, ends);
}

at::Tensor grouped_outer(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  return grouped_outer_handle().call(left, right, ends);
}

}  // namespace limbeck::kernels
