// Reading and writing safetensors: single files and Hugging Face folders with a sharded index.
// Files are untrusted: every limit of the loading rules is checked before a byte of payload is read, payloads are read
// with pread (never mmap), and nothing is executed. Violations throw WeightsError naming file and tensor.
#pragma once
#include <ATen/core/Tensor.h>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace limbeck::io {

struct TensorEntry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // byte range in the file, absolute
};

// What a read does on meeting NaN or infinity: kRefuse throws WeightsError naming tensor and index.
enum class NonFinite { kAllow, kRefuse };

// One open .safetensors file with its validated header.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const;
  const std::vector<TensorEntry>& entries() const;  // in file order
  const std::map<std::string, std::string>& metadata() const;
  const TensorEntry* find(const std::string& name) const;                                    // null when absent
  at::Tensor read(const TensorEntry& entry, NonFinite nonfinite = NonFinite::kAllow) const;  // new CPU tensor
  // Same dtype and shape, contiguous, CPU.
  void read_into(const TensorEntry& entry, at::Tensor& destination, NonFinite nonfinite = NonFinite::kAllow) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// model.safetensors, or model.safetensors.index.json with its shards, of one folder. Opens every shard, checks that the
// index and the shards agree; .bin / .pt are refused with a pointer to an out-of-process converter. Where both exist
// the single file is taken, as transformers does. NaN and infinities are refused unless allowed.
class WeightsFolder {
 public:
  explicit WeightsFolder(const std::filesystem::path& folder, NonFinite nonfinite = NonFinite::kRefuse);
  std::vector<std::string> names() const;  // sorted
  const TensorEntry* find(const std::string& name) const;
  at::Tensor read(const std::string& name) const;
  void read_into(const std::string& name, at::Tensor& destination) const;
  uint64_t payload_bytes() const;
  std::filesystem::path file_of(const std::string& name) const;
  const std::vector<std::string>& notes() const { return notes_; }  // oddities worth telling the user, one line each

 private:
  void open_shards(const std::filesystem::path& index_path);
  const std::pair<size_t, size_t>& place_of(const std::string& name) const;

  std::filesystem::path folder_;
  NonFinite nonfinite_;
  std::vector<std::string> notes_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::pair<size_t, size_t>> index_;  // name -> file, entry
};

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// One that is made when its turn comes to be written, and let go afterwards: a model need not be in memory as a whole.
struct PromisedTensor {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  std::function<at::Tensor()> make;  // called once

  uint64_t bytes() const;
};

NamedTensors read_safetensors(const std::filesystem::path& path);
// Called before a tensor's bytes are read, in the order of the file: its memory need not be there earlier.
using BeforeTensor = std::function<void(const at::Tensor&)>;
// Written to a temporary beside the target, flushed to disk, then renamed: never a half-written file under the name.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {}, const BeforeTensor& before = {});
// Shards of at most max_shard_bytes plus model.safetensors.index.json; one shard = model.safetensors alone. A tensor
// larger than that has a shard to itself. Refuses a folder that already holds weights (UsageError).
void write_weights_folder(const std::filesystem::path& folder, const NamedTensors& tensors, uint64_t max_shard_bytes,
                          const BeforeTensor& before = {});
void write_weights_folder(const std::filesystem::path& folder, const std::vector<PromisedTensor>& tensors,
                          uint64_t max_shard_bytes);
// Of the files of tensors that this would write there, without writing any or making a tensor.
uint64_t bytes_of_weights_folder(const std::vector<PromisedTensor>& tensors, uint64_t max_shard_bytes);
// What is there already, as promises; the tensors are kept by them.
std::vector<PromisedTensor> promised(const NamedTensors& tensors, const std::string& where,
                                     const BeforeTensor& before = {});

}  // namespace limbeck::io
