#include "modules/quantization/code_words.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "kernels/operator/rounded_up.h"
#include "kernels/quantized/short_codes.h"

namespace limbeck::quantization {
namespace {

constexpr int64_t kCodes = 4;         // of a word
constexpr uint8_t kLeastByte = 0x80;  // -128, from which stored codes are counted

// The same in both directions; rows of either may be longer than the columns.
void copy_turned(const void* from, int64_t from_row, void* to, int64_t to_row, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    const auto* bytes = static_cast<const uint8_t*>(from) + row * from_row;
    auto* turned = static_cast<uint8_t*>(to) + row * to_row;
    for (int64_t i = 0; i < columns; ++i) turned[i] = static_cast<uint8_t>(bytes[i] ^ kLeastByte);
  }
}

}  // namespace

at::Tensor words_of(const at::Tensor& codes) {
  const int64_t rows = codes.size(0), columns = codes.size(1), words = kernels::rounded_up_quotient(columns, kCodes);
  at::Tensor stored = at::zeros({rows, words}, at::kInt);
  copy_turned(codes.const_data_ptr(), columns, stored.mutable_data_ptr(), words * kCodes, rows, columns);
  return stored;
}

at::Tensor codes_of_words(const at::Tensor& words, int64_t columns) {
  const int64_t rows = words.size(0);
  at::Tensor codes = at::empty({rows, columns}, at::kChar);
  copy_turned(words.const_data_ptr(), words.size(1) * kCodes, codes.mutable_data_ptr(), columns, rows, columns);
  return codes;
}

std::optional<at::Tensor> short_words_of(const at::Tensor& codes, int bits) {
  const int64_t rows = codes.size(0), columns = codes.size(1);
  const int least = -(1 << (bits - 1));
  at::Tensor words = at::zeros({rows, kernels::words_of_codes(bits, columns)}, at::kInt);
  std::vector<uint8_t> from_least(static_cast<size_t>(columns));
  const auto* code = codes.const_data_ptr<int8_t>();
  auto* word = reinterpret_cast<uint32_t*>(words.mutable_data_ptr<int32_t>());
  for (int64_t row = 0; row < rows; ++row, code += columns, word += words.size(1)) {
    for (int64_t i = 0; i < columns; ++i) {
      if (code[i] < least || code[i] >= -least) return std::nullopt;
      from_least[static_cast<size_t>(i)] = static_cast<uint8_t>(code[i] - least);
    }
    kernels::pack_codes(bits, from_least.data(), columns, word);
  }
  return words;
}

}  // namespace limbeck::quantization
