#include "modules/projectors/hidden_projector.h"

#include "modules/precision/casts.h"

namespace limbeck::projectors {

namespace {
constexpr double kNormEpsilon = 1e-5;
}  // namespace

HiddenProjector::HiddenProjector(const precision::Scope& scope, Kind kind, int64_t in, int64_t out,
                                 at::ScalarType accepts, at::ScalarType gives)
    : path_(scope.path), accepts_(accepts), own_(scope.policy->stream_dtype()), gives_(gives) {
  auto linear = [&](const std::string& name, int64_t from) {
    return register_module(name, std::make_shared<models::Linear>(scope.child(name), precision::Role::kProjector, from,
                                                                  out, /*bias=*/true));
  };
  first_ = linear("first", in);
  if (kind == Kind::kLinear) return;
  second_ = linear("second", out);
  norm_ = register_module(
      "norm", std::make_shared<models::Norm>(scope.child("norm"), models::NormKind::kLayer, out, kNormEpsilon));
}

at::Tensor HiddenProjector::forward(const at::Tensor& x) const {
  const precision::ModuleScope scope(path_);
  at::Tensor y = first_->forward(precision::cast(x, accepts_, own_, path_ + " (door)"));
  if (second_) y = norm_->forward(second_->forward(models::activate(y, models::Activation::kGelu)));
  return precision::cast(y, own_, gives_, path_ + " (result)");
}

}  // namespace limbeck::projectors
