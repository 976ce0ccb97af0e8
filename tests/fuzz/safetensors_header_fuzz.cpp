// libFuzzer target for everything that reads untrusted bytes without torch. Mutates the header's structure (shapes,
// offsets, dtypes, names, keys, nesting), then repairs the length prefix and the payload most of the time, so that
// inputs get past the first checks.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/untrusted_input.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using Random = std::minstd_rand;

// Fields as raw JSON text, so that a mutation can make what no JSON library would write: equal keys, huge integers.
struct Tensor {
  std::string key = "\"w\"", dtype = "\"F32\"";
  std::vector<std::string> shape{"2"}, offsets{"0", "8"};
  std::string extra;  // appended inside the object
};

size_t below(Random& random, size_t bound) { return random() % bound; }

template <size_t N>
const char* pick(Random& random, const char* const (&choices)[N]) {
  return choices[below(random, N)];
}

std::vector<Tensor> read_tensors(const uint8_t* data, size_t size) {
  std::vector<Tensor> tensors;
  if (size < 9) return tensors;
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = (length << 8) | data[i];
  const auto* text = reinterpret_cast<const char*>(data) + 8;
  const auto header = nlohmann::json::parse(text, text + std::min<uint64_t>(length, size - 8), nullptr, false);
  if (!header.is_object()) return tensors;
  for (const auto& [name, value] : header.items()) {
    if (tensors.size() == 64 || !value.is_object() || !value.contains("dtype")) continue;
    Tensor tensor;
    tensor.key = nlohmann::json(name).dump();
    tensor.dtype = value["dtype"].dump();
    tensor.shape.clear();
    tensor.offsets.clear();
    if (value.contains("shape")) {
      for (const auto& number : value["shape"]) tensor.shape.push_back(number.dump());
    }
    if (value.contains("data_offsets")) {
      for (const auto& number : value["data_offsets"]) tensor.offsets.push_back(number.dump());
    }
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ",") + part;
  return text;
}

std::string number(Random& random) {
  static constexpr const char* kEdges[] = {"0",
                                           "1",
                                           "2",
                                           "3",
                                           "7",
                                           "8",
                                           "16",
                                           "255",
                                           "65536",
                                           "2147483648",
                                           "4294967296",
                                           "4611686018427387904",
                                           "9223372036854775807",
                                           "9223372036854775808",
                                           "18446744073709551615",
                                           "18446744073709551616",
                                           "-1",
                                           "1.0",
                                           "1e3",
                                           "-0",
                                           "null",
                                           "[1]",
                                           "\"4\"",
                                           "6148914691236517206"};
  if (below(random, 3) == 0) return std::to_string(below(random, 64));
  return pick(random, kEdges);
}

// Offsets that agree with the shapes, one tensor behind the other: what gets a mutated header to the last checks.
void lay_out(std::vector<Tensor>& tensors) {
  uint64_t at = 0;
  for (Tensor& tensor : tensors) {
    const std::string& d = tensor.dtype;
    uint64_t bytes = d.find("64") != d.npos ? 8 : d.find("32") != d.npos ? 4 : d.find("16") != d.npos ? 2 : 1;
    for (const std::string& size : tensor.shape) bytes *= std::strtoull(size.c_str(), nullptr, 10);
    tensor.offsets = {std::to_string(at), std::to_string(at + bytes)};
    at += bytes;
  }
}

void mutate_tensor(Tensor& tensor, Random& random) {
  static constexpr const char* kTypes[] = {"\"F64\"", "\"F32\"",  "\"F16\"",     "\"BF16\"",    "\"I64\"",
                                           "\"I8\"",  "\"BOOL\"", "\"F8_E4M3\"", "\"F8_E5M2\"", "\"f32\"",
                                           "\"U32\"", "\"\"",     "7",           "null",        "[\"F32\"]"};
  static constexpr const char* kKeys[] = {"\"w\"",         "\"a\"",       "\"\"",         "\"__metadata__\"",
                                          "\"a\\u0000b\"", "\"\\ud800\"", "\"\xC3\xA9\"", "\"\xFF\"",
                                          "\"\xC0\xAF\"",  "\"a\\nb\"",   "\"../w\"",     "\"\xF4\x90\x80\x80\""};
  static constexpr const char* kExtras[] = {",\"dtype\":\"F32\"",
                                            ",\"shape\":[2]",
                                            ",\"data_offsets\":[0,8]",
                                            ",\"x\":[[[[[[[[[[1]]]]]]]]]]",
                                            ",\"x\":{\"y\":{}}",
                                            ",",
                                            ""};
  switch (below(random, 8)) {
    case 0:
      tensor.dtype = pick(random, kTypes);
      break;
    case 1:
      tensor.key = pick(random, kKeys);
      break;
    case 2:
      tensor.key = "\"" + std::string(below(random, 2) ? 512 + below(random, 2) : below(random, 20), 'n') + "\"";
      break;
    case 3:
      tensor.extra = pick(random, kExtras);
      break;
    case 4:
      tensor.shape.insert(tensor.shape.begin() + below(random, tensor.shape.size() + 1), number(random));
      break;
    case 5:
      if (!tensor.shape.empty()) tensor.shape[below(random, tensor.shape.size())] = number(random);
      break;
    case 6:
      if (!tensor.shape.empty()) tensor.shape.pop_back();
      break;
    default:
      tensor.shape.assign(below(random, 19), "1");
      break;
  }
}

void mutate_offsets(Tensor& tensor, Random& random) {
  switch (below(random, 4)) {
    case 0:
      std::reverse(tensor.offsets.begin(), tensor.offsets.end());
      break;
    case 1:
      tensor.offsets.push_back(number(random));
      break;
    case 2:
      tensor.offsets.resize(below(random, tensor.offsets.size() + 1));
      break;
    default:
      if (!tensor.offsets.empty()) tensor.offsets[below(random, tensor.offsets.size())] = number(random);
  }
}

std::string header_text(const std::vector<Tensor>& tensors, Random& random) {
  static constexpr const char* kMetadata[] = {
      "{\"format\":\"pt\"}",   "{}", "{\"a\":1}",          "null", "{\"a\":\"1\",\"a\":\"2\"}",
      "{\"a\":{\"b\":\"c\"}}", "[]", "{\"k\":\"\\u0000\"}"};
  std::string text = "{";
  if (below(random, 3) == 0) text += std::string("\"__metadata__\":") + pick(random, kMetadata);
  for (const Tensor& tensor : tensors) {
    text += (text.size() > 1 ? "," : "") + tensor.key + ":{\"dtype\":" + tensor.dtype + ",\"shape\":[" +
            joined(tensor.shape) + "],\"data_offsets\":[" + joined(tensor.offsets) + "]" + tensor.extra + "}";
  }
  text += "}";
  if (below(random, 4) == 0) text.append(below(random, 9), ' ');
  return text;
}

std::string file_bytes(const std::vector<Tensor>& tensors, Random& random) {
  const std::string text = header_text(tensors, random);
  uint64_t length = text.size();
  if (below(random, 16) == 0) length += below(random, 5) - uint64_t{2};
  if (below(random, 64) == 0) length = UINT64_MAX - below(random, 16);
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i));
  uint64_t payload = 0;
  for (const Tensor& tensor : tensors) {
    if (tensor.offsets.size() > 1)
      payload = std::max<uint64_t>(payload, std::strtoull(tensor.offsets[1].c_str(), nullptr, 10));
  }
  if (below(random, 16) == 0) payload += below(random, 17) - uint64_t{8};
  return bytes + text + std::string(std::min<uint64_t>(payload, 2048), 'p');
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  Random random(seed);
  std::vector<Tensor> tensors = read_tensors(data, size);
  // JSON and index inputs, and the bytes below the structure, are left to the general mutator.
  if (below(random, 4) == 0 || (tensors.empty() && size > 0 && data[0] == '{' && below(random, 8) != 0)) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  for (size_t rounds = 1 + below(random, 3); rounds > 0; --rounds) {
    if (tensors.empty() || below(random, 8) == 0) {
      Tensor added;
      added.key = "\"t" + std::to_string(below(random, 4)) + "\"";
      tensors.push_back(std::move(added));
    } else if (below(random, 8) == 0) {
      std::swap(tensors[below(random, tensors.size())], tensors[below(random, tensors.size())]);
    } else {
      mutate_tensor(tensors[below(random, tensors.size())], random);
    }
  }
  if (below(random, 4) != 0) lay_out(tensors);
  if (below(random, 4) == 0) mutate_offsets(tensors[below(random, tensors.size())], random);
  const std::string bytes = file_bytes(tensors, random);
  const size_t kept = std::min(bytes.size(), max_size);
  std::memcpy(data, bytes.data(), kept);
  return kept;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  limbeck::fuzz::judge(data, size);
  return 0;
}
