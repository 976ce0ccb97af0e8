// A frozen matrix W [rows, columns] in 8 to 2 bits a value, as packed tensors ("parts"). Arithmetic is float32,
// rounding to nearest even, and w' is what the matrix stands for afterwards. Scales of all but nf4 are stored in
// float32, bfloat16 or float16, rounded up before codes are chosen by them: no value lies beyond the last code.
//   int8        each row: scale = max |w| / 127; code = round(w / scale) within ±127; w' = code scale.
//   int8-g128   the same for each 128 (-g64, -g32: 64, 32) neighbours of a row, of which the last may be fewer.
//   int8-dynamic, int4-sym-dynamic, int4-sym-g32-dynamic  the parts of int8, int4-sym and int4-sym-g32, for products in
//               which rows of x are codes too (quantized_linear.h).
//   int4        each 128 (-g64, -g32: 64, 32) neighbours of a row, of which the last may be fewer: least and most, 0
//   being
//               one of the values; scale = (most - least) / 15; zero = round(-least / scale);
//               code = round(w / scale) + zero within 0..15; w' = (code - zero) scale.
//   int4-sym    the same (-g64, -g32) with scale = max |w| / 7.5 and zero = 8.
//               Codes lie in words of 8, the first one lowest; a row begins with a new word. Zeros likewise, those of a
//               group for 8 rows in a word. Both are what compressed-tensors calls pack-quantized.
//   int3, int2  the same as int4, with the same groups and -sym: 7 and 3 take the place of 15, 3.5 and 1.5 that of 7.5,
//               4 and 2 that of 8 (so int2-sym is -2 to 1 times its scale). Words hold 16 codes of 2 bits, three of
//               them 32 codes of 3 bits without a gap: compressed-tensors' layout again.
//   nf4         each 64 values of W row by row, across rows (the last block may be shorter): scale = max |w|; code: the
//               nearest of 16 levels (quantiles of a normal distribution) to w / scale; w' = level scale. The blocks,
//               levels and ties are those of bitsandbytes; two codes lie in a byte, the first one in the high half.
//   nf4-double  nf4, and of its scales: offset = their mean; each 256 of scale - offset are scaled to ±1 by their
//               largest magnitude and stored as the nearest of 256 levels of a "dynamic" map, denser around 0.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/quantized/quantized_formula.h"

namespace limbeck::kernels {

// "int8", "int4", "int4-sym-g32", "nf4", …
const char* format_name(QuantizedFormat format);
QuantizedFormat format_named(std::string_view name);
std::optional<QuantizedFormat> find_format(std::string_view name);
std::vector<std::string> format_names();

struct QuantizedPart {
  const char* name;  // "codes", "scales", …
  at::ScalarType dtype;
  std::vector<int64_t> shape;
};
// The tensors that the format consists of, in order; the scales of int8 and int4 in the dtype `scales`.
std::vector<QuantizedPart> parts_of(QuantizedFormat format, int64_t rows, int64_t columns,
                                    at::ScalarType scales = at::kFloat);

struct QuantizedMatrix {
  QuantizedFormat format = QuantizedFormat::kInt8;
  int64_t rows = 0, columns = 0;
  std::vector<at::Tensor> parts;  // as parts_of() lists them

  at::ScalarType scales() const;  // the dtype in which parts_of() lists them
};

// Of a float32, bfloat16 or float16 matrix on the CPU, whose values must be finite; on meta the parts alone.
QuantizedMatrix quantize(const at::Tensor& weight, QuantizedFormat format, at::ScalarType scales = at::kFloat);
// w' of rows [row, row + count), float32 [count, columns].
at::Tensor dequantize_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count);

}  // namespace limbeck::kernels
