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

using Promises = std::vector<PromisedTensor>;

void require_plain(const std::string& name, const at::Tensor& tensor, const std::string& where) {
  const std::string what = where + ": tensor " + in_quotes(name) + ": ";
  if (!tensor.defined()) throw ContractError(what + "is undefined");
  if (tensor.layout() != at::kStrided || tensor.is_meta()) {
    throw ContractError(what + "has no plain storage (" + tensor.toString() + "), wanted a dense tensor with data");
  }
}

StoredType writable_type(const PromisedTensor& tensor, const std::string& where) {
  const auto type = stored_type(tensor.dtype);
  if (type) return *type;
  throw ContractError(where + ": tensor " + in_quotes(tensor.name) + ": dtype " + c10::toString(tensor.dtype) +
                      " does not exist in safetensors files");
}

// Widest dtype first, else as given: with the payload at a multiple of 8 every tensor is then aligned for readers that
// map.
std::vector<const PromisedTensor*> file_order(const Promises& tensors) {
  std::vector<const PromisedTensor*> order;
  for (const PromisedTensor& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return c10::elementSize(a->dtype) > c10::elementSize(b->dtype);
  });
  return order;
}

std::string shard_name(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

std::vector<Promises> split(const Promises& tensors, uint64_t max_shard_bytes) {
  std::vector<Promises> shards(1);
  uint64_t bytes = 0;
  for (const PromisedTensor& tensor : tensors) {
    const uint64_t more = tensor.bytes();
    if (!shards.back().empty() && bytes + more > max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += more;
    shards.back().push_back(tensor);
  }
  return shards;
}

struct FilePlan {
  std::vector<const PromisedTensor*> order;
  std::string header;
  uint64_t bytes = 0;  // of the whole file
};

FilePlan plan_of(const Promises& tensors, const std::map<std::string, std::string>& metadata,
                 const std::string& where) {
  FilePlan plan{file_order(tensors), "", 0};
  std::vector<HeaderEntry> entries;
  for (const PromisedTensor* tensor : plan.order) {
    HeaderEntry entry;
    entry.name = tensor->name;
    entry.dtype = writable_type(*tensor, where);
    entry.shape = tensor->shape;
    entries.push_back(std::move(entry));
  }
  const std::map<std::string, std::string> default_metadata{{"format", "pt"}};
  plan.header = build_header(entries, metadata.empty() ? default_metadata : metadata, where);
  plan.bytes = entries.empty() ? plan.header.size() : entries.back().end;
  return plan;
}

void write_file(const fs::path& path, const Promises& tensors, const std::map<std::string, std::string>& metadata) {
  const std::string where = path.string();
  const FilePlan plan = plan_of(tensors, metadata, where);
  AtomicFile file(path, plan.bytes);
  file.write(plan.header.data(), plan.header.size());
  for (const PromisedTensor* promise : plan.order) {
    if (promise->bytes() == 0) continue;
    // At most one tensor's copy at a time, and none when it is contiguous on the CPU.
    const at::Tensor plain = promise->make().detach().resolve_conj().resolve_neg().cpu().contiguous();
    if (plain.scalar_type() != promise->dtype || plain.sizes() != at::IntArrayRef(promise->shape)) {
      throw ContractError(where + ": tensor " + in_quotes(promise->name) + " came as " + plain.toString() + " of " +
                          std::to_string(plain.nbytes()) + " bytes, which is not what was promised");
    }
    file.write(plain.const_data_ptr(), plain.nbytes());
  }
  file.commit();
}

}  // namespace

uint64_t PromisedTensor::bytes() const {
  return static_cast<uint64_t>(c10::multiply_integers(shape)) * c10::elementSize(dtype);
}

std::vector<PromisedTensor> promised(const NamedTensors& tensors, const std::string& where,
                                     const BeforeTensor& before) {
  Promises promises;
  for (const auto& [name, tensor] : tensors) {
    require_plain(name, tensor, where);
    promises.push_back({name, tensor.scalar_type(), tensor.sizes().vec(), [kept = tensor, before] {
                          if (before) before(kept);
                          return kept;
                        }});
    writable_type(promises.back(), where);
  }
  return promises;
}

void write_safetensors(const fs::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata, const BeforeTensor& before) {
  write_file(path, promised(tensors, path.string(), before), metadata);
}

void write_weights_folder(const fs::path& folder, const NamedTensors& tensors, uint64_t max_shard_bytes,
                          const BeforeTensor& before) {
  write_weights_folder(folder, promised(tensors, folder.string(), before), max_shard_bytes);
}

uint64_t bytes_of_weights_folder(const Promises& tensors, uint64_t max_shard_bytes) {
  uint64_t bytes = 0;
  for (const Promises& shard : split(tensors, max_shard_bytes))
    bytes += plan_of(shard, {}, "a folder of weights").bytes;
  return bytes;
}

void write_weights_folder(const fs::path& folder, const Promises& tensors, uint64_t max_shard_bytes) {
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
  for (const PromisedTensor& tensor : tensors) {
    writable_type(tensor, folder.string());
    if (!weight_map.emplace(tensor.name, "").second) {
      throw WeightsError(folder.string() + ": tensor " + in_quotes(tensor.name) + " appears twice");
    }
    total += tensor.bytes();
  }
  const std::vector<Promises> shards = split(tensors, max_shard_bytes);
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file_name = shard_name(i, shards.size());
    write_file(folder / file_name, shards[i], {});
    for (const PromisedTensor& tensor : shards[i]) weight_map[tensor.name] = file_name;
  }
  if (shards.size() == 1) return;
  // Last, because it is what makes the shards a model.
  const nlohmann::json index{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  write_atomically(index_path, index.dump(2) + "\n");
}

}  // namespace limbeck::io
