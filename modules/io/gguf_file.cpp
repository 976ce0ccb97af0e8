#include "modules/io/gguf_file.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <set>
#include <stdexcept>
#include <type_traits>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers go to the file as they lie in memory");

constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;
constexpr size_t kMostTensorNameBytes = 63;

// What a value is, by the format's numbers.
enum class ValueType : uint32_t { kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9 };

template <class Value>
constexpr ValueType type_of() {
  if constexpr (std::is_same_v<Value, bool>) return ValueType::kBool;
  if constexpr (std::is_same_v<Value, uint32_t>) return ValueType::kUint32;
  if constexpr (std::is_same_v<Value, int32_t>) return ValueType::kInt32;
  if constexpr (std::is_same_v<Value, float>) return ValueType::kFloat32;
  if constexpr (std::is_same_v<Value, std::string>) return ValueType::kString;
  return ValueType::kArray;
}

struct GgufTypeRow {
  GgufType type;
  GgufTypeTraits traits;
};
constexpr GgufTypeRow kGgufTypes[] = {
    {GgufType::kFloat32, {"F32", 1, 4}},   {GgufType::kFloat16, {"F16", 1, 2}},   {GgufType::kBFloat16, {"BF16", 1, 2}},
    {GgufType::kQ4_0, {"Q4_0", 32, 18}},   {GgufType::kQ4_1, {"Q4_1", 32, 20}},   {GgufType::kQ5_0, {"Q5_0", 32, 22}},
    {GgufType::kQ5_1, {"Q5_1", 32, 24}},   {GgufType::kQ8_0, {"Q8_0", 32, 34}},   {GgufType::kQ2_K, {"Q2_K", 256, 84}},
    {GgufType::kQ3_K, {"Q3_K", 256, 110}}, {GgufType::kQ4_K, {"Q4_K", 256, 144}}, {GgufType::kQ5_K, {"Q5_K", 256, 176}},
    {GgufType::kQ6_K, {"Q6_K", 256, 210}}};
// For messages alone.
constexpr std::pair<uint32_t, const char*> kOtherGgufTypes[] = {
    {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"},
    {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},     {26, "I32"},   {27, "I64"},
    {28, "F64"},   {29, "IQ1_M"}, {34, "TQ1_0"},   {35, "TQ2_0"},  {39, "MXFP4"},   {40, "NVFP4"}};

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

class HeaderText {
 public:
  template <class Number>
  void number(Number value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void string(const std::string& value) {
    number(uint64_t{value.size()});
    text_ += value;
  }
  void pair(const std::string& key, const GgufValue& value) {
    string(key);
    std::visit(
        [this](const auto& held) {
          number(type_of<std::decay_t<decltype(held)>>());
          put(held);
        },
        value);
  }
  void align() { text_.resize(aligned(text_.size()), '\0'); }
  void raw(std::string_view bytes) { text_ += bytes; }
  const std::string& text() const { return text_; }

 private:
  void put(bool value) { number(static_cast<uint8_t>(value)); }
  void put(uint32_t value) { number(value); }
  void put(int32_t value) { number(value); }
  void put(float value) { number(value); }
  void put(const std::string& value) { string(value); }
  template <class Value>
  void put(const std::vector<Value>& values) {
    number(type_of<Value>());
    number(uint64_t{values.size()});
    for (const Value& value : values) put(value);
  }

  std::string text_;
};

void check(const std::string& where, const std::vector<GgufTensor>& tensors) {
  std::set<std::string> seen;
  for (const GgufTensor& tensor : tensors) {
    const std::string what = where + ": tensor " + in_quotes(tensor.name);
    if (tensor.name.empty() || tensor.name.size() > kMostTensorNameBytes) {
      throw ContractError(
          fmt::format("{}: its name has {} bytes, wanted 1 to {}", what, tensor.name.size(), kMostTensorNameBytes));
    }
    if (!seen.insert(tensor.name).second) throw ContractError(what + " appears twice");
    if (tensor.shape.empty() || tensor.shape.size() > kMostGgufSizes) {
      throw ContractError(fmt::format("{} has {} sizes, wanted 1 to {}", what, tensor.shape.size(), kMostGgufSizes));
    }
    const GgufTypeTraits& traits = traits_of(tensor.type);
    if (tensor.shape.back() % traits.values != 0) {
      throw ContractError(fmt::format("{} has {} columns, wanted a multiple of {} for {}", what, tensor.shape.back(),
                                      traits.values, traits.name));
    }
  }
}

std::string header_of(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors) {
  HeaderText header;
  header.raw("GGUF");
  header.number(kVersion);
  header.number(uint64_t{tensors.size()});
  header.number(uint64_t{metadata.size()});
  for (const auto& [key, value] : metadata) header.pair(key, value);
  uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    header.string(tensor.name);
    header.number(static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size)
      header.number(static_cast<uint64_t>(*size));
    header.number(static_cast<uint32_t>(tensor.type));
    header.number(offset);
    offset += aligned(static_cast<uint64_t>(bytes_of(tensor)));
  }
  header.align();
  return header.text();
}

}  // namespace

const GgufTypeTraits& traits_of(GgufType type) {
  for (const GgufTypeRow& row : kGgufTypes) {
    if (row.type == type) return row.traits;
  }
  throw std::logic_error(fmt::format("GGUF type {} has no row", static_cast<uint32_t>(type)));
}

std::optional<GgufType> gguf_type(uint32_t number) {
  for (const GgufTypeRow& row : kGgufTypes) {
    if (static_cast<uint32_t>(row.type) == number) return row.type;
  }
  return std::nullopt;
}

std::string gguf_type_name(uint32_t number) {
  if (const auto type = gguf_type(number)) return traits_of(*type).name;
  for (const auto& [other, name] : kOtherGgufTypes) {
    if (other == number) return name;
  }
  return fmt::format("number {}", number);
}

int64_t bytes_of(const GgufTensor& tensor) {
  int64_t values = 1;
  for (const int64_t size : tensor.shape) values *= size;
  return values / traits_of(tensor.type).values * traits_of(tensor.type).bytes;
}

void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                const std::vector<GgufTensor>& tensors) {
  check(path.string(), tensors);
  const std::string header = header_of(metadata, tensors);
  uint64_t whole = header.size();
  for (const GgufTensor& tensor : tensors) whole += aligned(static_cast<uint64_t>(bytes_of(tensor)));
  AtomicFile file(path, whole);
  file.write(header.data(), header.size());
  static constexpr std::array<char, kAlignment> kZeros{};
  for (const GgufTensor& tensor : tensors) {
    const at::Tensor bytes = tensor.bytes();  // one at a time in memory
    const auto wanted = static_cast<uint64_t>(bytes_of(tensor));
    if (!bytes.is_cpu() || !bytes.is_contiguous() || bytes.nbytes() != wanted) {
      throw ContractError(fmt::format("{}: tensor {} came as {} with {} bytes, wanted {} contiguous ones on the CPU",
                                      path.string(), in_quotes(tensor.name), bytes.toString(), bytes.nbytes(), wanted));
    }
    file.write(bytes.const_data_ptr(), wanted);
    file.write(kZeros.data(), aligned(wanted) - wanted);
  }
  file.commit();
}

}  // namespace limbeck::io
