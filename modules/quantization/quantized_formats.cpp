#include "modules/quantization/quantized_formats.h"

namespace limbeck::quantization {

const std::vector<NamedKind>& quantized_formats() {
  static const std::vector<NamedKind> formats = {
      {"int8", "8 bits and a scale for each row"},
      {"int8-g128", "8 bits and a scale for each 128 neighbours of a row"},
      {"int8-g64", "the same for each 64"},
      {"int8-g32", "the same for each 32"},
      {"int8-dynamic", "int8, and in products the rows of activations in 8 bits too"},
      {"int4", "4 bits, a scale and a zero for each 128 neighbours of a row"},
      {"int4-g64", "the same for each 64"},
      {"int4-g32", "the same for each 32"},
      {"int4-sym", "4 bits and a scale for each 128 neighbours of a row"},
      {"int4-sym-g64", "the same for each 64"},
      {"int4-sym-g32", "the same for each 32"},
      {"int4-sym-dynamic", "int4-sym, and in products the rows of activations in 8 bits; on the CPU alone"},
      {"int4-sym-g32-dynamic", "the same of int4-sym-g32"},
      {"int3", "3 bits, a scale and a zero for each 128 neighbours of a row"},
      {"int3-g64", "the same for each 64"},
      {"int3-g32", "the same for each 32"},
      {"int3-sym", "3 bits and a scale for each 128 neighbours of a row"},
      {"int3-sym-g64", "the same for each 64"},
      {"int3-sym-g32", "the same for each 32"},
      {"int2", "2 bits, a scale and a zero for each 128 neighbours of a row"},
      {"int2-g64", "the same for each 64"},
      {"int2-g32", "the same for each 32"},
      {"int2-sym", "2 bits (-2 to 1) and a scale for each 128 neighbours of a row"},
      {"int2-sym-g64", "the same for each 64"},
      {"int2-sym-g32", "the same for each 32"},
      {"nf4", "4 bits by quantiles of a normal distribution, a scale for each 64 values; as bitsandbytes has it"},
      {"nf4-double", "nf4 with its scales in 8 bits"}};
  return formats;
}

}  // namespace limbeck::quantization
