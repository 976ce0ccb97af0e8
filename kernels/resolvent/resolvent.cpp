// Schemas, checks, Meta kernels and derivatives of the resolvent.
#include "kernels/resolvent/resolvent.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/resolvent/resolvent_operators.h"
#include "kernels/resolvent/resolvent_plan.h"
#include "kernels/resolvent/resolvent_rows.h"

namespace limbeck::kernels {
namespace {

using Documents = std::optional<at::Tensor>;
using Resolvent = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, bool,
                             const Documents&);
using ContinuedResolvent = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                              const at::Tensor&, const at::Tensor&);

void check_diagonal(const char* op, const at::Tensor& a) {
  check_floating(op, "a", a);
  TORCH_CHECK(a.scalar_type() == at::kFloat || a.scalar_type() == at::kDouble, "[", op, "] a is ", described(a),
              ", wanted float32 or float64: widen it first, half types would round z away");
  TORCH_CHECK(a.dim() >= 1 && a.sym_size(-1) > 0, "[", op, "] a is ", described(a), ", wanted [.., n] with n > 0");
}

// `shape` of a without its last dimension, and `last` there.
std::vector<c10::SymInt> with_last(const at::Tensor& a, const c10::SymInt& last) {
  std::vector<c10::SymInt> shape = a.sym_sizes().vec();
  shape.back() = last;
  return shape;
}

void check_off_diagonal(const char* op, const char* name, const at::Tensor& off, const at::Tensor& a,
                        const c10::SymInt& count) {
  check_matches(op, name, off, "a", a);
  const std::vector<c10::SymInt> wanted = with_last(a, count);
  TORCH_CHECK(off.sym_sizes() == c10::SymIntArrayRef(wanted), "[", op, "] ", name, " is ", described(off), ", wanted ",
              c10::str(c10::SymIntArrayRef(wanted)), " for a (", described(a), ")");
}

// Leading dimensions of `tensor` expand to those of a, and its last one is `last`.
bool expands_to(const at::Tensor& tensor, const at::Tensor& a, const c10::SymInt& last) {
  const int64_t missing = a.dim() - tensor.dim();
  if (tensor.dim() < 1 || missing < 0 || tensor.sym_size(-1) != last) return false;
  for (int64_t d = 0; d < tensor.dim() - 1; ++d) {
    if (tensor.sym_size(d) != 1 && tensor.sym_size(d) != a.sym_size(d + missing)) return false;
  }
  return true;
}

void check_point(const char* op, const at::Tensor& z, const at::Tensor& a) {
  check_matches(op, "z", z, "a", a);
  TORCH_CHECK(expands_to(z, a, 2), "[", op, "] z is ", described(z),
              ", wanted [2] (real and imaginary part) or [.., 2] whose leading dimensions expand to those of a (",
              described(a), ")");
}

void check_documents(const char* op, const Documents& documents, const at::Tensor& a) {
  if (!documents.has_value()) return;
  TORCH_CHECK(documents->defined() && documents->scalar_type() == at::kLong && documents->device() == a.device() &&
                  expands_to(*documents, a, a.sym_size(-1)),
              "[", op, "] documents is ", described(*documents), ", wanted int64 [", a.sym_size(-1), "] or [.., ",
              a.sym_size(-1), "] that expands to a (", described(a), ") on its device");
}

void check_arguments(const char* op, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                     const Documents& documents) {
  check_diagonal(op, a);
  check_off_diagonal(op, "b", b, a, a.sym_size(-1) - 1);
  check_off_diagonal(op, "c", c, a, a.sym_size(-1) - 1);
  check_point(op, z, a);
  check_documents(op, documents, a);
}

at::Tensor empty_pairs(const at::Tensor& a, at::ScalarType dtype) {
  std::vector<c10::SymInt> shape = a.sym_sizes().vec();
  shape.emplace_back(2);
  return at::empty_symint(shape, a.options().dtype(dtype));
}

at::Tensor empty_dense(const at::Tensor& like) { return at::empty_symint(like.sym_sizes(), like.options()); }

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> resolvent_outputs(const at::Tensor& a, const at::Tensor& b,
                                                                 const at::Tensor& c, const at::Tensor& z, bool causal,
                                                                 const Documents& documents, bool keep) {
  check_arguments("resolvent", a, b, c, z, documents);
  const auto nothing = [&] { return at::empty({0}, a.options().dtype(at::kDouble)); };
  return {empty_pairs(a, a.scalar_type()), keep ? empty_pairs(a, at::kDouble) : nothing(),
          keep && !causal ? empty_pairs(a, at::kDouble) : nothing()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> resolvent_gradients(
    const at::Tensor& grad, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
    bool causal, const Documents& documents, const at::Tensor& left, const at::Tensor& right) {
  const char* op = "resolvent_backward";
  check_arguments(op, a, b, c, z, documents);
  check_matches(op, "the gradient", grad, "a", a);
  const at::Tensor like = empty_pairs(a, a.scalar_type());
  check_same_shape(op, "the gradient", grad, "the output", like);
  const auto is_saved = [&](const at::Tensor& saved) {
    return saved.scalar_type() == at::kDouble && saved.device() == a.device() && saved.is_contiguous() &&
           saved.sym_sizes() == like.sym_sizes();
  };
  TORCH_CHECK(is_saved(left) && (causal || is_saved(right)), "[", op, "] left is ", described(left), " and right ",
              described(right), ", wanted the ones saved for a (", described(a), ")");
  return {empty_dense(a), empty_dense(b), empty_dense(c), at::empty_symint(with_last(a, 2), a.options())};
}

std::tuple<at::Tensor, at::Tensor> continued_resolvent_outputs(const at::Tensor& a, const at::Tensor& b,
                                                               const at::Tensor& c, const at::Tensor& z,
                                                               const at::Tensor& state) {
  const char* op = "continued_resolvent";
  check_diagonal(op, a);
  check_off_diagonal(op, "b", b, a, a.sym_size(-1));
  check_off_diagonal(op, "c", c, a, a.sym_size(-1));
  check_point(op, z, a);
  const std::vector<c10::SymInt> wanted = with_last(a, 2);
  TORCH_CHECK(state.defined() && state.scalar_type() == at::kDouble && state.device() == a.device() &&
                  state.sym_sizes() == c10::SymIntArrayRef(wanted),
              "[", op, "] state is ", described(state), ", wanted float64 ", c10::str(c10::SymIntArrayRef(wanted)),
              " on ", a.device(), ": zeros, or what the call before returned");
  return {empty_pairs(a, a.scalar_type()), at::empty_symint(wanted, a.options().dtype(at::kDouble))};
}

namespace {

at::Tensor for_every_row(const at::Tensor& z, const at::Tensor& a) { return z.expand_symint(with_last(a, 2)); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> call_forward(const at::Tensor& a, const at::Tensor& b,
                                                            const at::Tensor& c, const at::Tensor& z, bool causal,
                                                            const Documents& documents, bool keep) {
  static const auto op = typed_operator<decltype(resolvent_outputs)>("limbeck::resolvent_forward");
  check_arguments("resolvent", a, b, c, z, documents);  // before z is expanded: the words are about what came
  return op.call(a, b, c, for_every_row(z, a), causal, documents, keep);
}

at::Tensor resolvent_plain(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                           bool causal, const Documents& documents) {
  return std::get<0>(call_forward(a, b, c, z, causal, documents, false));
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ResolventFunction : public torch::autograd::Function<ResolventFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                            const at::Tensor& z, bool causal, const Documents& documents) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [g, left, right] = call_forward(a, b, c, z, causal, documents, true);
    context->save_for_backward({a, b, c, z, documents.value_or(at::Tensor()), left, right});
    context->saved_data["causal"] = causal;
    return g;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    static const auto op = typed_operator<decltype(resolvent_gradients)>("limbeck::resolvent_backward");
    const auto saved = context->get_saved_variables();
    const Documents documents = saved[4].defined() ? Documents(saved[4]) : std::nullopt;
    const at::Tensor& z = saved[3];
    auto [grad_a, grad_b, grad_c, grad_z] =
        op.call(grads[0], saved[0], saved[1], saved[2], for_every_row(z, saved[0]),
                context->saved_data["causal"].toBool(), documents, saved[5], saved[6]);
    return {grad_a, grad_b, grad_c, grad_z.sum_to_size_symint(z.sym_sizes()), at::Tensor(), at::Tensor()};
  }
};

bool any_wants_gradient(std::initializer_list<const at::Tensor*> tensors) {
  for (const at::Tensor* tensor : tensors) {
    if (tensor->defined() && tensor->requires_grad()) return at::GradMode::is_enabled();
  }
  return false;
}

at::Tensor resolvent_autograd(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                              bool causal, const Documents& documents) {
  if (any_wants_gradient({&a, &b, &c, &z})) return ResolventFunction::apply(a, b, c, z, causal, documents);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return resolvent_plain(a, b, c, z, causal, documents);
}

// On meta: what each body returns, and what that of a planned GPU holds meanwhile.
bool plans_for_gpu(const at::Tensor& a) { return planned_device() == at::kCUDA && a.numel() > 0; }

void hold_scratch(const at::Tensor& a, const ResolventScratch& scratch) {
  hold_for_a_moment(a, scratch.numbers() * static_cast<int64_t>(sizeof(double)));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> planned_outputs(const at::Tensor& a, const at::Tensor& b,
                                                               const at::Tensor& c, const at::Tensor& z, bool causal,
                                                               const Documents& documents, bool keep) {
  auto outputs = resolvent_outputs(a, b, c, z, causal, documents, keep);
  if (plans_for_gpu(a)) {
    const ResolventRows rows(a, b, c, z, documents);
    hold_scratch(a, resolvent_scratch(a.numel() / a.size(-1), a.size(-1), causal, keep));
  }
  return outputs;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> planned_gradients(
    const at::Tensor& grad, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
    bool causal, const Documents& documents, const at::Tensor& left, const at::Tensor& right) {
  auto outputs = resolvent_gradients(grad, a, b, c, z, causal, documents, left, right);
  if (plans_for_gpu(a)) {
    const at::Tensor dense = grad.contiguous();
    const ResolventRows rows(a, b, c, z, documents);
    hold_scratch(a, resolvent_backward_scratch(a.numel() / a.size(-1), a.size(-1), causal));
  }
  return outputs;
}

std::tuple<at::Tensor, at::Tensor> planned_continuation(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                                        const at::Tensor& z, const at::Tensor& state) {
  auto outputs = continued_resolvent_outputs(a, b, c, z, state);
  if (plans_for_gpu(a)) {
    const at::Tensor before = state.contiguous();
    const ResolventRows rows(a, b, c, z.expand(state.sizes()), std::nullopt);
    hold_scratch(a, resolvent_scratch(a.numel() / a.size(-1), a.size(-1), true, false));
  }
  return outputs;
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("resolvent(Tensor a, Tensor b, Tensor c, Tensor z, bool causal=True, Tensor? documents=None) -> Tensor");
  m.def(
      "resolvent_forward(Tensor a, Tensor b, Tensor c, Tensor z, bool causal, Tensor? documents,"
      " bool keep) -> (Tensor g, Tensor left, Tensor right)");
  m.def(
      "resolvent_backward(Tensor grad, Tensor a, Tensor b, Tensor c, Tensor z, bool causal, Tensor? documents,"
      " Tensor left, Tensor right) -> (Tensor grad_a, Tensor grad_b, Tensor grad_c, Tensor grad_z)");
  m.def("continued_resolvent(Tensor a, Tensor b, Tensor c, Tensor z, Tensor state) -> (Tensor g, Tensor next_state)");
}

TORCH_LIBRARY_IMPL(limbeck, CompositeExplicitAutograd, m) { m.impl("resolvent", resolvent_plain); }

TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("resolvent_forward", planned_outputs);
  m.impl("resolvent_backward", planned_gradients);
  m.impl("continued_resolvent", planned_continuation);
}

// The inner operators have no derivative of their own; a backward through them says so instead of giving zero.
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("resolvent", resolvent_autograd);
  for (const char* name : {"resolvent_forward", "resolvent_backward", "continued_resolvent"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace

at::Tensor resolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z, bool causal,
                     const Documents& documents) {
  static const auto op = typed_operator<Resolvent>("limbeck::resolvent");
  return op.call(a, b, c, z, causal, documents);
}

std::tuple<at::Tensor, at::Tensor> continued_resolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                                                       const at::Tensor& z, const at::Tensor& state) {
  static const auto op = typed_operator<ContinuedResolvent>("limbeck::continued_resolvent");
  return op.call(a, b, c, z, state);
}

void check_resolvent_bounds(const at::Tensor& g, const at::Tensor& z, double slack) {
  TORCH_CHECK(g.dim() >= 2 && g.size(-1) == 2 && z.dim() >= 1 && z.size(-1) == 2, "[resolvent] g is ", described(g),
              " and z ", described(z), ", wanted [.., n, 2] and [.., 2]");
  const at::Tensor re = g.select(-1, 0), im = g.select(-1, 1), height = z.select(-1, 1).unsqueeze(-1);
  const at::Tensor size = (re * re + im * im).sqrt() * height;
  TORCH_CHECK(im.gt(0).all().item<bool>(), "[resolvent] Im G is ", im.min().item<double>(),
              " somewhere, wanted more than 0: b c is negative, or the result wrong");
  TORCH_CHECK(size.le(1.0 + slack).all().item<bool>(), "[resolvent] |G| Im z is ", size.max().item<double>(),
              " somewhere, wanted 1 at most: b c is negative, or the result wrong");
}

}  // namespace limbeck::kernels
