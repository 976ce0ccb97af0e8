// One model in one file, as the programs on ggml read it (GGUF, version 3): metadata, the list of tensors, then their
// bytes, each at a multiple of 32. The file appears complete or not at all. What is in it, and what it is called, is
// its writer's matter.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace limbeck::io {

// By ggml's numbers. A block stands for 32 neighbours of a row, of the types whose names end in K for 256.
enum class GgufType : uint32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBFloat16 = 30
};

struct GgufTypeTraits {
  const char* name;
  int64_t values, bytes;  // of a block
};
const GgufTypeTraits& traits_of(GgufType type);
// Of the number in a file; none: a type that is not read here.
std::optional<GgufType> gguf_type(uint32_t number);
// What ggml calls a number, read here or not: "IQ4_XS".
std::string gguf_type_name(uint32_t number);

inline constexpr size_t kMostGgufSizes = 4;  // of a tensor

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
