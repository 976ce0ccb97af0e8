// A model as a Hugging Face folder that transformers and our own loader read: weights by the checkpoint's names (tied
// ones once, experts one by one), config.json with the dtype that is stored, the tokenizer's files as they are.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "modules/io/safetensors.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::models {

inline constexpr uint64_t kMaxShardBytes = uint64_t{5} << 30;

// Where the weights of a model on meta come from, each when its turn to be written comes, and once for each tensor that
// stands for it.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // In the checkpoint's layout, and the parameter's dtype.
  virtual at::Tensor floats(const WeightBinding& binding) const = 0;
  // In the format of binding.packed().
  virtual precision::PackedWeight codes(const WeightBinding& binding) const = 0;
};

struct SaveOptions {
  uint64_t max_shard_bytes = kMaxShardBytes;
  bool packed = false;                   // packed weights as their codes, as others read them; else as floats
  io::BeforeTensor before = {};          // see modules/io/safetensors.h
  std::filesystem::path tokenizer = {};  // the folder of its tokenizer's files; empty: the model's own
  const WeightSource* source = nullptr;  // null: the model's own weights
};

// What a folder of packed weights holds, by the checkpoint's names, and what its tensors will weigh.
struct PackedPlan {
  struct Tensor {
    std::string name;
    std::string format;  // of codes, or the dtype
    int64_t values = 0, bytes = 0;
  };
  std::vector<Tensor> tensors;
  std::string layout;
  int64_t bytes() const;
};
// Of a model on any device, meta too. UsageError where nothing is packed, or no folder that others read holds it.
PackedPlan plan_packed(const BuiltModel& built);
// UsageError for int4 groups that are no whole ones at the end of a row: what the layout refuses when it is written,
// said before a weight is read or anything is measured.
void refuse_shorter_last_groups(const BuiltModel& built);

// Writes `folder`, which must not exist or be empty; it appears complete or not at all. config.json comes from the
// folder that the model was read from. UsageError, IoError.
void save_model(const BuiltModel& built, const std::filesystem::path& folder, const SaveOptions& options = {});
// Of the files of weights that it would write, to the byte; none is written. What it would refuse of the model is
// refused.
uint64_t bytes_of_saved(const BuiltModel& built, const SaveOptions& options = {});

}  // namespace limbeck::models
