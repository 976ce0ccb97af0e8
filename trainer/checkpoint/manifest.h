// MANIFEST.json of a checkpoint: what every file of it holds, byte for byte. Each file is a head (a safetensors header,
// or all of state.json) followed by chunks without a gap; chunks carry a CRC-32C for each MiB. The text ends with the
// CRC-32C of all before it. Read as untrusted input: bounded, integers never through double, every sum checked.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "modules/io/safetensors_header.h"

namespace limbeck::io {
class JsonFile;
}

namespace limbeck::checkpoint {

inline constexpr const char* kManifestName = "MANIFEST.json";
inline constexpr const char* kStateName = "state.json";
// A reader takes its own version and the one before it; 1 is the first there was.
inline constexpr int64_t kFormatVersion = 1, kOldestVersion = 1;
inline constexpr uint64_t kBlockBytes = uint64_t{1} << 20;

enum class Kind { kModel, kOptimizer };

struct ChunkRecord {
  std::string name;
  std::vector<int64_t> shape;  // of the whole logical tensor
  io::StoredType dtype = io::StoredType::kF32;
  int64_t begin = 0, count = 0;    // elements
  uint64_t offset = 0, bytes = 0;  // in the file
  std::vector<uint32_t> crc;       // of each block of kBlockBytes, counted from offset; the last may be shorter
};

struct FileRecord {
  std::string name;
  uint64_t bytes = 0, head_bytes = 0;
  uint32_t head_crc = 0;
  std::vector<ChunkRecord> chunks;  // in file order
};

// Where the elements of one logical tensor lie.
struct LogicalTensor {
  struct Part {
    size_t file = 0, chunk = 0;  // in Manifest::files and its chunks
  };
  Kind kind = Kind::kModel;
  std::string name;
  std::vector<int64_t> shape;
  io::StoredType dtype = io::StoredType::kF32;
  int64_t elements = 0;
  std::vector<Part> parts;  // by first element
};

struct Manifest {
  std::string run_id, config_digest;
  int64_t step = 0;
  std::vector<FileRecord> files;  // state.json, then by rank

  std::string text() const;  // depends on the CRCs in content only, never in length
  // By kind and name. Throws WeightsError when parts overlap, leave a hole or disagree.
  std::vector<LogicalTensor> tensors(const std::string& where) const;
};

uint64_t block_count(uint64_t bytes);
Kind kind_of_file(const std::string& name);  // of a name that parse accepts
std::string weights_file_name(Kind kind, int rank);

nlohmann::json as_json(const FileRecord& record);
FileRecord parse_file_record(const io::JsonFile& file);

// All that is written of a chunk after it was announced: its checksums, as text of eight digits for each.
std::string crc_text(const std::vector<uint32_t>& crcs);
std::vector<uint32_t> parse_crc_text(const std::string& text, uint64_t count, const std::string& where);

// WeightsError unless the text ends with the CRC-32C of all before it.
void check_own_crc(const std::string& text, const std::string& where);

// The checksum and every field are judged; the files themselves are not looked at.
Manifest read_manifest(const std::filesystem::path& folder);
Manifest parse_manifest(const std::string& text, const std::string& where);

}  // namespace limbeck::checkpoint
