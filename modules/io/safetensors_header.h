// The header of a safetensors file, as untrusted bytes: parsed and judged whole before a byte of payload is read.
// An accepted header satisfies every rule of the loading rules: known dtypes, bytes = checked product of the shape,
// payload covered without hole or overlap to the last byte of the file, unique names. Needs no torch.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace limbeck::io {

inline constexpr uint64_t kHeaderPrefixBytes = 8;  // little-endian length of the JSON that follows
inline constexpr uint64_t kMaxHeaderBytes = uint64_t{16} << 20;
inline constexpr size_t kMaxTensors = 100'000;
inline constexpr size_t kMaxRank = 16;

enum class StoredType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool, kF8E4M3, kF8E5M2 };
inline constexpr size_t kStoredTypes = 12;

std::string_view stored_name(StoredType type);  // "BF16"
uint64_t stored_bytes(StoredType type);         // of one element
std::optional<StoredType> stored_type(std::string_view name);

struct HeaderEntry {
  std::string name;
  StoredType dtype = StoredType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // byte range in the file, absolute
};

struct SafetensorsHeader {
  std::vector<HeaderEntry> entries;  // in file order
  std::map<std::string, std::string> metadata;
};

// Bytes of a tensor, or nothing when they do not fit 63 bits. Sizes of 0 count as 1 for the overflow test, as strides
// do.
std::optional<uint64_t> tensor_bytes(const std::vector<int64_t>& shape, StoredType type);

// The length of the JSON, from the first 8 bytes of a file of file_bytes bytes.
uint64_t header_length(const std::array<unsigned char, kHeaderPrefixBytes>& prefix, uint64_t file_bytes,
                       const std::string& where);
SafetensorsHeader parse_header(std::string_view text, uint64_t file_bytes, const std::string& where);
// Prefix and JSON, padded with spaces so that the payload begins at a multiple of 8; sets every entry's byte range, in
// the order given.
std::string build_header(std::vector<HeaderEntry>& entries, const std::map<std::string, std::string>& metadata,
                         const std::string& where);

}  // namespace limbeck::io
