#include "modules/io/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <unordered_set>
#include <utility>

#include "modules/errors.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

struct TypeRow {
  StoredType type;
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<TypeRow, kStoredTypes> kTypes{{{StoredType::kF64, "F64", 8},
                                                    {StoredType::kF32, "F32", 4},
                                                    {StoredType::kF16, "F16", 2},
                                                    {StoredType::kBF16, "BF16", 2},
                                                    {StoredType::kI64, "I64", 8},
                                                    {StoredType::kI32, "I32", 4},
                                                    {StoredType::kI16, "I16", 2},
                                                    {StoredType::kI8, "I8", 1},
                                                    {StoredType::kU8, "U8", 1},
                                                    {StoredType::kBool, "BOOL", 1},
                                                    {StoredType::kF8E4M3, "F8_E4M3", 1},
                                                    {StoredType::kF8E5M2, "F8_E5M2", 1}}};

std::string known_types() {
  std::string names;
  for (const TypeRow& row : kTypes) {
    if (!names.empty()) names += " ";
    names += row.name;
  }
  return names;
}

// The grammar is three levels deep: { NAME: {dtype, shape: [..], data_offsets: [..]}, "__metadata__": {..} }. One state
// per place in it, so nothing nested deeper can be accepted; the parser below keeps its own place without recursion.
enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };
enum Field : unsigned { kNone = 0, kDtype = 1, kShapeField = 2, kOffsetsField = 4, kAllFields = 7 };

class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}
  SafetensorsHeader take() { return std::move(header_); }

  bool null() { wrong("null"); }
  bool boolean(bool) { wrong("true or false"); }
  bool number_integer(int64_t value) { wrong("the negative number " + std::to_string(value)); }
  bool number_float(double, const std::string& digits) { wrong("the number " + in_quotes(digits)); }
  bool binary(nlohmann::json::binary_t&) { wrong("binary data"); }
  bool number_unsigned(uint64_t value);
  bool string(std::string& value);
  bool start_object(size_t);
  bool key(std::string& name);
  bool end_object();
  bool start_array(size_t);
  bool end_array();
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) {
    fail("header: " + syntax_fault(position, error, text_));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw WeightsError(where_ + ": " + what); }
  [[noreturn]] void fail_tensor(const std::string& what) const {
    fail("tensor " + in_quotes(entry_.name) + ": " + what);
  }
  [[noreturn]] void wrong(const std::string& got) const;
  void take_field(const std::string& name);
  void finish_tensor();

  std::string_view text_;
  const std::string& where_;
  SafetensorsHeader header_;
  std::unordered_set<std::string> names_;
  Place place_ = Place::kOutside;
  bool metadata_seen_ = false;
  std::string metadata_key_;
  bool next_is_metadata_ = false;
  HeaderEntry entry_;
  std::vector<uint64_t> offsets_;
  unsigned fields_ = kNone, field_ = kNone;
};

void HeaderParser::wrong(const std::string& got) const {
  switch (place_) {
    case Place::kOutside:
      fail("header is " + got + ", wanted an object");
    case Place::kTop:
      if (next_is_metadata_) fail("__metadata__ is " + got + ", wanted an object of strings");
      fail_tensor("is " + got + ", wanted an object with dtype, shape and data_offsets");
    case Place::kMetadata:
      fail("__metadata__ " + in_quotes(metadata_key_) + " is " + got + ", wanted a string");
    case Place::kShape:
      fail_tensor("shape holds " + got + ", wanted integers from 0 to 2^63 - 1");
    case Place::kOffsets:
      fail_tensor("data_offsets hold " + got + ", wanted two integers from 0 to 2^64 - 1");
    case Place::kTensor:
      break;
  }
  fail_tensor(field_ == kDtype        ? "dtype is " + got + ", wanted a string"
              : field_ == kShapeField ? "shape is " + got + ", wanted an array"
                                      : "data_offsets is " + got + ", wanted an array");
}

bool HeaderParser::number_unsigned(uint64_t value) {
  if (place_ == Place::kShape) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      wrong("the number " + std::to_string(value));
    if (entry_.shape.size() == kMaxRank) fail_tensor("has more than " + std::to_string(kMaxRank) + " dimensions");
    entry_.shape.push_back(static_cast<int64_t>(value));
  } else if (place_ == Place::kOffsets) {
    if (offsets_.size() == 2) fail_tensor("data_offsets hold more than two numbers");
    offsets_.push_back(value);
  } else {
    wrong("the number " + std::to_string(value));
  }
  return true;
}

bool HeaderParser::string(std::string& value) {
  if (place_ == Place::kMetadata) {
    header_.metadata[metadata_key_] = std::move(value);
  } else if (place_ == Place::kTensor && field_ == kDtype) {
    const auto type = stored_type(value);
    if (!type) fail_tensor("dtype " + in_quotes(value) + " is not one of " + known_types());
    entry_.dtype = *type;
  } else {
    wrong("the string " + in_quotes(value));
  }
  return true;
}

bool HeaderParser::start_object(size_t) {
  if (place_ == Place::kOutside) {
    place_ = Place::kTop;
  } else if (place_ == Place::kTop) {
    place_ = next_is_metadata_ ? Place::kMetadata : Place::kTensor;
    fields_ = field_ = kNone;
  } else {
    wrong("an object");
  }
  return true;
}

bool HeaderParser::start_array(size_t) {
  if (place_ != Place::kTensor || field_ == kDtype) wrong("an array");
  place_ = field_ == kShapeField ? Place::kShape : Place::kOffsets;
  return true;
}

bool HeaderParser::end_array() {
  if (place_ == Place::kOffsets && offsets_.size() != 2) fail_tensor("data_offsets hold fewer than two numbers");
  place_ = Place::kTensor;
  return true;
}

bool HeaderParser::key(std::string& name) {
  if (place_ == Place::kMetadata) {
    if (header_.metadata.count(name) != 0) fail("__metadata__ key " + in_quotes(name) + " appears twice");
    metadata_key_ = std::move(name);
  } else if (place_ == Place::kTensor) {
    take_field(name);
  } else {
    next_is_metadata_ = name == "__metadata__";
    if (next_is_metadata_) {
      if (std::exchange(metadata_seen_, true)) fail("__metadata__ appears twice");
      return true;
    }
    const std::string fault = name_fault(name);
    if (!fault.empty()) fail("tensor name " + in_quotes(name) + " " + fault);
    if (header_.entries.size() == kMaxTensors) fail("more than " + std::to_string(kMaxTensors) + " tensors");
    if (!names_.insert(name).second) fail("tensor " + in_quotes(name) + " appears twice");
    entry_ = HeaderEntry{};
    entry_.name = std::move(name);
    offsets_.clear();
  }
  return true;
}

void HeaderParser::take_field(const std::string& name) {
  field_ = name == "dtype" ? kDtype : name == "shape" ? kShapeField : name == "data_offsets" ? kOffsetsField : kNone;
  if (field_ == kNone) fail_tensor("unknown key " + in_quotes(name) + ", wanted dtype, shape and data_offsets alone");
  if ((fields_ & field_) != 0) fail_tensor("key " + in_quotes(name) + " appears twice");
  fields_ |= field_;
}

bool HeaderParser::end_object() {
  if (place_ == Place::kTensor) finish_tensor();
  place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
  return true;
}

void HeaderParser::finish_tensor() {
  if (fields_ != kAllFields) {
    fail_tensor(std::string("has no ") + ((fields_ & kDtype) == 0        ? "dtype"
                                          : (fields_ & kShapeField) == 0 ? "shape"
                                                                         : "data_offsets"));
  }
  std::string range = "[";
  range += std::to_string(offsets_[0]) + ", " + std::to_string(offsets_[1]) + "]";
  if (offsets_[0] > offsets_[1]) fail_tensor("data_offsets " + range + " run backwards");
  const auto bytes = tensor_bytes(entry_.shape, entry_.dtype);
  if (!bytes) fail_tensor("shape is larger than 2^63 - 1 bytes");
  if (*bytes != offsets_[1] - offsets_[0]) {
    fail_tensor("shape and dtype make " + std::to_string(*bytes) + " bytes, data_offsets " + range + " hold " +
                std::to_string(offsets_[1] - offsets_[0]));
  }
  entry_.begin = offsets_[0];
  entry_.end = offsets_[1];
  header_.entries.push_back(std::move(entry_));
}

// Sorts the entries into file order and holds them against the payload.
void check_coverage(std::vector<HeaderEntry>& entries, uint64_t payload_bytes, const std::string& where) {
  // By end too, so that an empty tensor comes before the one that begins where it stands.
  std::stable_sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  const HeaderEntry* last = nullptr;
  for (const HeaderEntry& entry : entries) {
    if (entry.begin < covered) {
      throw WeightsError(where + ": tensors " + in_quotes(last->name) + " and " + in_quotes(entry.name) +
                         " overlap: bytes " + std::to_string(entry.begin) + " to " +
                         std::to_string(std::min(covered, entry.end)));
    }
    if (entry.begin > covered) {
      throw WeightsError(where + ": hole before tensor " + in_quotes(entry.name) + ": bytes " +
                         std::to_string(covered) + " to " + std::to_string(entry.begin) + " belong to no tensor");
    }
    if (entry.end > payload_bytes) {
      throw WeightsError(where + ": tensor " + in_quotes(entry.name) + " ends at byte " + std::to_string(entry.end) +
                         " of the payload, which has " + std::to_string(payload_bytes) +
                         " (cut short? fetch the file again)");
    }
    covered = entry.end;
    last = &entry;
  }
  if (covered != payload_bytes) {
    throw WeightsError(where + ": the last tensor ends at byte " + std::to_string(covered) +
                       " of the payload, which has " + std::to_string(payload_bytes) +
                       ": the rest belongs to no tensor");
  }
}

// What someone may have named .safetensors by mistake; the length field would only say "too large".
std::string foreign_format(const std::array<unsigned char, kHeaderPrefixBytes>& prefix) {
  const std::string_view bytes(reinterpret_cast<const char*>(prefix.data()), prefix.size());
  const bool zip = bytes.substr(0, 4) == "PK\x03\x04";
  const bool pickle = prefix[0] == 0x80 && prefix[1] >= 2 && prefix[1] <= 5 && prefix[2] != 0 && prefix[3] != 0;
  if (zip || pickle) return " (this is a pickled PyTorch file: convert it with tools/convert_pickle.py)";
  if (bytes.substr(0, 4) == "GGUF") return " (this is a GGUF file)";
  if (bytes.substr(0, 7) == "version") return " (this is a Git LFS pointer: run git lfs pull)";
  return {};
}

}  // namespace

std::string_view stored_name(StoredType type) { return kTypes[static_cast<size_t>(type)].name; }
uint64_t stored_bytes(StoredType type) { return kTypes[static_cast<size_t>(type)].bytes; }

std::optional<StoredType> stored_type(std::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (row.name == name) return row.type;
  }
  return std::nullopt;
}

std::optional<uint64_t> tensor_bytes(const std::vector<int64_t>& shape, StoredType type) {
  uint64_t product = stored_bytes(type);
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    empty = empty || size == 0;
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(std::max<int64_t>(size, 1)), &product))
      return std::nullopt;
  }
  if (product > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return empty ? 0 : product;
}

uint64_t header_length(const std::array<unsigned char, kHeaderPrefixBytes>& prefix, uint64_t file_bytes,
                       const std::string& where) {
  if (file_bytes < kHeaderPrefixBytes) {
    throw WeightsError(where + ": has " + std::to_string(file_bytes) + " bytes, a safetensors file has at least 8");
  }
  uint64_t length = 0;
  for (size_t i = prefix.size(); i-- > 0;) length = (length << 8) | prefix[i];
  // Compared with what is left after the prefix: length + 8 could wrap.
  if (length > kMaxHeaderBytes) {
    throw WeightsError(where + ": header of " + std::to_string(length) + " bytes, at most " +
                       std::to_string(kMaxHeaderBytes) + " are read" + foreign_format(prefix));
  }
  if (length > file_bytes - kHeaderPrefixBytes) {
    throw WeightsError(where + ": header of " + std::to_string(length) + " bytes in a file of " +
                       std::to_string(file_bytes) + " (cut short? fetch the file again)" + foreign_format(prefix));
  }
  if (length < 2) throw WeightsError(where + ": header of " + std::to_string(length) + " bytes, wanted a JSON object");
  return length;
}

SafetensorsHeader parse_header(std::string_view text, uint64_t file_bytes, const std::string& where) {
  if (text.size() > kMaxHeaderBytes || file_bytes < kHeaderPrefixBytes ||
      text.size() > file_bytes - kHeaderPrefixBytes) {
    throw WeightsError(where + ": header of " + std::to_string(text.size()) + " bytes in a file of " +
                       std::to_string(file_bytes));
  }
  if (text.empty() || text[0] != '{')
    throw WeightsError(where + ": header does not begin with {: not a safetensors file");
  const size_t zero = text.find('\0');
  if (zero != text.npos) throw WeightsError(where + ": header: not JSON: zero byte at byte " + std::to_string(zero));
  HeaderParser parser(text, where);
  nlohmann::json::sax_parse(text.begin(), text.end(), &parser);
  SafetensorsHeader header = parser.take();
  const uint64_t payload_begin = kHeaderPrefixBytes + text.size();
  check_coverage(header.entries, file_bytes - payload_begin, where);
  for (HeaderEntry& entry : header.entries) {
    entry.begin += payload_begin;
    entry.end += payload_begin;
  }
  return header;
}

std::string build_header(std::vector<HeaderEntry>& entries, const std::map<std::string, std::string>& metadata,
                         const std::string& where) {
  std::string text = "{";
  if (!metadata.empty()) {
    for (const auto& [key, value] : metadata) {
      if (!is_utf8(key) || !is_utf8(value))
        throw WeightsError(where + ": metadata " + in_quotes(key) + " is not UTF-8");
    }
    text += "\"__metadata__\":" + nlohmann::json(metadata).dump();
  }
  std::unordered_set<std::string_view> names;
  uint64_t at = 0;
  for (HeaderEntry& entry : entries) {
    const std::string fault = name_fault(entry.name);
    if (!fault.empty()) throw WeightsError(where + ": tensor name " + in_quotes(entry.name) + " " + fault);
    if (!names.insert(entry.name).second)
      throw WeightsError(where + ": tensor " + in_quotes(entry.name) + " appears twice");
    const auto bytes = tensor_bytes(entry.shape, entry.dtype);
    if (!bytes || entry.shape.size() > kMaxRank || __builtin_add_overflow(at, *bytes, &entry.end)) {
      throw WeightsError(where + ": tensor " + in_quotes(entry.name) +
                         " has more bytes or dimensions than a file can hold");
    }
    entry.begin = std::exchange(at, entry.end);
    if (text.size() > 1) text += ",";
    text += nlohmann::json(entry.name).dump() + ":{\"dtype\":\"" + std::string(stored_name(entry.dtype)) +
            "\",\"shape\":" + nlohmann::json(entry.shape).dump() + ",\"data_offsets\":[" + std::to_string(entry.begin) +
            "," + std::to_string(entry.end) + "]}";
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  if (entries.size() > kMaxTensors || text.size() > kMaxHeaderBytes) {
    throw WeightsError(where + ": " + std::to_string(entries.size()) + " tensors make a header of " +
                       std::to_string(text.size()) + " bytes, more than our reader takes: write more shards");
  }
  for (HeaderEntry& entry : entries) {
    entry.begin += kHeaderPrefixBytes + text.size();
    entry.end += kHeaderPrefixBytes + text.size();
  }
  std::string prefix(kHeaderPrefixBytes, '\0');
  for (size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<char>((text.size() >> (8 * i)) & 0xFF);
  return prefix + text;
}

}  // namespace limbeck::io
