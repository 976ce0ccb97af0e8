#include "trainer/data/data_set_check.h"

#include "trainer/data/shard.h"

namespace limbeck::data {

std::vector<std::filesystem::path> data_sets_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> found;
  for (const char* name : {"", "train", "validation"}) {
    const auto candidate = *name ? folder / name : folder;
    if (std::filesystem::exists(candidate / "manifest.json")) found.push_back(candidate);
  }
  return found;
}

DataSetCheck check_data_set(const std::filesystem::path& folder) {
  DataSetCheck check{folder, read_manifest(folder), {}};
  const std::vector<OpenedShard> opened = open_shards(folder, check.manifest);
  for (size_t i = 0; i < opened.size(); ++i) check.shards.push_back({check.manifest.shards[i], opened[i].fault});
  return check;
}

}  // namespace limbeck::data
