// Codes of int8 as others store them: bytes counted from the least code, four in a word of 32 bits, low ones first.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::quantization {

// int8 [rows, columns] as int32 [rows, words]; the last word of a row is filled up with zeros.
at::Tensor words_of(const at::Tensor& codes);
// The other way round.
at::Tensor codes_of_words(const at::Tensor& words, int64_t columns);

}  // namespace limbeck::quantization
