// A committed checkpoint open for reading: logical tensors, in whatever pieces they were saved. Everything that is read
// is held against its CRC-32C; errors are WeightsError naming file and tensor.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "modules/io/input_file.h"
#include "trainer/checkpoint/manifest.h"

namespace limbeck::checkpoint {

class Checkpoint {
 public:
  // Judges the manifest, the length and the header of every file, and state.json. The tensors' bytes are judged when
  // they are read.
  static Checkpoint open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  int64_t step() const { return manifest_.step; }
  const std::string& run_id() const { return manifest_.run_id; }
  const std::string& config_digest() const { return manifest_.config_digest; }
  const nlohmann::json& state() const { return state_; }
  const std::vector<LogicalTensor>& tensors() const { return tensors_; }  // by kind and name
  const Manifest& manifest() const { return manifest_; }

  bool has(Kind kind, const std::string& name) const { return by_name_.count({kind, name}) != 0; }
  const LogicalTensor& find(Kind kind, const std::string& name) const;  // WeightsError names the nearest there is
  // Fills all of `destination` (contiguous, cpu, dtype of the saved one) with the elements from `begin` on.
  void read(Kind kind, const std::string& name, int64_t begin, at::Tensor& destination) const;
  at::Tensor read(Kind kind, const std::string& name) const;  // a new tensor, whole

 private:
  explicit Checkpoint(const std::filesystem::path& path);

  std::filesystem::path path_;
  Manifest manifest_;
  std::vector<LogicalTensor> tensors_;
  std::map<std::pair<Kind, std::string>, size_t> by_name_;
  std::vector<io::InputFile> files_;  // as manifest_.files
  nlohmann::json state_;
};

}  // namespace limbeck::checkpoint
