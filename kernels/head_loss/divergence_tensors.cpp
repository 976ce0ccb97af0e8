#include "kernels/head_loss/divergence_tensors.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include "kernels/head_loss/divergence_formula.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr double kNear = 0.5;

struct TensorOps {
  using Value = Tensor;
  using Number = double;

  static Tensor far(const Tensor& d) { return d.abs() > kNear; }
  static Tensor above(const Tensor& x, double number) { return x > number; }
  static bool any(const Tensor&) { return true; }  // asking a GPU would wait for it
  static Tensor either(const Tensor& mask, const Tensor& a, const Tensor& b) { return at::where(mask, a, b); }
  static Tensor size(const Tensor& x) { return x.abs(); }
  static Tensor sign(const Tensor& x) { return at::sign(x); }
  static Tensor less_one(const Tensor& x) { return at::expm1(x.clamp_max(80.0)); }
  static Tensor less_one_near(const Tensor& d) { return at::expm1(d.clamp(-kNear, kNear)); }
  static Tensor excess(const Tensor& d) {
    const Tensor near = d.clamp(-kNear, kNear);
    return (at::expm1(near) - near).clamp_min(0.0);
  }
  static Tensor log_of_one_plus(const Tensor& y, Tensor* rest) {
    const Tensor log = at::log1p(y);
    *rest = (y - log).clamp_min(0.0);
    return log;
  }
};

}  // namespace

TensorTerms divergence_terms(DivergenceKind kind, const Tensor& d, const Tensor& p_s, const Tensor& p_t) {
  return with_divergence(kind.divergence, [&](auto tag) -> TensorTerms {
    constexpr Divergence kKind = decltype(tag)::kKind;
    if constexpr (kKind == Divergence::kNone) {
      TORCH_CHECK(false, "[head_loss] divergence none has no terms");
    } else {
      const auto terms = divergence_terms<kKind, TensorOps>(d, p_t, kind.mix, [&] { return p_s; });
      return {terms.value, terms.slope};
    }
  });
}

}  // namespace limbeck::kernels
