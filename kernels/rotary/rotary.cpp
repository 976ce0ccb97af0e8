// Schemas, checks, Meta kernels and derivative of the rotary embedding.
#include "kernels/rotary/rotary.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/rotary/rotary_operators.h"

namespace limbeck::kernels {
namespace {

void check_angles(const char* op, const char* name, const at::Tensor& angles, const at::Tensor& x) {
  TORCH_CHECK(angles.defined() && angles.scalar_type() == at::kFloat, "[", op, "] ", name, " is ", described(angles),
              ", wanted float32 whatever the dtype of x");
  TORCH_CHECK(angles.device() == x.device() && angles.layout() == at::kStrided, "[", op, "] ", name, " is ",
              described(angles), ", wanted it on ", x.device(), " as x (", described(x), ")");
  TORCH_CHECK(angles.dim() == 3 && (angles.sym_size(0) == 1 || angles.sym_size(0) == x.sym_size(0)) &&
                  angles.sym_size(1) == x.sym_size(1) && angles.sym_size(2) * 2 <= x.sym_size(3),
              "[", op, "] ", name, " is ", described(angles), ", wanted [", x.sym_size(0), " or 1, ", x.sym_size(1),
              ", at most ", x.sym_size(3) / 2, "] for x ", described(x));
}

}  // namespace

at::Tensor rotary_output(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_floating(op, "x", x);
  TORCH_CHECK(x.dim() == 4, "[", op, "] x is ", described(x), ", wanted [B, T, H, D]");
  check_angles(op, "cos", cos, x);
  check_angles(op, "sin", sin, x);
  check_same_shape(op, "sin", sin, "cos", cos);
  return at::empty_symint(x.sym_sizes(), x.options());
}

std::tuple<at::Tensor, at::Tensor> rotary_outputs(const char* op, const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& cos, const at::Tensor& sin) {
  const at::Tensor y_q = rotary_output(op, q, cos, sin);
  check_matches(op, "k", k, "q", q);
  TORCH_CHECK(k.dim() == 4 && k.sym_size(0) == q.sym_size(0) && k.sym_size(1) == q.sym_size(1) &&
                  k.sym_size(3) == q.sym_size(3),
              "[", op, "] k is ", described(k), ", wanted the shape of q (", described(q),
              ") in all but the number of heads");
  return {y_q, rotary_output(op, k, cos, sin)};
}

RotaryWork::RotaryWork(const at::Tensor& from, const at::Tensor& cosines, const at::Tensor& sines, const at::Tensor& y,
                       bool inverse)
    : x(from.size(3) <= 1 || from.stride(3) == 1 ? from : from.contiguous()),
      cos(cosines.contiguous()),
      sin(sines.contiguous()),
      positions(x.numel() == 0 ? 0 : x.size(0) * x.size(1)),
      storage(storage_of(from)) {
  const int64_t time = x.size(1), half = cos.size(2);
  arguments = {x.const_data_ptr(),
               x.stride(0),
               x.stride(1),
               x.stride(2),
               cos.const_data_ptr<float>(),
               sin.const_data_ptr<float>(),
               cos.size(0) == 1 ? 0 : time * half,
               y.mutable_data_ptr(),
               time,
               x.size(2),
               x.size(3),
               half,
               inverse};
}

namespace {

using Rotate = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&);

const auto& rotary_operator() {
  static const auto op = typed_operator<Rotate>("limbeck::rotary_embedding");
  return op;
}

struct RotaryFunction : public torch::autograd::Function<RotaryFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({cos, sin});
    return rotary_operator().call(x, cos, sin);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    static const auto op = typed_operator<Rotate>("limbeck::rotary_embedding_backward");
    const auto saved = context->get_saved_variables();
    return {op.call(grads[0], saved[0], saved[1]), at::Tensor(), at::Tensor()};
  }
};

using RotateBoth = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                      const at::Tensor&);

const auto& rotary_operator_of_both() {
  static const auto op = typed_operator<RotateBoth>("limbeck::rotary_embedding_of_both");
  return op;
}

struct RotaryOfBoth : public torch::autograd::Function<RotaryOfBoth> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const at::Tensor& q,
                                                const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({cos, sin});
    context->set_materialize_grads(false);
    const auto [y_q, y_k] = rotary_operator_of_both().call(q, k, cos, sin);
    return {y_q, y_k};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    static const auto one = typed_operator<Rotate>("limbeck::rotary_embedding_backward");
    static const auto both = typed_operator<RotateBoth>("limbeck::rotary_embedding_of_both_backward");
    const auto saved = context->get_saved_variables();
    const bool for_q = grads[0].defined() && context->needs_input_grad(0);
    const bool for_k = grads[1].defined() && context->needs_input_grad(1);
    at::Tensor dq, dk;
    if (for_q && for_k) {
      std::tie(dq, dk) = both.call(grads[0], grads[1], saved[0], saved[1]);
    } else if (for_q) {
      dq = one.call(grads[0], saved[0], saved[1]);
    } else if (for_k) {
      dk = one.call(grads[1], saved[0], saved[1]);
    }
    return {dq, dk, at::Tensor(), at::Tensor()};
  }
};

void refuse_learned_angles(const char* op, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK(!cos.requires_grad() && !sin.requires_grad(), "[", op,
              "] cos and sin are constants, but one of them requires a gradient: detach it");
}

std::tuple<at::Tensor, at::Tensor> differentiable_rotate_both(const at::Tensor& q, const at::Tensor& k,
                                                              const at::Tensor& cos, const at::Tensor& sin) {
  if (at::GradMode::is_enabled()) {
    refuse_learned_angles("rotary_embedding_of_both", cos, sin);
    if (q.requires_grad() || k.requires_grad()) {
      const auto both = RotaryOfBoth::apply(q, k, cos, sin);
      return {both[0], both[1]};
    }
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return rotary_operator_of_both().call(q, k, cos, sin);
}

at::Tensor differentiable_rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (at::GradMode::is_enabled()) {
    refuse_learned_angles("rotary_embedding", cos, sin);
    if (x.requires_grad()) return RotaryFunction::apply(x, cos, sin);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return rotary_operator().call(x, cos, sin);
}

at::Tensor meta_rotate_forward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return rotary_output("rotary_embedding", x, cos, sin);
}
at::Tensor meta_rotate_backward(const at::Tensor& grad, const at::Tensor& cos, const at::Tensor& sin) {
  return rotary_output("rotary_embedding_backward", grad, cos, sin);
}
std::tuple<at::Tensor, at::Tensor> meta_rotate_both_forward(const at::Tensor& q, const at::Tensor& k,
                                                            const at::Tensor& cos, const at::Tensor& sin) {
  return rotary_outputs("rotary_embedding_of_both", q, k, cos, sin);
}
std::tuple<at::Tensor, at::Tensor> meta_rotate_both_backward(const at::Tensor& grad_q, const at::Tensor& grad_k,
                                                             const at::Tensor& cos, const at::Tensor& sin) {
  return rotary_outputs("rotary_embedding_of_both_backward", grad_q, grad_k, cos, sin);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("rotary_embedding(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def("rotary_embedding_backward(Tensor grad, Tensor cos, Tensor sin) -> Tensor");
  m.def("rotary_embedding_of_both(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)");
  m.def("rotary_embedding_of_both_backward(Tensor grad_q, Tensor grad_k, Tensor cos, Tensor sin) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("rotary_embedding", meta_rotate_forward);
  m.impl("rotary_embedding_backward", meta_rotate_backward);
  m.impl("rotary_embedding_of_both", meta_rotate_both_forward);
  m.impl("rotary_embedding_of_both_backward", meta_rotate_both_backward);
}

// The backward operator has no derivative of its own; a second backward says so instead of giving zero.
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("rotary_embedding", differentiable_rotate);
  m.impl("rotary_embedding_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("rotary_embedding_of_both", differentiable_rotate_both);
  m.impl("rotary_embedding_of_both_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

at::Tensor rotary_embedding(const at::Tensor& x_bthd, const at::Tensor& cos_btr, const at::Tensor& sin_btr) {
  return rotary_operator().call(x_bthd, cos_btr, sin_btr);
}

std::tuple<at::Tensor, at::Tensor> rotary_embedding_of_both(const at::Tensor& q_bthd, const at::Tensor& k_bthd,
                                                            const at::Tensor& cos_btr, const at::Tensor& sin_btr) {
  return rotary_operator_of_both().call(q_bthd, k_bthd, cos_btr, sin_btr);
}

}  // namespace limbeck::kernels
