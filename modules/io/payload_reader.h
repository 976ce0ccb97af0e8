// One tensor's bytes from a file straight into its memory, by several threads when it is large, and checked for NaN and
// infinities while each piece is still in the cache.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "modules/io/input_file.h"

namespace limbeck::io {

// destination: contiguous CPU tensor of as many bytes as [offset, offset + nbytes). Index of the first non-finite
// element when check_finite; the data has been read completely all the same.
std::optional<int64_t> read_payload(const InputFile& file, uint64_t offset, at::Tensor& destination, bool check_finite);

}  // namespace limbeck::io
