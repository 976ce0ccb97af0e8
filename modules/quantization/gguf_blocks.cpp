#include "modules/quantization/gguf_blocks.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "modules/errors.h"
#include "modules/io/finite_check.h"
#include "modules/precision/casts.h"

namespace limbeck::quantization {
namespace {

using io::GgufType;
using kernels::CodeKind;
using kernels::QuantizedFormat;
using kernels::QuantizedMatrix;

constexpr int64_t kBlock = 32, kHalf = kBlock / 2;

at::Tensor in_dtype(const at::Tensor& values, at::ScalarType dtype) {
  at::Tensor converted = at::empty(values.sizes(), values.options().dtype(dtype));
  precision::cast_into(converted, values);
  return converted;
}

// Numbers in float16, and the same ones in float32.
struct Halves {
  at::Tensor bits, values;
  explicit Halves(const at::Tensor& numbers)
      : bits(in_dtype(numbers, at::kHalf).contiguous()), values(in_dtype(bits, at::kFloat)) {}
  uint16_t bits_at(int64_t index) const { return static_cast<const uint16_t*>(bits.const_data_ptr())[index]; }
  float at(int64_t index) const { return values.const_data_ptr<float>()[index]; }
};

Halves scales_of(const QuantizedMatrix& matrix, const std::string& where, double& change) {
  const at::Tensor exact = in_dtype(matrix.parts.at(1), at::kFloat).contiguous();
  Halves halves(exact);
  const auto* numbers = exact.const_data_ptr<float>();
  if (const auto bad = io::first_nonfinite(halves.values)) {
    throw WeightsError(fmt::format(
        "{}: the scale {:g} of its codes is beyond float16, which GGUF stores scales in: quantize the float weights "
        "anew, or leave this module in floats",
        where, numbers[*bad]));
  }
  for (int64_t i = 0; i < exact.numel(); ++i) {
    if (numbers[i] == halves.at(i)) continue;
    change = std::max(change, std::abs(static_cast<double>(halves.at(i)) / numbers[i] - 1.0));
  }
  return halves;
}

int zero_of(const QuantizedMatrix& matrix, int64_t row, int64_t group, int64_t groups) {
  const auto* zeros = static_cast<const uint32_t*>(matrix.parts.at(2).const_data_ptr());
  return static_cast<int>(kernels::code_in_words(zeros + group, groups, matrix.format.bits, row));
}

// What the code 0 of each group stands for: a product of 4 and 11 bits, exact in float32.
Halves minima_of(const QuantizedMatrix& matrix, const Halves& scales, double& change) {
  const int64_t groups = scales.values.size(1);
  at::Tensor exact = at::empty(scales.values.sizes(), at::kFloat);
  auto* numbers = exact.mutable_data_ptr<float>();
  for (int64_t i = 0; i < exact.numel(); ++i) {
    const int zero = zero_of(matrix, i / groups, i % groups, groups);
    numbers[i] = zero == 0 ? 0.0F : -static_cast<float>(zero) * scales.at(i);
  }
  Halves halves(exact);
  for (int64_t i = 0; i < exact.numel(); ++i) {
    if (numbers[i] == halves.at(i)) continue;
    change = std::max(change, std::abs((static_cast<double>(halves.at(i)) - numbers[i]) / scales.at(i)));
  }
  return halves;
}

// 32 codes of ours as ggml has them: a code and the one 16 further on in a byte. Where they are symmetric, codes of 2
// and 3 bits are counted from the middle one of 4.
void put_nibbles(const QuantizedFormat& format, const uint32_t* words, uint8_t* out) {
  std::array<uint8_t, kBlock> codes{};
  kernels::unpack_codes(format.bits, words, format.bits, 0, kBlock, codes.data());
  const int more = format.has_zeros ? 0 : kernels::kMiddleCode - format.middle_code();
  const auto code = [&](int64_t i) { return codes[static_cast<size_t>(i)] + more; };
  for (int64_t i = 0; i < kHalf; ++i) out[i] = static_cast<uint8_t>(code(i) | code(i + kHalf) << 4);
}

// And the other way round.
void take_nibbles(const uint8_t* from, uint8_t* codes) {
  const auto code = [from](int64_t i) { return from[i % kHalf] >> (i / kHalf * 4) & 15; };
  for (int64_t i = 0; i < kHalf; ++i) codes[i] = static_cast<uint8_t>(code(2 * i) | code(2 * i + 1) << 4);
}

void put_half(uint16_t bits, uint8_t*& out) {
  std::memcpy(out, &bits, sizeof bits);
  out += sizeof bits;
}

}  // namespace

std::optional<GgufType> gguf_type_of(kernels::QuantizedFormat format) {
  switch (format.kind) {
    case CodeKind::kInt8:
      return GgufType::kQ8_0;
    case CodeKind::kInt4:
      return format.has_zeros ? GgufType::kQ4_1 : GgufType::kQ4_0;
    case CodeKind::kNf4:
      break;
  }
  return std::nullopt;
}

GgufBlocks gguf_blocks(const precision::PackedWeight& packed, const std::vector<int64_t>& row_order,
                       const std::string& where) {
  const precision::PackedWeight here = packed.on(c10::kCPU);
  const QuantizedMatrix& matrix = here.matrix();
  const bool int8 = matrix.format.kind == CodeKind::kInt8;
  const GgufType type = *gguf_type_of(matrix.format);
  const int64_t blocks = matrix.columns / kBlock;
  GgufBlocks result;
  const Halves scales = scales_of(matrix, where, result.scale_change);
  std::optional<Halves> minima;
  if (type == GgufType::kQ4_1) minima.emplace(minima_of(matrix, scales, result.minimum_change));

  const at::Tensor codes = here.part("codes").contiguous();
  const auto* all_codes = static_cast<const uint8_t*>(codes.const_data_ptr());
  const auto row_bytes = static_cast<int64_t>(codes.nbytes()) / matrix.rows;
  const int64_t groups = scales.values.numel() / matrix.rows;
  const int64_t block_codes = int8 ? kBlock : kHalf, block_bytes = kBlock * matrix.format.bits / 8;
  result.bytes = at::empty({matrix.rows, blocks * io::traits_of(type).bytes}, at::kByte);
  auto* out = result.bytes.mutable_data_ptr<uint8_t>();
  for (const int64_t row : row_order) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t scale =
          row * groups + (matrix.format.has_groups() ? block * kBlock >> matrix.format.group_shift : 0);
      put_half(scales.bits_at(scale), out);
      if (minima) put_half(minima->bits_at(scale), out);
      const uint8_t* from = all_codes + row * row_bytes + block * block_bytes;
      if (int8)
        std::memcpy(out, from, kBlock);
      else
        put_nibbles(matrix.format, reinterpret_cast<const uint32_t*>(from), out);
      out += block_codes;
    }
  }
  return result;
}

BlockFormat::BlockFormat(GgufType type, int64_t columns) : block_bytes_(io::traits_of(type).bytes), columns_(columns) {
  const bool int8 = type == GgufType::kQ8_0;
  for (const char* name :
       {int8 ? "int8-g32" : "int4-sym-g32", int8 ? "int8-g64" : "int4-sym-g64", int8 ? "int8-g128" : "int4-sym"}) {
    const kernels::QuantizedFormat format = kernels::format_named(name);
    if (columns % format.group() == 0) others_.push_back(format);
  }
  if (int8) others_.push_back(QuantizedFormat::kInt8);
  format_ = others_.back();
  others_.pop_back();
}

std::optional<BlockFormat> BlockFormat::of(GgufType type, int64_t columns) {
  if (type != GgufType::kQ4_0 && type != GgufType::kQ8_0) return std::nullopt;
  return BlockFormat(type, columns);
}

bool BlockFormat::fits(const uint8_t* row) const {
  const int64_t blocks = columns_ / kBlock;
  const int64_t group = format_.has_groups() ? format_.group() / kBlock : blocks;
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t *own = row + block * block_bytes_, *first = row + block / group * group * block_bytes_;
    if (std::memcmp(own, first, sizeof(uint16_t)) != 0) return false;
  }
  return true;
}

bool BlockFormat::take(const uint8_t* blocks, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    while (!others_.empty() && !fits(blocks + row * (columns_ / kBlock) * block_bytes_)) {
      format_ = others_.back();
      others_.pop_back();
    }
  }
  return !others_.empty();
}

precision::PackedWeight packed_of_blocks(const at::Tensor& blocks, kernels::QuantizedFormat format, int64_t columns,
                                         const std::vector<int64_t>& row_order) {
  const int64_t rows = blocks.size(0), in_row = columns / kBlock;
  QuantizedMatrix matrix{format, rows, columns, {}};
  for (const kernels::QuantizedPart& part : kernels::parts_of(format, rows, columns, at::kHalf))
    matrix.parts.push_back(at::empty(part.shape, part.dtype));
  const bool int8 = format.kind == CodeKind::kInt8;
  const int64_t block_codes = int8 ? kBlock : kHalf, group = format.has_groups() ? format.group() / kBlock : in_row;
  auto* codes = static_cast<uint8_t*>(matrix.parts[0].mutable_data_ptr());
  auto* scales = static_cast<uint8_t*>(matrix.parts[1].mutable_data_ptr());
  const auto* from = blocks.const_data_ptr<uint8_t>();
  for (const int64_t row : row_order) {
    for (int64_t block = 0; block < in_row; ++block) {
      std::memcpy(scales + (row * (in_row / group) + block / group) * 2, from, sizeof(uint16_t));
      from += sizeof(uint16_t);
      uint8_t* out = codes + (row * in_row + block) * block_codes;
      if (int8)
        std::memcpy(out, from, kBlock);
      else
        take_nibbles(from, out);
      from += block_codes;
    }
  }
  return precision::PackedWeight(std::move(matrix));
}

}  // namespace limbeck::quantization
