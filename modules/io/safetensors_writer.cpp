#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/safetensors.h"
#include "modules/io/safetensors_header.h"
#include "modules/io/tensor_dtype.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

StoredType writable_type(const std::string& name, const at::Tensor& tensor, const std::string& where) {
  const std::string what = where + ": tensor " + in_quotes(name) + ": ";
  if (!tensor.defined()) throw ContractError(what + "is undefined");
  if (tensor.layout() != at::kStrided || tensor.is_meta()) {
    throw ContractError(what + "has no plain storage (" + tensor.toString() + "), wanted a dense tensor with data");
  }
  const auto type = stored_type(tensor.scalar_type());
  if (!type) {
    throw ContractError(what + "dtype " + c10::toString(tensor.scalar_type()) + " does not exist in safetensors files");
  }
  return *type;
}

// Widest dtype first, else as given: with the payload at a multiple of 8 every tensor is then aligned for readers that
// map.
std::vector<const NamedTensors::value_type*> file_order(const NamedTensors& tensors, const std::string& where) {
  std::vector<const NamedTensors::value_type*> order;
  for (const auto& named : tensors) {
    writable_type(named.first, named.second, where);
    order.push_back(&named);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->second.element_size() > b->second.element_size(); });
  return order;
}

std::string shard_name(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

std::vector<NamedTensors> split(const NamedTensors& tensors, uint64_t max_shard_bytes) {
  std::vector<NamedTensors> shards(1);
  uint64_t bytes = 0;
  for (const auto& named : tensors) {
    const uint64_t more = named.second.nbytes();
    if (!shards.back().empty() && bytes + more > max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += more;
    shards.back().push_back(named);
  }
  return shards;
}

}  // namespace

void write_safetensors(const fs::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata, const BeforeTensor& before) {
  const std::string where = path.string();
  const auto order = file_order(tensors, where);
  std::vector<HeaderEntry> entries;
  for (const auto* named : order) {
    HeaderEntry entry;
    entry.name = named->first;
    entry.dtype = writable_type(named->first, named->second, where);
    entry.shape = named->second.sizes().vec();
    entries.push_back(std::move(entry));
  }
  const std::map<std::string, std::string> default_metadata{{"format", "pt"}};
  const std::string header = build_header(entries, metadata.empty() ? default_metadata : metadata, where);
  AtomicFile file(path, entries.empty() ? header.size() : entries.back().end);
  file.write(header.data(), header.size());
  for (const auto* named : order) {
    if (named->second.numel() == 0) continue;
    if (before) before(named->second);
    // At most one tensor's copy at a time, and none when it is contiguous on the CPU.
    const at::Tensor plain = named->second.detach().resolve_conj().resolve_neg().cpu().contiguous();
    file.write(plain.const_data_ptr(), plain.nbytes());
  }
  file.commit();
}

void write_weights_folder(const fs::path& folder, const NamedTensors& tensors, uint64_t max_shard_bytes,
                          const BeforeTensor& before) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw IoError(folder.string() + ": cannot be created: " + error.message());
  const fs::path index_path = folder / "model.safetensors.index.json";
  for (const fs::path& old : {folder / "model.safetensors", index_path}) {
    if (fs::symlink_status(old, error).type() != fs::file_type::not_found) {
      throw UsageError(old.string() + ": is there already: name an empty folder, or remove the old weights");
    }
  }
  std::map<std::string, std::string> weight_map;
  uint64_t total = 0;
  for (const auto& [name, tensor] : tensors) {
    writable_type(name, tensor, folder.string());
    if (!weight_map.emplace(name, "").second) {
      throw WeightsError(folder.string() + ": tensor " + in_quotes(name) + " appears twice");
    }
    total += tensor.nbytes();
  }
  const std::vector<NamedTensors> shards = split(tensors, max_shard_bytes);
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file_name = shard_name(i, shards.size());
    write_safetensors(folder / file_name, shards[i], {}, before);
    for (const auto& [name, tensor] : shards[i]) weight_map[name] = file_name;
  }
  if (shards.size() == 1) return;
  // Last, because it is what makes the shards a model.
  const nlohmann::json index{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  write_atomically(index_path, index.dump(2) + "\n");
}

}  // namespace limbeck::io
