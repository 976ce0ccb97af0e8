#include <algorithm>
#include <unordered_map>

#include "modules/errors.h"
#include "modules/io/safetensors.h"
#include "modules/io/tensor_name.h"
#include "modules/io/weights_index.h"
#include "modules/nearest_name.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kListed = 50;  // names in one message
constexpr size_t kMaxShards = 4096;

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kListed); ++i) text += (i == 0 ? "" : ", ") + in_quotes(names[i]);
  if (names.size() > kListed) text += " and " + std::to_string(names.size() - kListed) + " more";
  return text;
}

std::string did_you_mean(const std::string& wanted, const std::vector<std::string>& known) {
  const auto near = nearest_names(wanted, known, 3);
  return near.empty() ? "" : "; nearest: " + listed(near);
}

bool present(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

[[noreturn]] void refuse_folder(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw WeightsError(folder.string() + ": is not a folder, wanted a folder with model.safetensors");
  }
  std::vector<std::string> pickled, other;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string extension = entry.path().extension().string(), name = entry.path().filename().string();
    if (extension == ".safetensors") other.push_back(name);
    for (const char* kind : {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}) {
      if (extension == kind) pickled.push_back(name);
    }
  }
  if (error) throw IoError(folder.string() + ": cannot be listed: " + error.message());
  std::sort(pickled.begin(), pickled.end());
  std::sort(other.begin(), other.end());
  const std::string wanted = ": no model.safetensors and no model.safetensors.index.json";
  if (!other.empty()) throw WeightsError(folder.string() + wanted + "; there is " + listed(other));
  if (!pickled.empty()) {
    throw WeightsError(folder.string() + wanted + ", only pickled weights (" + listed(pickled) +
                       "), which can run code when read and are never opened here: convert them first, in a process of "
                       "their own: tools/convert_pickle.py " +
                       folder.string());
  }
  throw WeightsError(folder.string() + wanted);
}

}  // namespace

WeightsFolder::WeightsFolder(const fs::path& folder, NonFinite nonfinite) : folder_(folder), nonfinite_(nonfinite) {
  const fs::path single = folder / "model.safetensors", index_path = folder / "model.safetensors.index.json";
  if (present(single)) {
    files_.emplace_back(single);
    if (present(index_path))
      notes_.push_back(index_path.string() + ": ignored, because model.safetensors is there too");
    const auto& entries = files_[0].entries();
    for (size_t i = 0; i < entries.size(); ++i) index_.emplace(entries[i].name, std::pair(size_t{0}, i));
  } else if (present(index_path)) {
    open_shards(index_path);
  } else {
    refuse_folder(folder);
  }
}

void WeightsFolder::open_shards(const fs::path& index_path) {
  const WeightsIndex stated = parse_weights_index(JsonFile(index_path));
  std::map<std::string, size_t> shard_number;
  for (const auto& [name, shard] : stated.shard_of) shard_number.emplace(shard, 0);
  if (shard_number.size() > kMaxShards) {
    throw WeightsError(index_path.string() + ": names " + std::to_string(shard_number.size()) + " shards, at most " +
                       std::to_string(kMaxShards) + " are opened");
  }
  for (auto& [shard, number] : shard_number) {
    const fs::path path = folder_ / shard;
    if (!present(path)) throw WeightsError(path.string() + ": no such file, but " + index_path.string() + " names it");
    number = files_.size();
    files_.emplace_back(path);
  }
  std::vector<std::string> extra, missing, held;
  for (size_t f = 0; f < files_.size(); ++f) {
    const auto& entries = files_[f].entries();
    for (size_t e = 0; e < entries.size(); ++e) {
      const std::string& name = entries[e].name;
      const auto [earlier, is_new] = index_.emplace(name, std::pair(f, e));
      if (!is_new) {
        throw WeightsError(files_[f].path().string() + ": tensor " + in_quotes(name) + " is in " +
                           files_[earlier->second.first].path().string() + " too");
      }
      held.push_back(name);
      if (stated.shard_of.count(name) == 0) extra.push_back(name);
    }
  }
  for (const auto& [name, shard] : stated.shard_of) {
    const auto found = index_.find(name);
    if (found == index_.end()) {
      missing.push_back(name);
    } else if (found->second.first != shard_number.at(shard)) {
      throw WeightsError(index_path.string() + ": tensor " + in_quotes(name) + " should be in " + shard +
                         ", but is in " + files_[found->second.first].path().filename().string());
    }
  }
  if (!missing.empty()) {
    throw WeightsError(index_path.string() + ": names " + std::to_string(missing.size()) +
                       " tensors that its shards do not hold: " + listed(missing) + did_you_mean(missing[0], held));
  }
  if (!extra.empty()) {
    throw WeightsError(index_path.string() + ": does not name " + std::to_string(extra.size()) +
                       " tensors that its shards hold: " + listed(extra));
  }
  if (stated.total_bytes && *stated.total_bytes != static_cast<double>(payload_bytes())) {
    notes_.push_back(index_path.string() + ": total_size is " +
                     std::to_string(static_cast<uint64_t>(*stated.total_bytes)) + ", the shards hold " +
                     std::to_string(payload_bytes()) + " bytes (every tensor is there)");
  }
}

std::vector<std::string> WeightsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : index_) names.push_back(name);
  return names;
}

const TensorEntry* WeightsFolder::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &files_[found->second.first].entries()[found->second.second];
}

const std::pair<size_t, size_t>& WeightsFolder::place_of(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    throw WeightsError(folder_.string() + ": no tensor " + in_quotes(name) + did_you_mean(name, names()));
  }
  return found->second;
}

at::Tensor WeightsFolder::read(const std::string& name) const {
  const auto& [file, entry] = place_of(name);
  return files_[file].read(files_[file].entries()[entry], nonfinite_);
}

void WeightsFolder::read_into(const std::string& name, at::Tensor& destination) const {
  const auto& [file, entry] = place_of(name);
  files_[file].read_into(files_[file].entries()[entry], destination, nonfinite_);
}

uint64_t WeightsFolder::payload_bytes() const {
  uint64_t bytes = 0;
  for (const SafetensorsFile& file : files_) {
    for (const TensorEntry& entry : file.entries()) bytes += entry.end - entry.begin;
  }
  return bytes;
}

fs::path WeightsFolder::file_of(const std::string& name) const { return files_[place_of(name).first].path(); }

}  // namespace limbeck::io
