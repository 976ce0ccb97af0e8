// manifest.json of a folder of token shards, as tools/prepare_data.py writes it: untrusted, checked whole (its own
// CRC-32C, format version, every number's range, shard names that cannot leave the folder) before a shard is opened.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/data/data_source.h"

namespace limbeck::data {

inline constexpr int64_t kDataFormatVersion = 2;  // 1: CRC-32 as zlib computes it

struct ShardRecord {
  std::string file;  // bare name
  int64_t bytes = 0;
  uint32_t crc32c = 0;  // of the whole file
  int64_t documents = 0, tokens = 0, targets = 0;
  int64_t teacher_tokens = 0;
  int64_t largest_id = -1, teacher_largest_id = -1;  // -1: not kept
};

using LengthCounts = std::vector<std::pair<int64_t, int64_t>>;  // ascending lengths, documents of each

struct ManifestFile {
  Manifest summary;  // digest: of all shards
  std::vector<ShardRecord> shards;
  LengthCounts lengths, teacher_lengths;  // empty: data prepared before they were kept
  bool has_teacher = false;               // a second tokenizer, and with it a second stream
};

// InputDataError when it is missing, damaged or of another version.
ManifestFile read_manifest(const std::filesystem::path& folder);

// "2-81920-1f0c3a77": shards, tokens and the CRC-32C of what identifies them, so that a mismatch says what changed.
std::string digest_of(const Manifest& summary, const std::vector<ShardRecord>& shards);

}  // namespace limbeck::data
