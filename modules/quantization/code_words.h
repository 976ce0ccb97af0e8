// Codes as others store them: counted from the least one, four of 8 bits or eight of 4 in a word of 32, low bits first.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace limbeck::quantization {

// int8 [rows, columns] as int32 [rows, words]; the last word of a row is filled up with zeros.
at::Tensor words_of(const at::Tensor& codes);
// The other way round.
at::Tensor codes_of_words(const at::Tensor& words, int64_t columns);

// int8 [rows, columns] from -8 to 7 as int32 [rows, words] of 4 bits a code; nothing where one is beyond.
std::optional<at::Tensor> short_words_of(const at::Tensor& codes);

}  // namespace limbeck::quantization
