// One model in one file, as the programs on ggml read it (GGUF, version 3): metadata, the list of tensors, then their
// bytes, each at a multiple of 32. The file appears complete or not at all. What is in it, and what it is called, is
// its writer's matter.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace limbeck::io {

// By ggml's numbers. A block of Q4_0, Q4_1 and Q8_0 stands for 32 values of a row.
enum class GgufType : uint32_t { kFloat32 = 0, kFloat16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBFloat16 = 30 };

struct GgufTypeTraits {
  const char* name;
  int64_t values, bytes;  // of a block
};
const GgufTypeTraits& traits_of(GgufType type);

using GgufValue = std::variant<bool, uint32_t, float, std::string, std::vector<int32_t>, std::vector<float>,
                               std::vector<std::string>>;
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kFloat32;
  std::vector<int64_t> shape;         // rows before columns; the file lists sizes the other way round
  std::function<at::Tensor()> bytes;  // called once, when its turn comes: contiguous, on the CPU, of bytes_of() bytes
};

// Columns must be whole blocks.
int64_t bytes_of(const GgufTensor& tensor);
// Of the metadata, of which the file has room for any, and the tensors in this order. IoError, ContractError.
void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                const std::vector<GgufTensor>& tensors);

}  // namespace limbeck::io
