#include "modules/io/gguf_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>

#include "modules/errors.h"
#include "modules/io/safetensors_header.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

using nlohmann::json;

constexpr uint64_t kDefaultAlignment = 32, kMostAlignment = 65'536;
constexpr size_t kWindow = size_t{256} << 10;

// Of a value, by the format's numbers.
enum class Stored : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12
};
constexpr uint32_t kStoredKinds = 13;
constexpr std::array<uint64_t, kStoredKinds> kLeastBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

// The header's bytes one after the other, read a window at a time; never beyond its limit or the file.
class HeaderReader {
 public:
  explicit HeaderReader(const InputFile& file)
      : file_(file), where_(file.path().string()), end_(std::min(file.size(), kMaxGgufHeaderBytes)) {}

  [[noreturn]] void fail(const std::string& what) const { throw WeightsError(where_ + ": " + what); }
  uint64_t at() const { return at_; }
  uint64_t left() const { return end_ - at_; }

  // `what` is being read, for messages.
  void take(void* into, uint64_t bytes, const std::string& what) {
    require(bytes, what);
    auto* out = static_cast<char*>(into);
    while (bytes > 0) {
      if (used_ == window_.size()) refill();
      const size_t now = std::min<uint64_t>(bytes, window_.size() - used_);
      std::memcpy(out, window_.data() + used_, now);
      out += now, used_ += now, at_ += now, bytes -= now;
    }
  }

  template <class Number>
  Number number(const std::string& what) {
    Number value{};
    take(&value, sizeof value, what);
    return value;
  }

  std::string text(const std::string& what) {
    const auto length = number<uint64_t>(what);
    require(length, what);
    std::string text(length, '\0');
    take(text.data(), length, what);
    if (!is_utf8(text)) fail(what + " holds text that is no UTF-8");
    return text;
  }

  void require(uint64_t bytes, const std::string& what) const {
    if (bytes <= left()) return;
    const bool cut = end_ == file_.size();
    fail(fmt::format("{} wants {} bytes from byte {} on, and {}", what, bytes, at_,
                     cut ? fmt::format("the file has {} (cut short? fetch it again)", file_.size())
                         : fmt::format("a header of {} bytes at most is read", kMaxGgufHeaderBytes)));
  }

 private:
  void refill() {
    window_.resize(std::min<uint64_t>(kWindow, end_ - at_));
    file_.read(at_, window_.data(), window_.size());
    used_ = 0;
  }

  const InputFile& file_;
  std::string where_;
  uint64_t end_, at_ = 0;
  std::string window_;
  size_t used_ = 0;
};

double shortest_decimal(float value) {
  char digits[32];
  const auto written = std::to_chars(std::begin(digits), std::end(digits), value);
  double decimal = static_cast<double>(value);  // of NaN and infinities
  if (std::isfinite(value)) std::from_chars(std::begin(digits), written.ptr, decimal);
  return decimal;
}

class MetadataReader {
 public:
  explicit MetadataReader(HeaderReader& header) : header_(header) {}

  json all(uint64_t count) {
    json metadata = json::object();
    for (uint64_t i = 0; i < count; ++i) {
      const std::string key = header_.text(fmt::format("key {} of {}", i + 1, count));
      const std::string fault = name_fault(key);
      if (!fault.empty()) header_.fail(fmt::format("key {} {} {}", i + 1, in_quotes(key), fault));
      const std::string what = "key " + in_quotes(key);
      if (metadata.contains(key)) header_.fail(what + " appears twice");
      metadata[key] = value(kind(what), what);
    }
    return metadata;
  }

 private:
  Stored kind(const std::string& what) {
    const auto number = header_.number<uint32_t>(what);
    if (number >= kStoredKinds) header_.fail(fmt::format("{} has values of type {}, wanted 0 to 12", what, number));
    return static_cast<Stored>(number);
  }

  json value(Stored kind, const std::string& what) {
    switch (kind) {
      case Stored::kUint8:
        return header_.number<uint8_t>(what);
      case Stored::kInt8:
        return header_.number<int8_t>(what);
      case Stored::kUint16:
        return header_.number<uint16_t>(what);
      case Stored::kInt16:
        return header_.number<int16_t>(what);
      case Stored::kUint32:
        return header_.number<uint32_t>(what);
      case Stored::kInt32:
        return header_.number<int32_t>(what);
      case Stored::kUint64:
        return header_.number<uint64_t>(what);
      case Stored::kInt64:
        return header_.number<int64_t>(what);
      case Stored::kFloat32:
        return shortest_decimal(header_.number<float>(what));
      case Stored::kFloat64:
        return header_.number<double>(what);
      case Stored::kBool:
        return boolean(what);
      case Stored::kString:
        return header_.text(what);
      case Stored::kArray:
        break;
    }
    return array(what);
  }

  json boolean(const std::string& what) {
    const auto byte = header_.number<uint8_t>(what);
    if (byte > 1) header_.fail(fmt::format("{} is {}, wanted 0 or 1 of a yes or no", what, byte));
    return byte == 1;
  }

  json array(const std::string& what) {
    const Stored items = kind(what);
    if (items == Stored::kArray) header_.fail(what + " is an array of arrays, which no model needs");
    const auto count = header_.number<uint64_t>(what);
    const uint64_t least = kLeastBytes[static_cast<size_t>(items)];
    if (count > header_.left() / least || count > kMaxGgufItems - items_) {
      header_.fail(fmt::format("{} has {} items, and there is room for {} at most", what, count,
                               std::min(header_.left() / least, kMaxGgufItems - items_)));
    }
    items_ += count;
    json::array_t all;
    all.reserve(count);
    for (uint64_t i = 0; i < count; ++i) all.push_back(value(items, what));
    return all;
  }

  HeaderReader& header_;
  uint64_t items_ = 0;
};

void check_beginning(HeaderReader& header) {
  std::array<char, 4> magic{};
  header.take(magic.data(), magic.size(), "the first word");
  const std::string_view word(magic.data(), magic.size());
  if (word != "GGUF") {
    header.fail(fmt::format("is no GGUF file: it begins with {}, wanted \"GGUF\"{}", in_quotes(word),
                            word == "ggml" || word == "lmgg" || word == "tjgg"
                                ? " (an older format of ggml's: convert the original model again)"
                                : ""));
  }
  const auto version = header.number<uint32_t>("the version");
  if (version > 0 && (version & 0xFFFFU) == 0)
    header.fail("is big-endian, wanted a little-endian file: gguf-convert-endian FILE little converts it");
  if (version != 2 && version != 3) header.fail(fmt::format("is GGUF version {}, wanted 2 or 3", version));
}

uint64_t alignment_of(const JsonFile& metadata) {
  const int64_t alignment = metadata.integer_or("general.alignment", kDefaultAlignment, 1, kMostAlignment);
  if (std::has_single_bit(static_cast<uint64_t>(alignment))) return static_cast<uint64_t>(alignment);
  throw WeightsError(
      fmt::format("{}: key \"general.alignment\" = {}, wanted a power of two", metadata.where(), alignment));
}

// Offsets count from where the tensors' bytes begin, which is known when the list has been read.
StoredGgufTensor read_tensor(HeaderReader& header, const std::string& number) {
  StoredGgufTensor tensor;
  tensor.name = header.text("the name of tensor " + number);
  const std::string fault = name_fault(tensor.name);
  if (!fault.empty()) header.fail(fmt::format("tensor name {} {}", in_quotes(tensor.name), fault));
  const std::string what = "tensor " + in_quotes(tensor.name);
  const auto sizes = header.number<uint32_t>(what);
  if (sizes == 0 || sizes > kMostGgufSizes)
    header.fail(fmt::format("{} has {} sizes, wanted 1 to {}", what, sizes, kMostGgufSizes));
  for (uint32_t i = 0; i < sizes; ++i) {
    const auto size = header.number<uint64_t>(what);
    if (size == 0 || size > uint64_t{1} << 40)
      header.fail(fmt::format("{} has a size of {}, wanted 1 to 2^40", what, size));
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
  }
  const auto type = header.number<uint32_t>(what);
  const auto known = gguf_type(type);
  if (!known) {
    header.fail(
        fmt::format("{} is of type {}, which is not read: take a file of the same model in Q8_0, Q6_K or another of "
                    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K, or convert this one by "
                    "llama-quantize --allow-requantize FILE OUT Q8_0",
                    what, gguf_type_name(type)));
  }
  tensor.type = *known;
  const GgufTypeTraits& traits = traits_of(tensor.type);
  if (tensor.shape.back() % traits.values != 0) {
    header.fail(fmt::format("{} has rows of {} values, wanted a multiple of {} for {}", what, tensor.shape.back(),
                            traits.values, traits.name));
  }
  int64_t values = 1, bytes = 0;
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(values, size, &values)) header.fail(what + " has more than 2^63 - 1 values");
  }
  if (__builtin_mul_overflow(values / traits.values, traits.bytes, &bytes) ||
      bytes > std::numeric_limits<int64_t>::max() / 2) {
    header.fail(what + " has more bytes than a file can");
  }
  tensor.bytes = static_cast<uint64_t>(bytes);
  tensor.begin = header.number<uint64_t>(what);
  return tensor;
}

// One behind the other without holes, as ggml writes and reads them.
void place(std::vector<StoredGgufTensor>& tensors, uint64_t payload, uint64_t alignment, const InputFile& file) {
  uint64_t expected = 0;
  for (StoredGgufTensor& tensor : tensors) {
    const std::string what = file.path().string() + ": tensor " + in_quotes(tensor.name);
    if (tensor.begin != expected) {
      throw WeightsError(fmt::format("{} begins at byte {} of the tensors' bytes, wanted {}, where those before it end",
                                     what, tensor.begin, expected));
    }
    const uint64_t there = file.size() < payload ? 0 : file.size() - payload;
    if (tensor.begin > there || tensor.bytes > there - tensor.begin) {
      throw WeightsError(
          fmt::format("{} is bytes {} to {} of the tensors' bytes, of which the file has {} (cut short? "
                      "fetch it again)",
                      what, tensor.begin, tensor.begin + tensor.bytes, there));
    }
    expected = (tensor.begin + tensor.bytes + alignment - 1) / alignment * alignment;
    tensor.begin += payload;
  }
}

void refuse_parts(const JsonFile& metadata) {
  const int64_t parts = metadata.integer_or("split.count", 1, 0, 65'535);
  if (parts <= 1) return;
  throw WeightsError(
      fmt::format("{}: is one of {} parts of a model: join them first, llama-gguf-split --merge FIRST-PART WHOLE.gguf",
                  metadata.where(), parts));
}

}  // namespace

int64_t StoredGgufTensor::values() const {
  int64_t values = 1;
  for (const int64_t size : shape) values *= size;
  return values;
}

GgufReader::GgufReader(const std::filesystem::path& path) : file_(path), metadata_(json::object(), path.string()) {
  HeaderReader header(file_);
  check_beginning(header);
  const auto tensors = header.number<uint64_t>("the number of tensors");
  const auto keys = header.number<uint64_t>("the number of keys");
  if (tensors > kMaxTensors) header.fail(fmt::format("has {} tensors, at most {} are read", tensors, kMaxTensors));
  if (keys > kMaxGgufKeys) header.fail(fmt::format("has {} keys, at most {} are read", keys, kMaxGgufKeys));
  metadata_ = JsonFile(MetadataReader(header).all(keys), path.string());
  refuse_parts(metadata_);
  for (uint64_t i = 0; i < tensors; ++i) {
    tensors_.push_back(read_tensor(header, fmt::format("{} of {}", i + 1, tensors)));
    const std::string& name = tensors_.back().name;
    if (!index_.emplace(name, i).second) header.fail(fmt::format("tensor {} appears twice", in_quotes(name)));
  }
  const uint64_t alignment = alignment_of(metadata_);
  place(tensors_, (header.at() + alignment - 1) / alignment * alignment, alignment, file_);
}

const StoredGgufTensor* GgufReader::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void GgufReader::read(const StoredGgufTensor& tensor, uint64_t from, void* into, size_t bytes) const {
  file_.read(tensor.begin + from, into, bytes);
}

}  // namespace limbeck::io
