// Codes as others store them: counted from the least one, of 8 bits or fewer in words of 32, low bits first.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace limbeck::quantization {

// int8 [rows, columns] as int32 [rows, words]; the last word of a row is filled up with zeros.
at::Tensor words_of(const at::Tensor& codes);
// The other way round.
at::Tensor codes_of_words(const at::Tensor& words, int64_t columns);

// int8 [rows, columns] as int32 [rows, words] of 2, 3 or 4 bits a code; nothing where one is beyond what these hold.
std::optional<at::Tensor> short_words_of(const at::Tensor& codes, int bits);

}  // namespace limbeck::quantization
