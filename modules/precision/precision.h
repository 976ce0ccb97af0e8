// The dtype and device of one module, decided before step 1 and kept in training, evaluation, generation and export.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::precision {

// What a parameter-owning module is for; the policy and later the quantizer decide by it, never by its name.
enum class Role { kEmbedding, kNorm, kAttention, kMixer, kBkCore, kMlp, kRouter, kExpert, kHead, kProjector, kAdapter };

const char* role_name(Role role);

struct Precision {
  at::ScalarType storage;  // parameters and buffers
  at::ScalarType input;    // what the module accepts; anything else is refused
  at::ScalarType compute;  // operands of its operators (accumulation is float32 or wider inside them)
  at::ScalarType output;   // what the module returns
  c10::Device device;      // where it runs when it is not checked on meta
  std::string source;      // where the choice came from: "default", "recipes/my.ini:14", "--student.dtype"
  // How the weight is packed; `storage` is then that of the bias alone.
  std::optional<kernels::QuantizedFormat> quantized = std::nullopt;
};

// "float32", "bfloat16", "float16", "float64"; throws UsageError on any other name.
at::ScalarType dtype_from_name(const std::string& name);
std::string dtype_name(at::ScalarType dtype);
// What parameters are stored in: "bfloat16", "nf4".
std::string storage_name(const Precision& precision);

}  // namespace limbeck::precision
