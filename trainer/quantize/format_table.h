// What each module of a model weighs in each format that it could be stored in, as the folder will hold it to the byte,
// and which modules must be in one format because others compute them as one. From the structure alone: no weight is
// read. A rule of the user takes its modules out: they are part of the rest.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/quantize/allocation.h"

namespace limbeck::quantize {

// Of what is not packed: as the dtype of the run.
inline constexpr const char* kFloatFormat = "float";

struct StoredFormat {
  std::string name;
  std::optional<kernels::QuantizedFormat> packed;  // none: float
};
// "float,int8,int4" -> the three; UsageError, which begins with `source`, for an unknown or repeated one, and where no
// folder holds them together.
std::vector<StoredFormat> parse_formats(const std::string& names, const std::string& source);

// UsageError for a format that vLLM does not compute: it has kernels for codes of 8 and 4 bits.
[[noreturn]] void refuse_for_vllm(const std::string& where, kernels::QuantizedFormat format);

struct Candidate {
  std::string path;  // below the model's root, "layers.0.mlp.up_proj"
  precision::Role role = precision::Role::kMlp;
  std::string group;  // the first module of those that must be in one format
  int64_t values = 0;
  std::vector<std::optional<int64_t>> bytes;  // by format; none: it has no such weights (columns that are no groups)
};

// By path, the name of a format.
using Mix = std::map<std::string, std::string>;

struct SizeEstimate {
  int64_t total_parameters = 0, fp32_bytes = 0, mixed_precision_bytes = 0;
  double compression_ratio = 0, target_compression = 6.0;
  bool meets_target = false;
};

// Which modules are given formats: the linear ones of layers, or embeddings and the head too, in the formats that
// readers of the folder take for them. A tied head is its embedding.
enum class Covered { kLayers, kEverything };

class FormatTable {
 public:
  // `request`: how the folder is to be read and stored, without packing; its rules hold.
  FormatTable(const models::ModelRequest& request, std::vector<StoredFormat> formats,
              Covered covered = Covered::kLayers);

  const std::vector<StoredFormat>& formats() const { return formats_; }
  const std::vector<Candidate>& modules() const { return modules_; }
  // By group, in the model's order: which modules.
  const std::vector<std::vector<size_t>>& groups() const { return groups_; }
  int64_t values() const { return values_; }          // of the whole model
  int64_t rest_bytes() const { return rest_bytes_; }  // of what is no candidate
  // Of a module by its place; std::logic_error for a format that is not in the table.
  size_t format_index(const std::string& name) const;
  // UsageError where a module cannot be stored in the format that the mix gives it.
  int64_t bytes_of(const Mix& mix) const;

 private:
  std::vector<StoredFormat> formats_;
  std::vector<Candidate> modules_;
  std::vector<std::vector<size_t>> groups_;
  int64_t values_ = 0, rest_bytes_ = 0;
};

// The mix as an index into the table's formats for each module: "0 2 2 1".
std::string spelled(const FormatTable& table, const Mix& mix);

// Of so many values in so many bytes, everything counted.
SizeEstimate size_estimate(int64_t values, int64_t bytes);
SizeEstimate estimate_model_size(const FormatTable& table, const Mix& mix);

// The tensors that a folder of this model will hold, packed or not, and their bytes.
struct FolderPlan {
  struct Tensor {
    std::string name, format;
    int64_t values = 0, bytes = 0;
  };
  std::vector<Tensor> tensors;
  std::string layout;  // "": nothing is packed
};
FolderPlan plan_folder(const models::BuiltModel& built);

// What load_model is to pack.
precision::Packing packing_of(const Mix& mix, std::string source);

}  // namespace limbeck::quantize
