// What `limbeck verify` does with a folder of token shards: every checksum and every id, all faults and not the first.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/data/manifest_file.h"

namespace limbeck::data {

struct ShardCheck {
  ShardRecord record;
  std::string fault;  // empty: the shard is whole
};

struct DataSetCheck {
  std::filesystem::path folder;
  ManifestFile manifest;
  std::vector<ShardCheck> shards;
};

// The data sets of a folder: itself, or its sub-folders train and validation. Empty when it holds none.
std::vector<std::filesystem::path> data_sets_of(const std::filesystem::path& folder);

// InputDataError when the manifest itself cannot be used.
DataSetCheck check_data_set(const std::filesystem::path& folder);

}  // namespace limbeck::data
