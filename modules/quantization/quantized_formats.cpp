#include "modules/quantization/quantized_formats.h"

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::quantization {

const std::vector<NamedKind>& quantized_formats() {
  using kernels::format_name, kernels::QuantizedFormat;
  static const std::vector<NamedKind> formats = {
      {format_name(QuantizedFormat::kInt8), "8 bits and a scale for each row"},
      {format_name(QuantizedFormat::kInt4), "4 bits, a scale and an offset for each 128 neighbours of a row"},
      {format_name(QuantizedFormat::kNf4),
       "4 bits by quantiles of a normal distribution, a scale for each 64 values; as bitsandbytes has it"},
      {format_name(QuantizedFormat::kNf4Double), "nf4 with its scales in 8 bits"}};
  return formats;
}

}  // namespace limbeck::quantization
