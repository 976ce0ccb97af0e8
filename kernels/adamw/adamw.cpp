// Schemas, checks and Meta kernels of the optimizer's operators.
#include "kernels/adamw/adamw.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/adamw/adamw_operators.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {
namespace {

void check_contiguous(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "[", op, "] ", name, " is ", described(tensor), " with strides ",
              tensor.strides(), ", wanted it contiguous: it is written in place");
}

struct AdamWTensors {
  const at::Tensor &parameter, &gradient, &first, &second;
  const at::Tensor* master;  // or null
};

void check_tensors(const AdamWTensors& t) {
  const char* op = "adamw_step_";
  check_floating(op, "parameter", t.parameter);
  check_floating(op, "gradient", t.gradient);
  check_floating(op, "first_moment", t.first);
  TORCH_CHECK(t.first.scalar_type() == wide_type(t.parameter), "[adamw_step_] first_moment is ", described(t.first),
              ", wanted ", wide_type(t.parameter) == at::kDouble ? "float64" : "float32", " beside a parameter ",
              described(t.parameter));
  check_matches(op, "second_moment", t.second, "first_moment", t.first);
  if (is_half(t.parameter)) {
    TORCH_CHECK(t.master != nullptr && t.master->defined(), "[adamw_step_] parameter is ", described(t.parameter),
                " without a master, wanted a float32 one: half weights do not move at small learning rates");
    check_matches(op, "master", *t.master, "first_moment", t.first);
    check_same_shape(op, "master", *t.master, "parameter", t.parameter);
    check_contiguous(op, "master", *t.master);
  } else {
    TORCH_CHECK(t.master == nullptr, "[adamw_step_] parameter is ", described(t.parameter),
                " with a master, wanted none: it is its own");
  }
  if (t.gradient.scalar_type() != t.first.scalar_type()) {
    check_matches(op, "gradient", t.gradient, "parameter", t.parameter);
  }
  TORCH_CHECK(t.first.device() == t.parameter.device() && t.gradient.device() == t.parameter.device(),
              "[adamw_step_] gradient on ", t.gradient.device(), " and first_moment on ", t.first.device(),
              ", wanted both on ", t.parameter.device(), " as parameter");
  for (const auto& [name, tensor] : {std::pair<const char*, const at::Tensor&>{"gradient", t.gradient},
                                     {"first_moment", t.first},
                                     {"second_moment", t.second}}) {
    check_same_shape(op, name, tensor, "parameter", t.parameter);
  }
  check_contiguous(op, "parameter", t.parameter);
  check_contiguous(op, "first_moment", t.first);
  check_contiguous(op, "second_moment", t.second);
}

}  // namespace

void check_adamw(const AdamWLists& l, int64_t step) {
  TORCH_CHECK(step >= 1, "[adamw_step_] step ", step, ", wanted 1 or more");
  const size_t count = l.parameters.size();
  const bool with_masters = !l.masters.empty();
  TORCH_CHECK(l.gradients.size() == count && l.first.size() == count && l.second.size() == count &&
                  (!with_masters || l.masters.size() == count),
              "[adamw_step_] ", count, " parameters with ", l.gradients.size(), " gradients, ", l.masters.size(),
              " masters, ", l.first.size(), " first and ", l.second.size(), " second moments, wanted one for each");
  for (size_t i = 0; i < count; ++i) {
    check_tensors({l.parameters[i], l.gradients[i], l.first[i], l.second[i], with_masters ? &l.masters[i] : nullptr});
    check_matches("adamw_step_", "parameter", l.parameters[i], "the first parameter", l.parameters[0]);
    check_matches("adamw_step_", "gradient", l.gradients[i], "the first gradient", l.gradients[0]);
  }
}

AdamWWork::AdamWWork(const AdamWLists& l, int64_t step, double learning_rate, double beta1, double beta2,
                     double epsilon, double weight_decay, double gradient_scale)
    : arguments{} {
  if (l.parameters.empty()) return;
  const auto n = static_cast<double>(step);
  AdamWFactors& f = arguments.factors;
  f.gradient_scale = gradient_scale;
  f.kept = 1.0 - learning_rate * weight_decay;
  f.new_first = 1.0 - beta1;
  f.old_second = beta2;
  f.new_second = 1.0 - beta2;
  f.inverse_root_of_correction = 1.0 / std::sqrt(1.0 - std::pow(beta2, n));
  f.step_size = learning_rate / (1.0 - std::pow(beta1, n));
  f.epsilon = epsilon;
  arguments.gradient_storage = storage_of(l.gradients[0]);
  arguments.narrow_storage = storage_of(l.parameters[0]);
  const bool with_masters = !l.masters.empty();
  for (size_t i = 0; i < l.parameters.size(); ++i) {
    const at::Tensor& gradient = dense_gradients.emplace_back(l.gradients[i].contiguous());
    void* parameter = l.parameters[i].mutable_data_ptr();
    tensors.push_back({gradient.const_data_ptr(), with_masters ? l.masters[i].mutable_data_ptr() : parameter,
                       l.first[i].mutable_data_ptr(), l.second[i].mutable_data_ptr(),
                       with_masters ? parameter : nullptr, l.parameters[i].numel()});
  }
}

at::Tensor square_sums_output(at::TensorList xs) {
  TORCH_CHECK(!xs.empty(), "[square_sums] no tensors, wanted one or more");
  int64_t runs = 0;
  for (const at::Tensor& x : xs) {
    check_floating("square_sums", "x", x);
    check_matches("square_sums", "x", x, "the first", xs[0]);
    runs += square_runs(x.numel());
  }
  return at::empty({runs}, xs[0].options().dtype(at::kDouble));
}

SquareSumsWork::SquareSumsWork(at::TensorList xs) : storage(storage_of(xs[0])) {
  for (const at::Tensor& x : xs) {
    const at::Tensor& one = dense.emplace_back(x.contiguous());
    tensors.push_back({one.const_data_ptr(), one.numel()});
  }
}

void check_accumulate(const at::Tensor& sum, const at::Tensor& x) {
  check_floating("accumulate_", "sum", sum);
  check_floating("accumulate_", "x", x);
  TORCH_CHECK(sum.scalar_type() == wide_type(x) && sum.device() == x.device(), "[accumulate_] sum is ", described(sum),
              ", wanted ", wide_type(x) == at::kDouble ? "float64" : "float32", " on ", x.device(), " to add ",
              described(x));
  check_same_shape("accumulate_", "sum", sum, "x", x);
  check_contiguous("accumulate_", "sum", sum);
}

namespace {

using Step = void(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList, int64_t, double,
                  double, double, double, double, double);
using SquareSums = at::Tensor(at::TensorList);
using Accumulate = void(const at::Tensor&, const at::Tensor&);

const auto& step_operator() {
  static const auto op = typed_operator<Step>("limbeck::adamw_step_");
  return op;
}
const auto& square_sums_operator() {
  static const auto op = typed_operator<SquareSums>("limbeck::square_sums");
  return op;
}
const auto& accumulate_operator() {
  static const auto op = typed_operator<Accumulate>("limbeck::accumulate_");
  return op;
}

void meta_step(at::TensorList parameters, at::TensorList gradients, at::TensorList masters, at::TensorList first,
               at::TensorList second, int64_t step, double, double, double, double, double, double) {
  check_adamw({parameters, gradients, masters, first, second}, step);
}

// Updating is no part of any graph; saved tensors learn from the version that they have changed.
void refuse_graph(const char* op, at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(!at::GradMode::is_enabled() || !tensor.requires_grad(), "[", op, "] ", described(tensor),
                " requires a gradient, wanted the call without recording: NoGradGuard, or torch.no_grad()");
  }
}
void mark_changed(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_inference()) torch::autograd::impl::bump_version(tensor);
  }
}

void autograd_step(at::TensorList parameters, at::TensorList gradients, at::TensorList masters, at::TensorList first,
                   at::TensorList second, int64_t step, double learning_rate, double beta1, double beta2,
                   double epsilon, double weight_decay, double gradient_scale) {
  refuse_graph("adamw_step_", parameters);
  refuse_graph("adamw_step_", gradients);
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    step_operator().call(parameters, gradients, masters, first, second, step, learning_rate, beta1, beta2, epsilon,
                         weight_decay, gradient_scale);
  }
  for (const at::TensorList changed : {parameters, masters, first, second}) mark_changed(changed);
}

at::Tensor autograd_square_sums(at::TensorList xs) {
  refuse_graph("square_sums", xs);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return square_sums_operator().call(xs);
}

void autograd_accumulate(const at::Tensor& sum, const at::Tensor& x) {
  refuse_graph("accumulate_", {sum, x});
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    accumulate_operator().call(sum, x);
  }
  mark_changed({sum});
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def(
      "adamw_step_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] masters, Tensor(c!)[] first_moments, "
      "Tensor(d!)[] second_moments, int step, float learning_rate, float beta1=0.9, float beta2=0.999, "
      "float epsilon=1e-08, float weight_decay=0., float gradient_scale=1.) -> ()");
  m.def("square_sums(Tensor[] xs) -> Tensor");
  m.def("accumulate_(Tensor(a!) sum, Tensor x) -> ()");
}

TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("adamw_step_", meta_step);
  m.impl("square_sums", square_sums_output);
  m.impl("accumulate_", check_accumulate);
}

TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("adamw_step_", autograd_step);
  m.impl("square_sums", autograd_square_sums);
  m.impl("accumulate_", autograd_accumulate);
}

}  // namespace

void adamw_step_(at::TensorList parameters, at::TensorList gradients, at::TensorList masters,
                 at::TensorList first_moments, at::TensorList second_moments, const AdamWOptions& o) {
  if (parameters.empty()) return;  // no tensor says on which device
  step_operator().call(parameters, gradients, masters, first_moments, second_moments, o.step, o.learning_rate, o.beta1,
                       o.beta2, o.epsilon, o.weight_decay, o.gradient_scale);
}

at::Tensor square_sums(at::TensorList xs) { return square_sums_operator().call(xs); }

void accumulate_(const at::Tensor& sum, const at::Tensor& x) { accumulate_operator().call(sum, x); }

}  // namespace limbeck::kernels
