// Schema, checks, Meta kernel and derivative of tridiagonal systems, and what is composed of them.
#include "kernels/resolvent/tridiagonal_solve.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/conj.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_solve.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/real.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/resolvent/resolvent.h"
#include "kernels/resolvent/resolvent_plan.h"
#include "kernels/resolvent/tridiagonal_systems.h"

namespace limbeck::kernels {
namespace {

std::vector<c10::SymInt> leading_and(const at::Tensor& a, std::initializer_list<c10::SymInt> last) {
  std::vector<c10::SymInt> shape = a.sym_sizes().slice(0, a.dim() - 1).vec();
  shape.insert(shape.end(), last.begin(), last.end());
  return shape;
}

void check_system_part(const char* name, const at::Tensor& part, const at::Tensor& a,
                       const std::vector<c10::SymInt>& shape) {
  check_matches("tridiagonal_solve", name, part, "a", a);
  TORCH_CHECK(part.sym_sizes() == c10::SymIntArrayRef(shape), "[tridiagonal_solve] ", name, " is ", described(part),
              ", wanted ", c10::str(c10::SymIntArrayRef(shape)), " for a (", described(a), ")");
}

}  // namespace

at::Tensor tridiagonal_solve_output(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                                    const at::Tensor& rhs) {
  check_floating("tridiagonal_solve", "a", a);
  TORCH_CHECK(a.scalar_type() == at::kDouble && a.dim() >= 1 && a.sym_size(-1) > 0, "[tridiagonal_solve] a is ",
              described(a), ", wanted float64 [.., n] with n > 0");
  const c10::SymInt n = a.sym_size(-1);
  check_system_part("b", b, a, leading_and(a, {n - 1}));
  check_system_part("c", c, a, leading_and(a, {n - 1}));
  check_system_part("z", z, a, leading_and(a, {2}));
  TORCH_CHECK(rhs.defined() && rhs.dim() == a.dim() + 2, "[tridiagonal_solve] rhs is ", described(rhs),
              ", wanted float64 [.., n, r, 2] for a (", described(a), ")");
  check_system_part("rhs", rhs, a, leading_and(a, {n, rhs.sym_size(-2), 2}));
  return at::empty_symint(rhs.sym_sizes(), rhs.options());
}

namespace {

using Solve = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const auto& solve_handle() {
  static const auto op = typed_operator<Solve>("limbeck::tridiagonal_solve");
  return op;
}

at::Tensor sum_of_real_products(const at::Tensor& p, const at::Tensor& q) { return at::real((p * q).sum(-1)); }

// With A = T - z the gradient of rhs is A^-H grad, whose conjugate p solves the transposed system; that of A is -p x^T
// in its three diagonals, with p already conjugated.
struct TridiagonalSolve : torch::autograd::Function<TridiagonalSolve> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                            const at::Tensor& z, const at::Tensor& rhs) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor x = solve_handle().call(a, b, c, z, rhs);
    context->save_for_backward({a, b, c, z, x});
    return x;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &a = saved[0], &b = saved[1], &c = saved[2], &z = saved[3];
    const at::Tensor grad = at::view_as_complex(gradients[0].contiguous());
    const at::Tensor conjugated = at::view_as_real(at::conj(grad).resolve_conj());
    const at::Tensor p = at::view_as_complex(solve_handle().call(a, c, b, z, conjugated));
    const at::Tensor x = at::view_as_complex(saved[4]);
    const int64_t n = a.size(-1);
    const at::Tensor on_diagonal = (p * x).sum(-1);
    const auto rows = [&](const at::Tensor& t, int64_t begin) { return t.narrow(-2, begin, n - 1); };
    return {-at::real(on_diagonal), -sum_of_real_products(rows(p, 0), rows(x, 1)),
            -sum_of_real_products(rows(p, 1), rows(x, 0)),
            at::view_as_real(at::conj(on_diagonal.sum(-1)).resolve_conj()),
            at::view_as_real(at::conj(p).resolve_conj())};
  }
};

at::Tensor solve_autograd(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                          const at::Tensor& rhs) {
  const auto wants = [](const at::Tensor& t) { return t.defined() && t.requires_grad(); };
  if (at::GradMode::is_enabled() && (wants(a) || wants(b) || wants(c) || wants(z) || wants(rhs))) {
    return TridiagonalSolve::apply(a, b, c, z, rhs);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return solve_handle().call(a, b, c, z, rhs);
}

// On meta: the result, and what the body of a planned GPU holds meanwhile.
at::Tensor planned_solve(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                         const at::Tensor& rhs) {
  const at::Tensor x = tridiagonal_solve_output(a, b, c, z, rhs);
  if (planned_device() == at::kCUDA) {
    const DenseSystems dense(a, b, c, z, rhs);
    const int64_t n = a.size(-1), rows = a.numel() / n;
    const int64_t numbers = tridiagonal_scratch_numbers(rows, n, rhs.size(-2));
    hold_for_a_moment(a, numbers * static_cast<int64_t>(sizeof(double)));
  }
  return x;
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("tridiagonal_solve(Tensor a, Tensor b, Tensor c, Tensor z, Tensor rhs) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("tridiagonal_solve", planned_solve); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("tridiagonal_solve", solve_autograd); }

// Real columns [.., n, r] as complex ones.
at::Tensor as_pairs(const at::Tensor& columns) { return at::stack({columns, at::zeros_like(columns)}, -1); }

void check_columns(const char* name, const at::Tensor& columns, const at::Tensor& a, const at::Tensor& like) {
  check_matches("low_rank_resolvent", name, columns, "a", a);
  TORCH_CHECK(columns.dim() == a.dim() + 1 && columns.sym_size(-1) > 0 &&
                  columns.sym_sizes().slice(0, a.dim()) == a.sym_sizes() && columns.sym_sizes() == like.sym_sizes(),
              "[low_rank_resolvent] ", name, " is ", described(columns), ", wanted [.., n, r] for a (", described(a),
              "), u and v alike");
}

}  // namespace

at::Tensor tridiagonal_solve(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                             const at::Tensor& rhs) {
  TORCH_CHECK(a.defined() && a.dim() >= 1 && z.defined() && z.dim() >= 1 && z.sym_size(-1) == 2,
              "[tridiagonal_solve] a is ", described(a), " and z ", described(z), ", wanted [.., n] and [.., 2]");
  return solve_handle().call(a, b, c, z.expand_symint(leading_and(a, {2})), rhs);
}

at::Tensor low_rank_resolvent(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                              const at::Tensor& u, const at::Tensor& v) {
  check_floating("low_rank_resolvent", "a", a);
  TORCH_CHECK(a.dim() >= 1, "[low_rank_resolvent] a is ", described(a), ", wanted [.., n]");
  check_columns("u", u, a, u);
  check_columns("v", v, a, u);
  TORCH_CHECK(a.scalar_type() == at::kFloat || a.scalar_type() == at::kDouble, "[low_rank_resolvent] a is ",
              described(a), ", wanted float32 or float64");
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  const at::Tensor a64 = wide(a), b64 = wide(b), c64 = wide(c), z64 = wide(z), u64 = wide(u), v64 = wide(v);
  const at::Tensor diagonal = resolvent(a64, b64, c64, z64, false);
  const at::Tensor x = at::view_as_complex(tridiagonal_solve(a64, b64, c64, z64, as_pairs(u64)));  // G u
  const at::Tensor y = at::view_as_complex(tridiagonal_solve(a64, c64, b64, z64, as_pairs(v64)));  // G^T v
  const at::Tensor small =
      at::matmul(at::view_as_complex(as_pairs(v64)).transpose(-2, -1), x) + at::eye(u.size(-1), x.options());
  const at::Tensor correction = (at::linalg_solve(small, x, /*left=*/false) * y).sum(-1);
  return at::view_as_real(at::view_as_complex(diagonal) - correction).to(a.scalar_type());
}

}  // namespace limbeck::kernels
