// Codes of ours as the blocks of 32 neighbours that GGUF's types consist of, each block with its scale d in float16:
//   int4-sym*  Q4_0  d (code - 8); a larger group repeats its scale
//   int4*      Q4_1  d code + m, where m stands for -zero d and is rounded to float16
//   int8       Q8_0  d code; all blocks of a row have its scale
// Codes stay as they are. A scale that is a number of float16 stays too (all those of float16 folders, and those of
// bfloat16 ones that are no less than 2^-17); others are rounded to the nearest, by 2^-11 of themselves at most.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/io/gguf_file.h"
#include "modules/precision/packed_weight.h"

namespace limbeck::quantization {

// The type whose blocks hold the codes; none for nf4.
std::optional<io::GgufType> gguf_type_of(kernels::QuantizedFormat format);

struct GgufBlocks {
  at::Tensor bytes;
  double scale_change = 0.0;    // the largest, of a scale, as a part of it
  double minimum_change = 0.0;  // the largest, of a Q4_1 block's m, in steps of its codes
};

// Rows in this order (row_order[i] is the row that comes i-th); columns are whole blocks. `where` names the weight for
// WeightsError: a scale is beyond float16.
GgufBlocks gguf_blocks(const precision::PackedWeight& packed, const std::vector<int64_t>& row_order,
                       const std::string& where);

}  // namespace limbeck::quantization
