#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <set>

#include "modules/errors.h"
#include "modules/io/crc32c.h"
#include "modules/io/json_file.h"
#include "modules/io/json_text.h"
#include "modules/io/tensor_name.h"
#include "trainer/checkpoint/manifest.h"

namespace limbeck::checkpoint {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr const char* kFormat = "limbeck-checkpoint";

std::string hex(uint32_t crc) { return fmt::format("{:08x}", crc); }

std::string ending(uint32_t crc) { return fmt::format("\"crc32c\":\"{}\"}}\n", hex(crc)); }

std::vector<uint32_t> parse_crcs(const io::JsonFile& file, uint64_t count) {
  return parse_crc_text(file.string("crc32c"), count, file.where());
}

uint64_t parse_bytes(const io::JsonFile& file, const char* key) {
  return static_cast<uint64_t>(file.integer(key, 0, kMost));
}

const nlohmann::json& parse_list(const io::JsonFile& file, const char* key) {
  if (!file.has(key) || !file.value().at(key).is_array()) {
    throw WeightsError(fmt::format("{}: key \"{}\" is no list", file.where(), key));
  }
  return file.value().at(key);
}

io::JsonFile element(const nlohmann::json& value, const std::string& where) {
  if (!value.is_object()) throw WeightsError(where + ": is no object");
  return io::JsonFile(value, where);
}

std::string parse_tensor_name(const io::JsonFile& file) {
  std::string name = file.string("name");
  const std::string fault = io::name_fault(name);
  if (!fault.empty())
    throw WeightsError(fmt::format("{}: tensor name {} {}", file.where(), io::in_quotes(name), fault));
  return name;
}

void parse_layout(const io::JsonFile& file, ChunkRecord& chunk) {
  const auto type = io::stored_type(file.string("dtype"));
  if (!type) {
    throw WeightsError(fmt::format("{}: dtype {} is unknown", file.where(), io::in_quotes(file.string("dtype"))));
  }
  chunk.dtype = *type;
  for (const nlohmann::json& size : parse_list(file, "shape")) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > static_cast<uint64_t>(kMost) ||
        chunk.shape.size() == io::kMaxRank) {
      throw WeightsError(fmt::format("{}: shape is no list of at most {} sizes", file.where(), io::kMaxRank));
    }
    chunk.shape.push_back(static_cast<int64_t>(size.get<uint64_t>()));
  }
}

ChunkRecord parse_chunk(const io::JsonFile& file) {
  ChunkRecord chunk;
  chunk.name = parse_tensor_name(file);
  const io::JsonFile named(file.value(), fmt::format("{}: tensor {}", file.where(), io::in_quotes(chunk.name)));
  parse_layout(named, chunk);
  const auto whole = io::tensor_bytes(chunk.shape, chunk.dtype);
  if (!whole) throw WeightsError(named.where() + ": shape is larger than 2^63 - 1 bytes");
  const auto elements = static_cast<int64_t>(*whole / io::stored_bytes(chunk.dtype));
  chunk.begin = named.integer("begin", 0, elements);
  chunk.count = named.integer("count", 0, elements - chunk.begin);
  chunk.offset = parse_bytes(named, "offset");
  chunk.bytes = static_cast<uint64_t>(chunk.count) * io::stored_bytes(chunk.dtype);
  chunk.crc = parse_crcs(named, block_count(chunk.bytes));
  return chunk;
}

bool is_weights_name(const std::string& name) {
  for (const Kind kind : {Kind::kModel, Kind::kOptimizer}) {
    const std::string example = weights_file_name(kind, 0);
    const size_t digits = example.find('0');
    if (name.size() == example.size() && name.compare(0, digits, example, 0, digits) == 0 &&
        name.compare(digits + 5, name.npos, example, digits + 5) == 0 &&
        name.find_first_not_of("0123456789", digits) == digits + 5) {
      return true;
    }
  }
  return false;
}

// The head and the chunks, one after the other, are the file.
void check_cover(const FileRecord& record, const std::string& where) {
  uint64_t at = record.head_bytes;
  for (const ChunkRecord& chunk : record.chunks) {
    if (chunk.offset != at || __builtin_add_overflow(at, chunk.bytes, &at)) {
      throw WeightsError(fmt::format("{}: tensor {} begins at byte {}, wanted {}", where, io::in_quotes(chunk.name),
                                     chunk.offset, at));
    }
  }
  if (at != record.bytes)
    throw WeightsError(fmt::format("{}: {} bytes, but its parts end at {}", where, record.bytes, at));
}

void check_version(const io::JsonFile& file) {
  const std::string format = file.string("format");
  if (format != kFormat) {
    throw WeightsError(fmt::format("{}: format {}, wanted \"{}\"", file.where(), io::in_quotes(format), kFormat));
  }
  const int64_t version = file.integer("version", 0, kMost);
  if (version > kFormatVersion) {
    throw WeightsError(
        fmt::format("{}: checkpoint format {}, and this limbeck reads {} to {}: it was saved by a newer "
                    "one, use that",
                    file.where(), version, kOldestVersion, kFormatVersion));
  }
  if (version < kOldestVersion) {
    throw WeightsError(
        fmt::format("{}: checkpoint format {}, and this limbeck reads {} to {}: load and save it with an "
                    "older one first",
                    file.where(), version, kOldestVersion, kFormatVersion));
  }
}

}  // namespace

// Eight hexadecimal digits for each CRC: one JSON value a chunk, however large the chunk is.
std::string crc_text(const std::vector<uint32_t>& crcs) {
  std::string text;
  for (const uint32_t crc : crcs) text += hex(crc);
  return text;
}

std::vector<uint32_t> parse_crc_text(const std::string& text, uint64_t count, const std::string& where) {
  if (text.size() / 8 != count || text.size() % 8 != 0 || text.find_first_not_of("0123456789abcdef") != text.npos) {
    throw WeightsError(fmt::format("{}: key \"crc32c\" = {}, wanted {} times 8 hexadecimal digits", where,
                                   io::in_quotes(text), count));
  }
  std::vector<uint32_t> crcs(count);
  for (uint64_t i = 0; i < count; ++i) {
    crcs[i] = static_cast<uint32_t>(std::stoul(text.substr(i * 8, 8), nullptr, 16));
  }
  return crcs;
}

void check_own_crc(const std::string& text, const std::string& where) {
  const size_t length = ending(0).size(), body = text.size() - std::min(text.size(), length);
  const std::string wanted = ending(io::crc32c(text.data(), body));
  if (text.compare(body, text.npos, wanted) == 0) return;
  throw WeightsError(
      fmt::format("{}: does not end with the CRC-32C of its text: cut short or changed after it was "
                  "written",
                  where));
}

nlohmann::json as_json(const FileRecord& record) {
  nlohmann::json chunks = nlohmann::json::array();
  for (const ChunkRecord& chunk : record.chunks) {
    chunks.push_back({{"name", chunk.name},
                      {"shape", chunk.shape},
                      {"dtype", io::stored_name(chunk.dtype)},
                      {"begin", chunk.begin},
                      {"count", chunk.count},
                      {"offset", chunk.offset},
                      {"crc32c", crc_text(chunk.crc)}});
  }
  return {{"file", record.name},
          {"bytes", record.bytes},
          {"head_bytes", record.head_bytes},
          {"crc32c", hex(record.head_crc)},
          {"chunks", std::move(chunks)}};
}

FileRecord parse_file_record(const io::JsonFile& file) {
  FileRecord record;
  record.name = file.string("file");
  const io::JsonFile named(file.value(), fmt::format("{}: file {}", file.where(), io::in_quotes(record.name)));
  if (record.name != kStateName && !is_weights_name(record.name)) {
    throw WeightsError(
        fmt::format("{}: wanted {} or a name like {}", named.where(), kStateName, weights_file_name(Kind::kModel, 0)));
  }
  record.bytes = parse_bytes(named, "bytes");
  record.head_bytes = static_cast<uint64_t>(named.integer("head_bytes", 0, static_cast<int64_t>(record.bytes)));
  record.head_crc = parse_crcs(named, 1).front();
  const nlohmann::json& chunks = parse_list(named, "chunks");
  for (size_t i = 0; i < chunks.size(); ++i) {
    record.chunks.push_back(parse_chunk(element(chunks[i], fmt::format("{}: chunk {}", named.where(), i))));
  }
  if (record.name == kStateName && !record.chunks.empty()) throw WeightsError(named.where() + ": holds tensors");
  check_cover(record, named.where());
  return record;
}

std::string Manifest::text() const {
  const nlohmann::ordered_json head = {{"format", kFormat},
                                       {"version", kFormatVersion},
                                       {"run_id", run_id},
                                       {"step", step},
                                       {"config_digest", config_digest}};
  std::string out = head.dump();
  out.back() = ',';
  out += "\n\"files\":[";
  // A line for each chunk, for people and for diff. Written as text: a tree of JSON values for each chunk of each save
  // took more of the processor than the checksums of the chunks.
  for (const FileRecord& record : files) {
    out += fmt::format(R"({}{{"bytes":{},"crc32c":"{}","file":{},"head_bytes":{},"chunks":[)",
                       &record == &files.front() ? "\n" : ",\n", record.bytes, hex(record.head_crc),
                       nlohmann::json(record.name).dump(), record.head_bytes);
    for (const ChunkRecord& chunk : record.chunks) {
      out += fmt::format(R"({}{{"begin":{},"count":{},"crc32c":"{}","dtype":"{}","name":{},"offset":{},"shape":[{}]}})",
                         &chunk == &record.chunks.front() ? "\n " : ",\n ", chunk.begin, chunk.count,
                         crc_text(chunk.crc), io::stored_name(chunk.dtype), nlohmann::json(chunk.name).dump(),
                         chunk.offset, fmt::join(chunk.shape, ","));
    }
    out += "]}";
  }
  out += "],\n";
  return out + ending(io::crc32c(out.data(), out.size()));
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  check_own_crc(text, where);
  const io::JsonFile file = element(io::parse_json(text, where), where);
  check_version(file);
  Manifest manifest;
  manifest.run_id = file.string("run_id");
  manifest.step = file.integer("step", 0, kMost);
  manifest.config_digest = file.string("config_digest");
  std::set<std::string> names;
  for (const nlohmann::json& record : parse_list(file, "files")) {
    manifest.files.push_back(parse_file_record(element(record, where)));
    if (!names.insert(manifest.files.back().name).second) {
      throw WeightsError(fmt::format("{}: file {} is listed twice", where, manifest.files.back().name));
    }
  }
  if (names.count(kStateName) == 0) throw WeightsError(fmt::format("{}: lists no {}", where, kStateName));
  return manifest;
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kManifestName;
  return parse_manifest(io::read_json_text(path), path.string());
}

}  // namespace limbeck::checkpoint
