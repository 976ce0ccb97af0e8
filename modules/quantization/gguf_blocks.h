// Codes of ours as the blocks of 32 neighbours that GGUF's types consist of, each block with its scale d in float16:
//   int4-sym*  Q4_0  d (code - 8); a larger group repeats its scale
//   int4*      Q4_1  d code + m, where m stands for -zero d and is rounded to float16
//   int8       Q8_0  d code; all blocks of a row have its scale
// int3 and int2 are held likewise, with and without -sym, in codes of 4 bits: ggml's types of fewer bits round scales
// to 4 or 6 bits. Codes stay as they are. A scale that is a number of float16 stays too (all those of float16 folders,
// and those of bfloat16 ones that are no less than 2^-17); others are rounded to the nearest, by 2^-11 of themselves at
// most.
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

// The other way round: which format of ours has the codes of such blocks, as the scales of all of them allow. Where
// those of neighbours are alike, it is one with larger groups: as it was before gguf_blocks().
class BlockFormat {
 public:
  // none: no format of ours has this type's codes (Q4_1's least values are no codes).
  static std::optional<BlockFormat> of(io::GgufType type, int64_t columns);
  // The blocks of whole rows; where it says false no others would change the answer.
  bool take(const uint8_t* blocks, int64_t rows);
  kernels::QuantizedFormat format() const { return format_; }

 private:
  BlockFormat(io::GgufType type, int64_t columns);
  bool fits(const uint8_t* row) const;

  int64_t block_bytes_, columns_;
  std::vector<kernels::QuantizedFormat> others_;  // with smaller groups, the smallest first
  kernels::QuantizedFormat format_;
};

// Blocks [rows, bytes] of Q4_0 or Q8_0 as a weight of such a format, its scales in float16 as they are; the i-th row of
// blocks becomes row row_order[i].
precision::PackedWeight packed_of_blocks(const at::Tensor& blocks, kernels::QuantizedFormat format, int64_t columns,
                                         const std::vector<int64_t>& row_order);

}  // namespace limbeck::quantization
