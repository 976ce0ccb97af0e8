// What the blocks of GGUF's types stand for, in float32 by ggml's own formulas: the same order of products and sums, so
// the same bits. Types that are floats are blocks of one value.
#pragma once
#include <cstdint>

#include "modules/io/gguf_file.h"

namespace limbeck::quantization {

// `count` blocks that follow one another, as io::traits_of(type) says their sizes.
void gguf_values(io::GgufType type, const uint8_t* blocks, int64_t count, float* values);

}  // namespace limbeck::quantization
