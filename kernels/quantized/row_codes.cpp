// Schema, checks, Meta kernel and derivative of rows that are seen as codes.
#include "kernels/quantized/row_codes.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/round.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/passed_through.h"
#include "kernels/operator/planned_device.h"
#include "kernels/quantized/row_steps.h"

namespace limbeck::kernels {

at::Tensor row_codes_output(const at::Tensor& x) {
  check_floating("seen_through_row_codes", "x", x);
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.dim() >= 1, "[seen_through_row_codes] x is ", described(x),
              ", wanted float32 [.., width]");
  return at::empty(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
}

namespace {

const auto& codes_handle() {
  static const auto op = typed_operator<decltype(row_codes_output)>("limbeck::seen_through_row_codes");
  return op;
}

at::Tensor codes_meta(const at::Tensor& x) {
  const at::Tensor y = row_codes_output(x);
  const int64_t copied = x.is_contiguous() ? 0 : static_cast<int64_t>(x.nbytes());
  const int64_t rows = x.size(-1) == 0 ? 0 : x.numel() / x.size(-1);
  const int64_t codes = planned_device() == at::kCUDA ? x.numel() + rows * static_cast<int64_t>(sizeof(float)) : 0;
  hold_for_a_moment(x, copied + codes);
  return y;
}

at::Tensor codes_autograd(const at::Tensor& x) {
  return PassedThrough::apply(x, [](const at::Tensor& rows) { return codes_handle().call(rows); });
}

}  // namespace

at::Tensor seen_through_row_codes(const at::Tensor& x) { return codes_handle().call(x); }

at::Tensor seen_in_steps(const at::Tensor& x, double bound) {
  return PassedThrough::apply(x, [bound](const at::Tensor& rows) {
    constexpr auto steps = static_cast<double>(kStepsOfSymmetric);
    return at::mul(rows, steps / bound).round_().clamp_(-steps, steps).mul_(bound / steps);
  });
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) { m.def("seen_through_row_codes(Tensor x) -> Tensor"); }
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("seen_through_row_codes", &codes_meta); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("seen_through_row_codes", &codes_autograd); }

}  // namespace limbeck::kernels
