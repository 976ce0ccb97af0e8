// One GGUF file of anybody's, open for reading: its metadata as JSON, the list of its tensors, their bytes on demand.
// The file is untrusted: every count, length, type, size and offset is held against what the file has before memory is
// taken for it, and the header against limits of its own. Violations throw WeightsError with the file and the key or
// tensor. Big-endian files, version 1 and parts of a divided model are refused by name.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "modules/io/gguf_file.h"
#include "modules/io/input_file.h"
#include "modules/io/json_file.h"

namespace limbeck::io {

inline constexpr uint64_t kMaxGgufHeaderBytes = uint64_t{256} << 20;
inline constexpr uint64_t kMaxGgufKeys = 65'536;
inline constexpr uint64_t kMaxGgufItems = 6'000'000;  // in arrays, all together: Gemma 3's tokenizer has 1.3 million

struct StoredGgufTensor {
  std::string name;
  GgufType type = GgufType::kFloat32;
  std::vector<int64_t> shape;     // rows before columns
  uint64_t begin = 0, bytes = 0;  // in the file

  int64_t values() const;
};

class GgufReader {
 public:
  explicit GgufReader(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  // Floats are the shortest decimals that mean them: a 1e-5 that was stored in float32 is 1e-5.
  const JsonFile& metadata() const { return metadata_; }
  const std::vector<StoredGgufTensor>& tensors() const { return tensors_; }  // in file order
  const StoredGgufTensor* find(const std::string& name) const;               // null: not there
  // Of a tensor's bytes those from `from` on. Any thread.
  void read(const StoredGgufTensor& tensor, uint64_t from, void* into, size_t bytes) const;

 private:
  InputFile file_;
  JsonFile metadata_;
  std::vector<StoredGgufTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace limbeck::io
