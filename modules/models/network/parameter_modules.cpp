#include "modules/models/network/parameter_modules.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <fmt/format.h>

#include <utility>

#include "kernels/gated/gated_activation.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/quantized/quantized_linear.h"
#include "kernels/quantized/quantized_rows.h"
#include "modules/errors.h"

namespace limbeck::models {

namespace {
std::optional<at::Tensor> bias_of(const ContractModule& module) {
  return module.has_parameter("bias") ? std::optional<at::Tensor>(module.parameter("bias")) : std::nullopt;
}

[[noreturn]] void refuse_one_tensor(const ContractModule& module) {
  throw ContractError(fmt::format("[{}] stores its weight in {} ({}), which cannot be read as one tensor",
                                  module.path(), precision::storage_name(module.precision()),
                                  module.precision().source));
}

// A tied head has no weight to store: its contract is the embedding's, unless somebody said otherwise of the head
// alone.
void require_one_contract(const Linear& head, const Embedding& embedding) {
  const precision::Precision &own = head.precision(), &other = embedding.precision();
  const bool packed = own.quantized || other.quantized;
  if (packed ? own.quantized == other.quantized : own.storage == other.storage) return;
  throw ContractError(fmt::format(
      "[{}] is tied to an embedding stored in {}, but its own contract ({}) says {}: one rule must cover "
      "both, or name [{}] alone",
      head.path(), precision::storage_name(other), own.source, precision::storage_name(own), embedding.path()));
}
}  // namespace

Linear::Linear(const Scope& scope, Role role, int64_t in, int64_t out, bool bias)
    : ContractModule(scope, role), in_(in), out_(out) {
  create_matrix("weight", out, in);
  if (bias) create_parameter("bias", {out});
}

Linear::Linear(const Scope& scope, Role role, std::shared_ptr<Embedding> tied, bool bias)
    : ContractModule(scope, role), tied_(std::move(tied)) {
  out_ = tied_->rows(), in_ = tied_->width();
  if (bias) create_parameter("bias", {out_});
  if (tied_->is_quantized() && precision().source == scope.policy->source()) pack_as(*tied_);
  require_one_contract(*this, *tied_);
}

at::Tensor Linear::base_forward(const at::Tensor& x) const {
  const precision::ModuleScope scope(path());
  if (is_quantized()) return leave(kernels::quantized_linear(enter(x), packed()->matrix(), bias()));
  return leave(kernels::linear(enter(x), weight(), bias()));
}

at::Tensor Linear::product(const at::Tensor& x) const {
  const precision::ModuleScope scope(path());
  if (is_quantized()) return leave(kernels::quantized_linear(enter(x), packed()->matrix()));
  return leave(kernels::linear(enter(x), weight()));
}

at::Tensor Linear::frozen_forward(const at::Tensor& x) const {
  const precision::ModuleScope scope(path());
  std::optional<at::Tensor> own = bias();
  if (own) own = own->detach();
  if (is_quantized() && !adapter()) return leave(kernels::quantized_linear(enter(x), packed()->matrix(), own));
  const ProductOperands product =
      adapter() ? adapter()->operands(x, *this, /*learns=*/false, /*draws=*/{}) : ProductOperands{x, weight().detach()};
  return leave(kernels::linear(enter(product.x), product.weight, own));
}

std::optional<at::Tensor> Linear::bias() const { return bias_of(*this); }

const at::Tensor& Linear::weight() const {
  if (is_quantized()) refuse_one_tensor(*this);
  return tied_ ? tied_->weight() : parameter("weight");
}

at::Tensor Linear::operand() const {
  return is_quantized() ? kernels::all_rows(packed()->matrix(), precision().compute) : weight();
}

const precision::PackedWeight* Linear::packed() const { return tied_ ? tied_->packed() : packed_weight("weight"); }

at::Tensor Linear::weight_rows(int64_t row, int64_t count) const {
  return is_quantized() ? packed()->rows(row, count) : weight().narrow(0, row, count);
}

Embedding::Embedding(const Scope& scope, int64_t rows, int64_t width, int64_t padding_id)
    : ContractModule(scope, Role::kEmbedding),
      rows_(rows),
      width_(width),
      padding_id_(padding_id < rows ? padding_id : -1) {
  create_matrix("weight", rows, width);
}

at::Tensor Embedding::base_forward(const at::Tensor& ids) const {
  const precision::ModuleScope scope(path());
  accept_ids(ids);
  if (is_quantized()) return leave(kernels::quantized_rows(ids, packed()->matrix(), precision().compute));
  return leave(at::embedding(weight(), ids, padding_id_));
}

const at::Tensor& Embedding::weight() const {
  if (is_quantized()) refuse_one_tensor(*this);
  return parameter("weight");
}

at::Tensor Embedding::weight_rows(int64_t row, int64_t count) const {
  return is_quantized() ? packed()->rows(row, count) : weight().narrow(0, row, count);
}

Norm::Norm(const Scope& scope, NormKind kind, int64_t width, double epsilon)
    : ContractModule(scope, Role::kNorm), kind_(kind), epsilon_(epsilon) {
  create_parameter("weight", {width});
  if (kind == NormKind::kLayer) create_parameter("bias", {width});
}

at::Tensor Norm::normed(const at::Tensor& x, bool learns) const {
  const precision::ModuleScope scope(path());
  const at::Tensor input = enter(x);
  const auto own = [&](const at::Tensor& tensor) { return learns ? tensor : tensor.detach(); };
  const at::Tensor weight = own(parameter("weight"));
  if (kind_ == NormKind::kLayer) return leave(kernels::layer_norm(input, weight, own(parameter("bias")), epsilon_));
  return leave(kernels::rms_norm(input, weight, epsilon_, kind_ == NormKind::kRmsUnitOffset));
}

at::Tensor activate(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
  }
  throw ContractError("activation outside the known kinds");
}

at::Tensor gate(const at::Tensor& gate, const at::Tensor& up, Activation activation) {
  if (activation == Activation::kSilu) return kernels::swiglu(gate, up);
  if (activation == Activation::kGeluTanh) return kernels::geglu_tanh(gate, up);
  return activate(gate, activation) * up;
}

}  // namespace limbeck::models
