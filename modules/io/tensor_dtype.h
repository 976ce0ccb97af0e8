// The dtypes of the safetensors format as torch's. One table, both ways.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "modules/io/safetensors_header.h"

namespace limbeck::io {

at::ScalarType scalar_type(StoredType type);
std::optional<StoredType> stored_type(at::ScalarType type);  // nothing: the format has no such dtype

}  // namespace limbeck::io
