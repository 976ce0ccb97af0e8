// What weights can be packed in, as a user names it.
#pragma once
#include <vector>

#include "modules/named_kind.h"

namespace limbeck::quantization {

const std::vector<NamedKind>& quantized_formats();

}  // namespace limbeck::quantization
