#include "tests/fuzz/untrusted_input.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>

#include "modules/errors.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/io/safetensors_header.h"
#include "modules/io/weights_index.h"

namespace limbeck::fuzz {
namespace {

using io::HeaderEntry;
using io::SafetensorsHeader;
using nlohmann::json;
__extension__ typedef unsigned __int128 Wide;

void require(bool held, const char* invariant) {
  if (held) return;
  std::fprintf(stderr, "accepted input breaks the invariant: %s\n", invariant);
  std::abort();
}

// Every refusal is one line that may be shown on a terminal.
void require_showable(const Error& error) {
  const std::string_view message = error.what();
  require(error.code() == ExitCode::kWeights, "refused with exit code 4");
  require(!message.empty() && message.size() < 4096, "message is short");
  for (const char c : message) {
    const auto byte = static_cast<unsigned char>(c);
    require(byte >= 0x20 && byte != 0x7F, "message holds no control character");
  }
}

size_t item_bytes(const std::string& dtype) {
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16") return 2;
  require(dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2", "known dtype");
  return 1;
}

void check_entry(const HeaderEntry& entry, const json& stated, uint64_t payload_begin, uint64_t size) {
  require(!entry.name.empty() && entry.name.size() <= 512, "name length");
  for (const char c : entry.name) {
    const auto byte = static_cast<unsigned char>(c);
    require(byte >= 0x20 && byte != 0x7F, "name without control characters");
  }
  require(entry.shape.size() <= 16, "rank");
  require(stated.size() == 3 && stated.at("shape").size() == entry.shape.size(), "stated fields");
  Wide bytes = item_bytes(stated.at("dtype").get<std::string>());
  for (size_t i = 0; i < entry.shape.size(); ++i) {
    const auto dimension = stated.at("shape")[i].get<uint64_t>();
    require(entry.shape[i] >= 0 && static_cast<uint64_t>(entry.shape[i]) == dimension, "dimension as stated");
    bytes = dimension == 0 ? 0 : bytes * dimension;
    require(bytes <= Wide{1} << 63, "bytes do not grow without limit");  // so that the product above cannot wrap
  }
  const auto begin = stated.at("data_offsets")[0].get<uint64_t>(), end = stated.at("data_offsets")[1].get<uint64_t>();
  require(begin <= end && Wide{end} - begin == bytes, "bytes = product of the shape");
  require(Wide{begin} + payload_begin == entry.begin && Wide{end} + payload_begin == entry.end, "absolute range");
  require(entry.end <= size, "range inside the file");
}

void check_header(const SafetensorsHeader& header, std::string_view text, uint64_t size) {
  const uint64_t payload_begin = 8 + text.size();
  const json stated = json::parse(text.begin(), text.end());
  require(stated.size() == header.entries.size() + stated.contains("__metadata__"), "every tensor is listed once");
  require(header.entries.size() <= 100'000 && text.size() <= (size_t{16} << 20), "limits");
  std::set<std::string> names;
  Wide total = 0;
  uint64_t at = payload_begin;
  for (const HeaderEntry& entry : header.entries) {
    require(names.insert(entry.name).second, "unique names");
    check_entry(entry, stated.at(entry.name), payload_begin, size);
    require(entry.begin == at, "no hole and no overlap");
    at = entry.end;
    total += entry.end - entry.begin;
  }
  require(at == size && total == size - payload_begin, "payload covered to the last byte");

  // What we write from it, we read back as the same.
  std::vector<HeaderEntry> written = header.entries;
  const std::string bytes = io::build_header(written, header.metadata, "written");
  const auto again =
      io::parse_header(std::string_view(bytes).substr(8), bytes.size() + static_cast<uint64_t>(total), "again");
  require(bytes.size() % 8 == 0 && again.metadata == header.metadata, "written metadata");
  require(again.entries.size() == header.entries.size(), "written entries");
  for (const HeaderEntry& entry : again.entries) {
    const auto same = std::find_if(header.entries.begin(), header.entries.end(),
                                   [&](const HeaderEntry& other) { return other.name == entry.name; });
    require(same != header.entries.end() && same->shape == entry.shape && same->dtype == entry.dtype, "written entry");
  }
}

bool judge_safetensors(const uint8_t* data, size_t size) {
  try {
    std::array<unsigned char, io::kHeaderPrefixBytes> prefix{};
    std::copy_n(data, std::min(size, prefix.size()), prefix.begin());
    const uint64_t length = io::header_length(prefix, size, "input");
    require(length <= size - 8, "header inside the file");
    const std::string_view text(reinterpret_cast<const char*>(data) + 8, length);
    check_header(io::parse_header(text, size, "input"), text, size);
    return true;
  } catch (const Error& error) {
    require_showable(error);
    return false;
  }
}

template <typename Read>
void attempt(Read read) {
  try {
    read();
  } catch (const Error& error) {
    require_showable(error);
  }
}

// As a model's config.json is read.
void read_settings(const io::JsonFile& file) {
  for (const char* key : {"hidden_size", "a", "n"}) {
    attempt([&] {
      const int64_t value = file.integer(key, 1, 1 << 20);
      require(value >= 1 && value <= 1 << 20, "integer in range");
    });
    attempt([&] { file.integer_or(key, 0, INT64_MIN, INT64_MAX); });
    attempt([&] {
      const int64_t value = file.integer_or(key, 8, 1, 4);
      require(value >= 1 && value <= 4, "integer in range, the default too");
    });
    attempt([&] {
      const double value = file.number(key, -1e3, 1e3);
      require(value >= -1e3 && value <= 1e3, "number in range");
    });
    attempt([&] { file.boolean_or(key, false); });
    attempt([&] { file.string(key); });
    attempt([&] { file.child(key); });
  }
}

Verdict judge_json(std::string_view text) {
  Verdict verdict;
  try {
    const json value = io::parse_json(text, "input");
    verdict.json = true;
    require(json::parse(text.begin(), text.end()) == value, "the same value as the library's parser");
    require(io::parse_json(value.dump(), "again") == value, "the same value when written and read");
    if (!value.is_object()) return verdict;
    const io::JsonFile file(value, "input");
    read_settings(file);
    const io::WeightsIndex index = io::parse_weights_index(file);
    verdict.index = true;
    for (const auto& [name, shard] : index.shard_of) {
      require(shard.find('/') == shard.npos && shard != ".." && shard.size() > 12, "shard is a bare name");
      require(!name.empty() && name.size() <= 512, "tensor name");
    }
  } catch (const Error& error) {
    require_showable(error);
  }
  return verdict;
}

}  // namespace

Verdict judge(const uint8_t* data, size_t size) {
  Verdict verdict = judge_json({reinterpret_cast<const char*>(data), size});
  verdict.safetensors = judge_safetensors(data, size);
  return verdict;
}

}  // namespace limbeck::fuzz
