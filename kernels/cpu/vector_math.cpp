// ATen's elementwise functions call oneMKL from each thread, and the oneMKL of these builds (2024.2) chooses its code
// at the first call of each function. Threads that make that call together can get code of low accuracy for their part
// of the tensor (errors of some hundred ulp), once and without a word: pytorch/pytorch#188792. Here one thread makes
// each first call while the library is loaded, so that a run and its repetition have the same bits.
#include <ATen/ops/acos.h>
#include <ATen/ops/asin.h>
#include <ATen/ops/atan.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/erf.h>
#include <ATen/ops/erfc.h>
#include <ATen/ops/erfinv.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log10.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/tan.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/trunc.h>

namespace limbeck::kernels {
namespace {

using Function = at::Tensor (*)(const at::Tensor&);

// Those that ATen/cpu/vml.h hands to oneMKL.
constexpr Function kFunctions[]{&at::acos,   &at::asin, &at::atan,  &at::cos,  &at::erf, &at::erfc,
                                &at::erfinv, &at::exp,  &at::log10, &at::log2, &at::log, &at::sin,
                                &at::sqrt,   &at::tan,  &at::tanh,  &at::trunc};

[[maybe_unused]] const bool first_calls_made = [] {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const auto x = at::full({1}, 0.5, dtype);
    for (const Function function : kFunctions) function(x);
  }
  return true;
}();

}  // namespace
}  // namespace limbeck::kernels
