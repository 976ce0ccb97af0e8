// Schema, checks and Meta kernels of the distances between predictions; autograd refuses nothing and records nothing.
#include "kernels/prediction_distance/prediction_distance.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/prediction_distance/prediction_distance_operators.h"

namespace limbeck::kernels {
namespace {

at::Tensor one_a_row(const at::Tensor& logits) {
  return at::empty_symint({logits.sym_size(0)}, logits.options().dtype(at::kDouble));
}

void check_logits(const char* op, const at::Tensor& logits) {
  check_floating(op, "logits", logits);
  TORCH_CHECK(logits.dim() == 2 && logits.sym_size(1) > 0, "[", op, "] logits is ", described(logits),
              ", wanted [rows, V] with V of 1 or more");
}

}  // namespace

at::Tensor log_sums_output(const at::Tensor& logits) {
  check_logits("log_sums", logits);
  return one_a_row(logits);
}

DistanceTensors distances_output(const at::Tensor& logits, const at::Tensor& reference,
                                 const at::Tensor& of_reference) {
  constexpr const char* kOp = "prediction_distances";
  check_logits(kOp, logits);
  check_floating(kOp, "reference", reference);
  check_same_shape(kOp, "reference", reference, "logits", logits);
  TORCH_CHECK(reference.device() == logits.device(), "[", kOp, "] reference is ", described(reference),
              ", wanted it on ", logits.device(), " as logits (", described(logits), ")");
  TORCH_CHECK(of_reference.scalar_type() == at::kDouble && of_reference.dim() == 1 &&
                  of_reference.sym_size(0) == logits.sym_size(0) && of_reference.device() == logits.device(),
              "[", kOp, "] of_reference is ", described(of_reference), ", wanted float64 [", logits.sym_size(0),
              "] on ", logits.device(), ": log_sums(reference)");
  return {one_a_row(logits), one_a_row(logits), one_a_row(logits)};
}

namespace {

const auto& log_sums_operator() {
  static const auto op = typed_operator<decltype(log_sums_output)>("limbeck::log_sums");
  return op;
}
const auto& distances_operator() {
  static const auto op = typed_operator<decltype(distances_output)>("limbeck::prediction_distances");
  return op;
}

at::Tensor log_sums_without_gradient(const at::Tensor& logits) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return log_sums_operator().call(logits);
}
DistanceTensors distances_without_gradient(const at::Tensor& logits, const at::Tensor& reference,
                                           const at::Tensor& of_reference) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return distances_operator().call(logits, reference, of_reference);
}

}  // namespace

at::Tensor log_sums(const at::Tensor& logits) { return log_sums_operator().call(logits); }

PredictionDistances prediction_distances(const at::Tensor& logits, const at::Tensor& reference,
                                         const at::Tensor& of_reference) {
  auto [sums, kl, squares] = distances_operator().call(logits, reference, of_reference);
  return {sums, kl, squares};
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("log_sums(Tensor logits) -> Tensor");
  m.def("prediction_distances(Tensor logits, Tensor reference, Tensor of_reference) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("log_sums", &log_sums_output);
  m.impl("prediction_distances", &distances_output);
}
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("log_sums", &log_sums_without_gradient);
  m.impl("prediction_distances", &distances_without_gradient);
}

}  // namespace limbeck::kernels
