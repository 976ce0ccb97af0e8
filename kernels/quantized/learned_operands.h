// What the bodies of learned rounding (CPU, meta) share: checks and the signatures of
//   limbeck::quantized_range    -> float32 [ends, scales]
//   limbeck::quantize_learned   -> parts
//   limbeck::learned_values     -> float32 [rows, columns], with autograd for offset and range
//   limbeck::learned_gradients  -> those of offset and range
//   limbeck::moved_to_codes     -> float32 [rows, columns]
#pragma once
#include "kernels/operator/checks.h"
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {

int64_t scale_count(const QuantizedFormat& format, int64_t rows, int64_t columns);
void check_rounded_weight(const char* op, const at::Tensor& weight);
void check_learned(const char* op, const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& range,
                   std::string_view format, at::ScalarType scales);

}  // namespace limbeck::kernels
